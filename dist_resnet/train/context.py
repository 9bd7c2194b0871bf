"""Everything that the parts of the training loop share on one worker."""

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
    """The run that a worker trains, and the callbacks for its progress."""

    recipe: Recipe
    execution: Execution
    worker: Worker
    directory: RunDirectory
    watchdog: Watchdog
    """Notified of every step and of every attempt to reach the storage."""
    evaluated: Evaluated | None = None
    """Called with the step and the metrics after each evaluation is recorded."""
    warned: Callable[[], bool] = lambda: False
    """Whether machines are about to be taken away; then a checkpoint is saved at once. All workers call it together and
    must get the same answer."""
    observer: Observer = nobody
    """Called with every record of this worker, whatever its rank."""
    intervals: Intervals = field(default_factory=Intervals)
    """How often the workers decide together."""

    @property
    def patience_seconds(self) -> float:
        """Seconds that the storage may fail."""
        return self.execution.recovery.storage_seconds

    def patiently(self, action: Callable[[], T], complaint: str) -> T:
        """The result of `action`, retried while the storage fails.

        `complaint` completes the warning about the run's directory, such as "cannot be read". Raises OSError once the
        storage has failed for too long.
        """
        return patiently(
            action,
            what=f"the run's directory {self.directory.uri} {complaint}",
            seconds=self.patience_seconds,
            alive=self.watchdog.alive,
        )
