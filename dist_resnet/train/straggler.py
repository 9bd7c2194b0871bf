"""Finds the worker that all others wait for."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from dist_resnet.tracking.records import Straggler, WorkerSeconds

# A worker that costs the run less is not named; once named, it has to become clearly better, so that no line repeats.
_NAMED_ABOVE, _CLEARED_BELOW = 0.10, 0.05
# One slow step spoils one window; a straggler is the slowest in all of these.
_WINDOWS = 3
_FEWEST_STEPS = 10


class StragglerWatch:
    """Names a worker that holds the run back, once, and says once when it no longer does.

    Compares windows of at least `seconds` and ten steps. A worker's own time is what it waits for images and computes.
    If it has the longest, it costs the run the part of a step by which that exceeds what the same work would take the
    others, in the median. `work` is the number of ghost batches that each rank has in a step.
    """

    def __init__(self, machines: Sequence[str], work: Sequence[int], *, seconds: float) -> None:
        self._machines, self._seconds, self._work = machines, seconds, np.array(work)[:, None]
        self._windows: deque[tuple[int, np.ndarray]] = deque(maxlen=_WINDOWS)
        self._steps, self._sums = 0, np.zeros((len(machines), 3))
        self._named: int | None = None

    def add(self, block: WorkerSeconds) -> Straggler | None:
        """What has changed with these steps, if anything."""
        self._steps += block.steps
        self._sums = self._sums + np.array([block.data_seconds, block.compute_seconds, block.reduce_seconds]).T
        if len(self._machines) < 2 or self._steps < _FEWEST_STEPS or self._sums.sum(axis=1).max() < self._seconds:
            return None
        self._windows.append((self._steps, self._sums))
        self._steps, self._sums = 0, np.zeros_like(self._sums)
        found = {self._slow_rank(sums) for _, sums in self._windows}
        if len(self._windows) < _WINDOWS or len(found) > 1 or found == {self._named}:
            return None
        earlier, self._named = self._named, found.pop()
        return self._over(block.step, earlier) if self._named is None else self._finding(block.step, self._named)

    def _slow_rank(self, sums: np.ndarray) -> int | None:
        """The rank that holds these steps back, if one does."""
        rank = int(sums[:, :2].sum(axis=1).argmax())
        return rank if self._cost(sums, rank) > (_CLEARED_BELOW if rank == self._named else _NAMED_ABOVE) else None

    def _cost(self, sums: np.ndarray, rank: int) -> float:
        """The part of the run's time that the rank costs."""
        return float((sums[rank, :2] - self._of_others(sums, rank)).sum() / sums[rank].sum())

    def _of_others(self, sums: np.ndarray, rank: int) -> np.ndarray:
        """What the rank's work would take the others: waiting for images and computing."""
        others = np.delete(sums[:, :2] / self._work, rank, axis=0)
        return self._work[rank] * np.median(others, axis=0)

    def _finding(self, step: int, rank: int) -> Straggler:
        steps = sum(steps for steps, _ in self._windows)
        sums = np.sum([sums for _, sums in self._windows], axis=0)
        others = self._of_others(sums, rank)
        part = int((sums[rank, :2] - others).argmax())
        return Straggler(
            step=step,
            rank=rank,
            machine=self._machines[rank],
            fraction=self._cost(sums, rank),
            reason=("images", "computing")[part],
            seconds_per_step=float(sums[rank, part]) / steps,
            others_seconds_per_step=float(others[part]) / steps,
        )

    def _over(self, step: int, rank: int | None) -> Straggler:
        assert rank is not None
        return Straggler(step=step, rank=rank, machine=self._machines[rank])
