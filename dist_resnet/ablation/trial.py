"""The current state of one run of a sweep, from its journal."""

from collections.abc import Sequence
from typing import Any, Literal

from dist_resnet import paper
from dist_resnet.ablation.grid import Cell
from dist_resnet.launch.pace import Pace
from dist_resnet.launch.plan import Plan
from dist_resnet.tracking.records import Diverged, Finished, Metrics, Record, Session, Stopped, TooDamaged

# `stopped`: early, because of its error. `paused`: on request, with a checkpoint.
Status = Literal["waiting", "running", "finished", "fail", "stopped", "paused", "died"]


class Trial:
    """One run of a sweep."""

    def __init__(self, plan: Plan, cells: Sequence[Cell]) -> None:
        self.plan, self.cells = plan, tuple(cells)
        self.status: Status = "waiting"
        self.error: float | None = None
        """The newest validation error, as a fraction."""
        self.total = plan.num_steps
        self._pace = Pace(plan.num_steps, plan.recipe.global_batch)

    @property
    def name(self) -> str:
        """The run's folder within the sweep's."""
        return self.plan.name

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self._pace.step

    @property
    def seconds_left(self) -> float | None:
        """The time left at the speed of the newest steps."""
        return self._pace.seconds_left

    @property
    def is_over(self) -> bool:
        """Whether the trial will not be run again by this driver."""
        return self.status not in ("waiting", "running")

    def take(self, records: Sequence[Record]) -> list[str]:
        """Adds journal records; returns the lines to print about them."""
        return [line for record in records if (line := self._take(record))]

    def _take(self, record: Record) -> str | None:
        self._pace.add(record)
        match record:
            case Session():
                self.status = "running"
                return f"resuming after step {self.step}" if self.step else f"starting on {record.device}"
            case Metrics(is_evaluation=True):
                self.error = record.values["val/top1_error"]
                return f"step {record.step}/{self.total}: validation error {self.error:.2%}"
            case Finished() | Diverged():
                self.status = "fail" if self._is_fail(record.kind) else "finished"
                return "fail: the loss is no longer finite" if isinstance(record, Diverged) else self.status
            case Stopped():
                self.status = "paused"
                return f"stopped after step {record.step}; the same command resumes there"
            case TooDamaged():
                self.status = "died"
                return record.reason
        return None

    def recall(self, records: Sequence[Record]) -> None:
        """Adds the records of earlier drivers; the trial then waits to be started by this one."""
        self.take(records)
        self.status = "waiting"
        self._pace.pause()

    def sum_up(self, summary: dict[str, Any]) -> None:
        """Takes the result from the summary of an earlier driver."""
        self._pace.step, self.error = summary["steps"], summary["top1_error"]
        stopped = summary["status"] == Stopped.kind
        self.status = "stopped" if stopped else "fail" if self._is_fail(summary["status"]) else "finished"

    def _is_fail(self, status: str) -> bool:
        """Whether a run that ended with this status is a "fail" of Table 1: diverged, or above 20 % error on CIFAR-10.

        CIFAR-100's published errors are above 20 % themselves, and the errors of shortened runs say nothing.
        """
        counts = self.plan.recipe.data.dataset == "cifar10" and self.total >= paper.CIFAR_ITERATIONS
        error = self.error
        return status == Diverged.kind or (counts and error is not None and 100 * error > paper.FAIL_ABOVE)
