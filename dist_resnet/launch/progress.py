"""Progress: a bar in a terminal or a notebook, plain lines elsewhere.

A run's progress comes from its journal, a preparation's from the number of images done.
"""

import sys
import time
from collections.abc import Sequence
from typing import TextIO

import rich.progress
from rich.console import Console

from dist_resnet.launch.notebook import NotebookBar
from dist_resnet.launch.pace import Pace
from dist_resnet.tracking.records import Evaluating, Metrics, Record, Session, Straggler
from dist_resnet.wording import clock

_SECONDS_BETWEEN_LINES = 10.0


class _Console(Console):
    """A terminal that keeps its cursor, because a process may be killed at any time."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


class _Bar:
    """A bar on a terminal, with lines above it."""

    def __init__(self, progress: rich.progress.Progress, what: str, total: int | None) -> None:
        self._progress = progress
        self._task = progress.add_task(what, total=total, note="")
        self._progress.start()

    def set(self, done: int, note: str = "") -> None:
        """Shows how much is done, and a note."""
        self._progress.update(self._task, completed=done, note=note)

    def say(self, line: str) -> None:
        """Writes a line above the bar."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._progress.stop()


def _open_bar(stream: TextIO | None, what: str, total: int | None, unit: str) -> _Bar | NotebookBar | None:
    """A bar on a stream, by default standard error; None if the stream can show only lines."""
    notebook = stream is None and Console().is_jupyter
    stream = stream or sys.stderr
    if not notebook and not stream.isatty():
        return None
    progress = rich.progress.Progress(
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.TaskProgressColumn(),
        rich.progress.BarColumn(),
        rich.progress.TextColumn(f"{{task.completed:.0f}}{'' if total is None else f'/{total}'} {unit}"),
        rich.progress.TextColumn("{task.fields[note]}", markup=False),
        console=_Console(file=stream),
        refresh_per_second=2,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    if not notebook:
        return _Bar(progress, what, total)
    return NotebookBar(progress, what, total)


class TrainingProgress:
    """Shows images done, loss, error, images/s and time left as records arrive."""

    def __init__(self, name: str, total_steps: int, global_batch: int, *, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._name, self._total, self._batch = name, total_steps, global_batch
        self._pace = Pace(total_steps, global_batch)
        self._line_at = 0.0
        self._bar = _open_bar(stream, name, total_steps * global_batch, "images")

    def show(self, records: Sequence[Record]) -> None:
        """Takes journal records and redraws."""
        stepped = False
        for record in records:
            self._pace.add(record)
            match record:
                case Session():
                    self._say(_session_line(record))
                case Evaluating():
                    done = min(1.0, record.images / max(1, record.share))
                    self._say(f"step {record.step}: evaluating at {record.crop} px, {done:.0%}")
                case Straggler():
                    self._say(f"step {record.step}: {record}")
                case Metrics(is_evaluation=True):
                    self._say(_evaluation_line(record))
                case Metrics(is_step=True):
                    stepped = True
        if stepped:
            self._draw()

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def _draw(self) -> None:
        pace, step = self._pace, self._pace.step
        text = (
            f"loss {pace.values['train/loss']:.3f}, error {pace.values['train/top1_error']:.1%}, "
            f"{pace.images_per_second:.1f} images/s, {clock(pace.seconds_left or 0)} left"
        )
        if self._bar is not None:
            self._bar.set(step * self._batch, text)
        elif time.monotonic() - self._line_at >= _SECONDS_BETWEEN_LINES or step == self._total:
            self._line_at = time.monotonic()
            self._say(f"step {step}/{self._total}, {step * self._batch} images, {text}")

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.say(line)
        else:
            self._stream.write(f"{self._name}: {line}\n")
            self._stream.flush()


class ImageProgress:
    """Shows each act of a preparation: images done, images/s and time left."""

    def __init__(self, *, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._given = stream
        self._bar: _Bar | NotebookBar | None = None
        self._act: str | None = None
        self._total: int | None = None
        self._done = 0
        self._began = self._line_at = 0.0

    def begin(self, what: str, total: int | None) -> None:
        """Starts an act of `total` images, or of an unknown number."""
        self.close()
        self._act, self._total, self._done = what, total, 0
        self._began = self._line_at = time.monotonic()
        self._bar = _open_bar(self._given, what, total, "images")

    def advance(self, images: int) -> None:
        """Adds to the number of images done."""
        self._done += images
        if self._bar is not None:
            self._bar.set(self._done, self._rate())
        elif time.monotonic() - self._line_at >= _SECONDS_BETWEEN_LINES and self._done != self._total:
            self._line_at = time.monotonic()
            self._write_line()

    def say(self, line: str) -> None:
        """Writes a line above the bar."""
        if self._bar is not None:
            self._bar.say(line)
        else:
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()
        elif self._act is not None:
            self._write_line()
        self._bar = self._act = None

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._began, 1e-3)
        rate = f"{self._done / seconds:.1f} images/s"
        if self._total is None or not self._done:
            return rate
        return f"{rate}, {clock((self._total - self._done) * seconds / self._done)} left"

    def _write_line(self) -> None:
        of_all = "" if self._total is None else f"/{self._total}"
        self._stream.write(f"{self._act}: {self._done}{of_all} images, {self._rate()}\n")
        self._stream.flush()


class DeliveryProgress:
    """Shows how many of a run's points have been delivered: a bar on a terminal, else a line every ten seconds.

    Called with the number of points still to deliver; while MLflow is down, the number does not change.
    """

    def __init__(self, name: str, *, stream: TextIO | None = None) -> None:
        self._name, self._given, self._stream = name, stream, stream or sys.stderr
        self._total: int | None = None
        self._bar: _Bar | NotebookBar | None = None
        self._line_at = 0.0

    def __call__(self, waiting_points: int) -> None:
        """Shows progress, given the number of points still to deliver."""
        if self._total is None:
            self._total = waiting_points
            self._bar = _open_bar(self._given, self._name, waiting_points, "points")
        # A restarted delivery first finds how much an earlier one delivered.
        done = max(0, self._total - waiting_points)
        if self._bar is not None:
            self._bar.set(done)
        elif time.monotonic() - self._line_at >= _SECONDS_BETWEEN_LINES or not waiting_points:
            self._line_at = time.monotonic()
            self._stream.write(f"{self._name}: {done}/{self._total} points delivered\n")
            self._stream.flush()

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def _session_line(record: Session) -> str:
    size = record.world_size or 1
    steps = f"{record.total_steps} steps"
    start = f"resuming after step {record.start_step} of {steps}" if record.start_step else f"starting {steps}"
    return f"{start} on {size} worker{'s' * (size > 1)} ({record.device})"


def _evaluation_line(record: Metrics) -> str:
    errors = ", ".join(
        f"{key.removeprefix('val/').replace('_', ' ')} {value:.2%}"
        for key, value in record.values.items()
        if "error" in key
    )
    return f"step {record.step}: validation {errors}"
