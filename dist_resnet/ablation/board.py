"""A sweep's progress: a live table in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from dist_resnet.ablation.trial import Trial
from dist_resnet.wording import clock

_SECONDS_BETWEEN_LINES = 30.0
_OTHER_ROWS = 8


class Board:
    """Shows each trial's cell, seed, iteration, error and time left."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._lines_at = time.monotonic()
        self._live: Live | None = None
        if self._stream.isatty():
            self._live = Live(console=Console(file=self._stream), auto_refresh=False)
            self._live.start()

    def say(self, name: str, line: str) -> None:
        """Reports an event of a trial as a line; in a terminal, the table shows it."""
        if self._live is None:
            self._stream.write(f"{name}: {line}\n")
            self._stream.flush()

    def draw(self, trials: Sequence[Trial]) -> None:
        """Shows the trials' current state."""
        if self._live is not None:
            self._live.update(table(trials, self._live.console.size.height), refresh=True)
        elif time.monotonic() - self._lines_at >= _SECONDS_BETWEEN_LINES:
            self._lines_at = time.monotonic()
            for trial in trials:
                if trial.status == "running":
                    step, left = f"step {trial.step}/{trial.total}", clock(trial.seconds_left)
                    self.say(trial.name, f"{step}, validation error {percent(trial.error)}, {left} left")

    def close(self) -> None:
        """Stops drawing; the last table stays."""
        if self._live is not None:
            self._live.stop()


def table(trials: Sequence[Trial], height: int) -> Table:
    """A table of the running trials and as many others as fit into `height` lines."""
    over = [trial for trial in trials if trial.is_over]
    running = [trial for trial in trials if trial.status == "running"]
    waiting = [trial for trial in trials if trial.status == "waiting"]
    title = f"{len(over)} of {len(trials)} trials over, {len(running)} running, {len(waiting)} waiting"
    drawn = Table(title=title, title_justify="left")
    for name, justify in (("cell", "left"), ("seed", "right"), ("iteration", "right"), ("error", "right")):
        drawn.add_column(name, justify=justify)  # pyrefly: ignore
    drawn.add_column("time left", justify="right")
    room = max(_OTHER_ROWS, height - 6 - len(running))
    shown = over[-room:]
    for trial in [*shown, *running, *waiting[: room - len(shown)]]:
        result = percent(trial.error) if trial.status != "fail" else f"fail ({percent(trial.error)})"
        left = clock(trial.seconds_left) if trial.status == "running" else trial.status
        seed = str(trial.plan.recipe.seed)
        drawn.add_row(trial.cells[0].key, seed, f"{trial.step}/{trial.total}", result, left)
    return drawn


def percent(error: float | None) -> str:
    """An error as a percentage.

    >>> percent(0.0637), percent(None)
    ('6.37%', '-')
    """
    return "-" if error is None else f"{error:.2%}"
