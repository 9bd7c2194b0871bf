"""What all workers decide together every few seconds, so that each acts after the same step."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dist_resnet.worker import Worker

logger = logging.getLogger(__name__)

# Of short steps: a decision costs about a millisecond, and steps may grow longer.
_MOST_STEPS_BETWEEN_DECISIONS = 100


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Seconds between what the workers decide together."""

    decisions: float = 1.0
    """How long, about, a wish to save or to stop waits to be heard."""
    questions: float = 5.0
    """Asking whether machines are about to go costs a call to another process."""
    last_saves: float = 10.0
    """When a machine goes, between a notice and the end, is told by nobody: what is lost is kept small."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What every worker does after the step just taken."""

    save: bool = False
    stop: bool = False


class Agreement:
    """Turns clocks and signals, which no two workers see alike, into decisions that all of them share.

    `stop` is asked on rank 0. `warned`, whether machines of the run are about to be taken away, is asked on every
    worker at once and must say the same on all.
    """

    def __init__(
        self,
        worker: Worker,
        *,
        save_every_seconds: float,
        stop: Callable[[], bool],
        warned: Callable[[], bool],
        intervals: Intervals = Intervals(),
    ) -> None:
        self._intervals = intervals
        self._worker, self._save_every_seconds = worker, save_every_seconds
        self._stop, self._warned = stop, warned
        self._asked_at = time.monotonic()
        self._was_warned = False
        self._saved_at = time.monotonic()
        self._since = time.monotonic()
        # Every decision may at most double the steps till the next, so that a first short step does not mislead.
        self._steps, self._due = 0, 1

    def after_step(self) -> Decision:
        """What to do now. Every worker calls it after each step; every so many steps it is a collective."""
        self._steps += 1
        if self._steps < self._due:
            return Decision()
        now = time.monotonic()
        leads = self._worker.rank == 0
        wishes = (
            leads and now - self._saved_at >= self._seconds_between_saves(),
            leads and self._stop(),
            leads and not self._was_warned and now - self._asked_at >= self._intervals.questions,
            # Rank 0's clock decides, on all workers, how many steps pass till the next decision.
            leads and self._steps * self._intervals.decisions / max(now - self._since, 1e-6),
        )
        due = torch.tensor(wishes, dtype=torch.float64, device=self._worker.device)
        save, stop, ask, steps = self._worker.sum(due).tolist()
        most = min(2 * self._due, _MOST_STEPS_BETWEEN_DECISIONS)
        self._steps, self._since, self._due = 0, now, min(max(1, int(steps)), most)
        if ask:
            self._asked_at = now
            self._was_warned = self._warned()
            if self._was_warned and leads:
                logger.warning("machines of this run are about to be taken away: saving now and till the end")
        return Decision(save=bool(save) or (bool(ask) and self._was_warned), stop=bool(stop))

    def _seconds_between_saves(self) -> float:
        return (
            min(self._save_every_seconds, self._intervals.last_saves) if self._was_warned else self._save_every_seconds
        )

    def saved(self) -> None:
        """The time to the next timed checkpoint counts from now."""
        self._saved_at = time.monotonic()
