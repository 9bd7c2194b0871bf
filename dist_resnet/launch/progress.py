"""Progress in the terminal: a bar, or plain lines where it is not a terminal.

That of a run is drawn from its journal, that of a preparation from the pictures that are done.
"""

import sys
import time
from collections.abc import Sequence
from typing import TextIO

from tqdm import tqdm

from dist_resnet.launch.pace import Pace
from dist_resnet.tracking.records import Evaluating, Metrics, Record, Session

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shows images done, loss, error, images/s and time left as records come in."""

    def __init__(self, name: str, total_steps: int, global_batch: int, *, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._name, self._total, self._batch = name, total_steps, global_batch
        self._pace = Pace(total_steps, global_batch)
        self._line_at = 0.0
        self._bar: tqdm | None = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=total_steps * global_batch,
                unit="img",
                desc=name,
                file=self._stream,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} images {elapsed} {postfix}",
            )

    def show(self, records: Sequence[Record]) -> None:
        """Takes in journal records and redraws."""
        stepped = False
        for record in records:
            self._pace.add(record)
            match record:
                case Session():
                    self._say(_session_line(record))
                case Evaluating():
                    done = min(1.0, record.images / max(1, record.share))
                    self._say(f"step {record.step}: evaluating at {record.crop} px, {done:.0%}")
                case Metrics(is_evaluation=True):
                    self._say(_evaluation_line(record))
                case Metrics(is_step=True):
                    stepped = True
        if stepped:
            self._draw()

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def _draw(self) -> None:
        pace, step = self._pace, self._pace.step
        text = (
            f"loss {pace.values['train/loss']:.3f}, error {pace.values['train/top1_error']:.1%}, "
            f"{pace.images_per_second:.1f} images/s, {tqdm.format_interval(pace.seconds_left or 0)} left"
        )
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.n = step * self._batch
            self._bar.refresh()
        elif time.monotonic() - self._line_at >= _SECONDS_BETWEEN_LINES or step == self._total:
            self._line_at = time.monotonic()
            self._say(f"step {step}/{self._total}, {step * self._batch} images, {text}")

    def _say(self, line: str) -> None:
        if self._bar is not None:
            tqdm.write(line, file=self._stream)
        else:
            self._stream.write(f"{self._name}: {line}\n")
            self._stream.flush()


class PictureProgress:
    """Shows the acts of a preparation one after the other: pictures done, pictures/s and time left."""

    def __init__(self, *, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bar: tqdm | None = None
        self._act: str | None = None
        self._total: int | None = None
        self._done = 0
        self._began = self._line_at = 0.0

    def begin(self, what: str, total: int | None) -> None:
        """An act of so many pictures begins, or of a number that is not known."""
        self.close()
        self._act, self._total, self._done = what, total, 0
        self._began = self._line_at = time.monotonic()
        if self._stream.isatty():
            self._bar = tqdm(total=total, desc=what, unit=" pictures", file=self._stream, dynamic_ncols=True)

    def advance(self, pictures: int) -> None:
        """So many pictures more are done."""
        self._done += pictures
        if self._bar is not None:
            self._bar.update(pictures)
        elif time.monotonic() - self._line_at >= _SECONDS_BETWEEN_LINES and self._done != self._total:
            self._line_at = time.monotonic()
            self._write_line()

    def say(self, line: str) -> None:
        """Writes a line above the bar."""
        tqdm.write(line, file=self._stream)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
        elif self._act is not None:
            self._write_line()
        self._bar = self._act = None

    def _write_line(self) -> None:
        seconds = max(time.monotonic() - self._began, 1e-3)
        of_all = left = ""
        if self._total is not None:
            of_all = f"/{self._total}"
            left = f", {tqdm.format_interval((self._total - self._done) * seconds / max(1, self._done))} left"
        rate = self._done / seconds
        self._stream.write(f"{self._act}: {self._done}{of_all} pictures, {rate:.1f} pictures/s{left}\n")
        self._stream.flush()


class DeliveryProgress:
    """Shows how many of a run's points have been delivered: a bar on a terminal, else a line now and then.

    Called with the number of points that wait, it also shows that MLflow is waited for: the number stays as it is.
    """

    def __init__(self, name: str, *, stream: TextIO | None = None) -> None:
        self._name, self._stream = name, stream or sys.stderr
        self._total: int | None = None
        self._bar: tqdm | None = None
        self._line_at = 0.0

    def __call__(self, waiting_points: int) -> None:
        """So many points wait now."""
        if self._total is None:
            self._total = waiting_points
            if self._stream.isatty():
                self._bar = tqdm(
                    total=waiting_points, desc=self._name, unit=" points", file=self._stream, dynamic_ncols=True
                )
        # A delivery that is begun anew finds how much an earlier one brought.
        done = max(0, self._total - waiting_points)
        if self._bar is not None:
            self._bar.n = done
            self._bar.refresh()
        elif time.monotonic() - self._line_at >= _SECONDS_BETWEEN_LINES or not waiting_points:
            self._line_at = time.monotonic()
            self._stream.write(f"{self._name}: {done}/{self._total} points delivered\n")
            self._stream.flush()

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def _session_line(record: Session) -> str:
    size = record.world_size or 1
    start = f"going on after step {record.start_step}" if record.start_step else "starting"
    return f"{start} of {record.total_steps} steps on {size} worker{'s' * (size > 1)} ({record.device})"


def _evaluation_line(record: Metrics) -> str:
    errors = ", ".join(
        f"{key.removeprefix('val/').replace('_', ' ')} {value:.2%}"
        for key, value in record.values.items()
        if "error" in key
    )
    return f"step {record.step}: validation {errors}"
