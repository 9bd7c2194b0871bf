"""What travels together through the training of a run on one worker."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from dist_resnet.recipe import Execution, Recipe
from dist_resnet.storage.patience import patiently
from dist_resnet.tracking.observer import Observer, nobody
from dist_resnet.tracking.run_directory import RunDirectory
from dist_resnet.train.agreement import Intervals
from dist_resnet.train.watchdog import Watchdog
from dist_resnet.worker import Worker

T = TypeVar("T")
Evaluated = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The run that a worker trains, and who hears of it."""

    recipe: Recipe
    execution: Execution
    worker: Worker
    directory: RunDirectory
    watchdog: Watchdog
    """Hears of every step and of every try to reach the storage."""
    evaluated: Evaluated | None = None
    """Called with the step and the metrics after each evaluation is recorded."""
    warned: Callable[[], bool] = lambda: False
    """Whether machines are about to be taken away, the same on every worker, which call it together; a checkpoint is
    made at once then."""
    observer: Observer = nobody
    """Told of every record of this worker, whatever its rank."""
    intervals: Intervals = field(default_factory=Intervals)
    """How often the workers decide together."""

    @property
    def patience_seconds(self) -> float:
        """How long the storage may fail."""
        return self.execution.recovery.storage_seconds

    def patiently(self, action: Callable[[], T], complaint: str) -> T:
        """What `action` returns, tried again while the storage fails it; `complaint`: what the run's directory then
        cannot be, such as "cannot be read". Raises OSError once it has failed for too long."""
        return patiently(
            action,
            what=f"the run's directory {self.directory.uri} {complaint}",
            seconds=self.patience_seconds,
            alive=self.watchdog.alive,
        )
