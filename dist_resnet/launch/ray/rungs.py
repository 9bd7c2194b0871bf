"""Early stopping of a sweep's trials by successive halving, with decisions that do not depend on timing.

As in ASHA (arXiv:1810.05934) a trial that reaches a rung, a number of steps, is stopped unless its error is in the
better quarter of the errors before it. In ASHA these are the errors of the trials that arrived earlier. Here they are
those of the trials before it in the sweep, so a sweep that was killed and resumed stops the same trials as an
undisturbed one. A trial that is ahead of those continues, and is judged once they have reached the rung.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from dist_resnet.launch.plan import Plan
from dist_resnet.tracking.journal import history, read_journal
from dist_resnet.tracking.records import FINAL_ENDINGS
from dist_resnet.tracking.run_directory import SUMMARY_FILE

_REDUCTION_FACTOR = 4
# The first rung, as a fraction of the run: earlier errors predict little.
_FIRST_RUNG = 1 / 8


class Rungs:
    """The errors of trials at each rung, and the trials to stop."""

    def __init__(self, groups: Iterable[Sequence[str]], num_steps: int) -> None:
        """`groups`: names of the trials that are compared with each other, in the sweep's order. `num_steps`: of a
        complete run."""
        self._groups = [tuple(names) for names in groups]
        self.num_steps = num_steps
        step = max(1, int(num_steps * _FIRST_RUNG))
        self._errors: dict[int, dict[str, float]] = {}
        while step < num_steps:
            self._errors[step] = {}
            step *= _REDUCTION_FACTOR
        self._left: set[str] = set()

    @property
    def order(self) -> list[str]:
        """The names of all trials, in the sweep's order within each group."""
        return [name for names in self._groups for name in names]

    def record(self, name: str, step: int, error: float) -> None:
        """Records an evaluation; at each rung a trial's first one at or after it counts."""
        for milestone, errors in self._errors.items():
            if step >= milestone:
                errors.setdefault(name, error)

    def leave(self, name: str) -> None:
        """Stops waiting for evaluations of a trial."""
        self._left.add(name)

    def join(self, name: str) -> None:
        """Waits for evaluations of a trial again, after it had left."""
        self._left.discard(name)

    def stopped(self) -> set[str]:
        """The trials to stop, as far as this is decided."""
        return {name for names in self._groups for name in self._stopped(names)}

    def _stopped(self, candidates: Sequence[str]) -> set[str]:
        stopped: set[str] = set()
        for errors in self._errors.values():
            earlier: list[float] = []
            survivors = []
            for name in candidates:
                if name in errors:
                    is_behind = bool(earlier) and errors[name] > np.percentile(earlier, 100 / _REDUCTION_FACTOR)
                    stopped.update([name] if is_behind else [])
                    survivors += [] if is_behind else [name]
                    earlier.append(errors[name])
                elif name not in self._left:
                    break  # the trials after it are judged once it has reached the rung
            candidates = survivors
        return stopped


def rebuild(plans: Sequence[Plan]) -> Rungs:
    """The rungs of a sweep, from its journals; `plans` are all of its trials, including those that have ended.

    Trials of one depth on one data set are compared, as in the report.
    """
    groups: dict[tuple[str, int], list[str]] = {}
    for plan in plans:
        groups.setdefault((plan.recipe.data.dataset, plan.recipe.model.depth), []).append(plan.name)
    rungs = Rungs(groups.values(), max(plan.num_steps for plan in plans))
    for plan in plans:
        records = read_journal(plan.directory)
        for step, _, error in history(records).get("val/top1_error", []):
            rungs.record(plan.name, step, error)
        if plan.directory.exists(SUMMARY_FILE) or (records and isinstance(records[-1], FINAL_ENDINGS)):
            rungs.leave(plan.name)
    return rungs
