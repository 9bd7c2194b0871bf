"""Decisions that all workers make together every few seconds, so that each acts after the same step."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dist_resnet.worker import Worker

logger = logging.getLogger(__name__)

# Limits the delay if short steps become longer; a decision costs about a millisecond.
_MOST_STEPS_BETWEEN_DECISIONS = 100


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Seconds between what the workers find out and decide together."""

    decisions: float = 1.0
    """Between decisions: about the delay of a save or a stop."""
    preemption_checks: float = 5.0
    """Between checks for machines about to be taken away, each a call to another process."""
    preemption_saves: float = 10.0
    """Between checkpoints after such a notice: nobody knows when the machine goes, so little work may be lost."""
    comparisons: float = 10.0
    """At least these of step time between comparisons of the workers' seconds; three name a straggler."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What every worker does after the last step."""

    save: bool = False
    stop: bool = False


class Agreement:
    """Turns clocks and signals, which differ between workers, into decisions that all workers share.

    `stop` is called on rank 0 only. `warned`, whether machines of the run are about to be taken away, is called on all
    workers together and must return the same on all. `clock` returns seconds.
    """

    def __init__(
        self,
        worker: Worker,
        *,
        save_every_seconds: float,
        stop: Callable[[], bool],
        warned: Callable[[], bool],
        intervals: Intervals = Intervals(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._intervals, self._clock = intervals, clock
        self._worker, self._save_every_seconds = worker, save_every_seconds
        self._stop, self._warned = stop, warned
        self._was_warned = False
        self._checked_at = self._saved_at = self._decided_at = clock()
        # A decision at most doubles the steps until the next one, so that one short step does not mislead.
        self._steps, self._due = 0, 1

    def after_step(self) -> Decision:
        """The decision after this step. Every worker calls it after each step; some calls are collectives."""
        self._steps += 1
        if self._steps < self._due:
            return Decision()
        now = self._clock()
        leads = self._worker.rank == 0
        votes = (
            leads and now - self._saved_at >= self._seconds_between_saves(),
            leads and self._stop(),
            leads and not self._was_warned and now - self._checked_at >= self._intervals.preemption_checks,
            # Rank 0's clock decides for all workers how many steps pass until the next decision.
            leads and self._steps * self._intervals.decisions / max(now - self._decided_at, 1e-6),
        )
        summed = self._worker.sum(torch.tensor(votes, dtype=torch.float64, device=self._worker.device))
        save, stop, check, steps = summed.tolist()
        most = min(2 * self._due, _MOST_STEPS_BETWEEN_DECISIONS)
        self._steps, self._decided_at, self._due = 0, now, min(max(1, int(steps)), most)
        if check:
            self._checked_at = now
            self._was_warned = self._warned()
            if self._was_warned and leads:
                logger.warning("machines of this run are about to be taken away: saving often from now on")
        return Decision(save=bool(save) or (bool(check) and self._was_warned), stop=bool(stop))

    def _seconds_between_saves(self) -> float:
        seconds = self._save_every_seconds
        return min(seconds, self._intervals.preemption_saves) if self._was_warned else seconds

    def saved(self) -> None:
        """Restarts the time until the next timed checkpoint."""
        self._saved_at = self._clock()
