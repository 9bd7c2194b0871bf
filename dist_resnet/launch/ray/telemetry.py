"""What a run on Ray tells Prometheus: observers that keep its newest numbers in Ray's own metrics.

Ray's agent on every node serves them, a name such as `step` as `ray_dist_resnet_step`, each with the labels `run` and,
of a worker, `rank`. Ten seconds may pass before it has a new value. A gauge is served as long as its process lives and
twenty seconds more; a counter, with `_total` behind its name, as long as the node. docs/observability.md has the
alerts and panels that are made of them.
"""

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any, Self

from ray.util.metrics import Counter, Gauge

from dist_resnet.tracking.records import (
    Checkpoint,
    Evaluating,
    Finished,
    Metrics,
    Record,
    Session,
    Stopped,
    Tracking,
)

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_VALUES = 1.0

STEP, WORLD_SIZE, DAMAGED = "step", "world_size", "damaged_images"
WORKER_GAUGES = {
    STEP: "Optimizer steps done.",
    WORLD_SIZE: "Workers that train together.",
    "loss": "Training loss of the newest step.",
    "top1_error": "Share of the newest step's images that were taken for another class.",
    "validation_top1_error": "Top-1 error of the newest evaluation.",
    "validation_top5_error": "Top-5 error of the newest evaluation.",
    "images_per_second": "Images that all workers together trained on in the newest step, over its seconds.",
    "learning_rate": "Learning rate of the newest step.",
    DAMAGED: "Training images of the whole run that could not be decoded; 0 till these workers meet one.",
}
WORKER_COUNTERS = {
    "step_seconds": "Seconds of all steps, those of waiting for images among them.",
    "data_wait_seconds": "Seconds that steps waited for images.",
    "checkpoint_stall_seconds": "Seconds that training stood still for a copy of its state.",
}
RUN_GAUGES = {
    "running": "1 while the driver trains, 0 once the run has finished or was stopped.",
    "workers_wanted": "Workers that the run takes where the cluster has them.",
    "total_steps": "Optimizer steps of the whole run.",
    "restarts": "Starts of the workers after their first under this driver.",
    "progress_timestamp_seconds": "When a step was last taken for the first time, or an evaluation was seen to go on.",
    "checkpoint_step": "Optimizer steps in the newest committed checkpoint.",
    "checkpoint_timestamp_seconds": "When a checkpoint was last committed, or else the driver started.",
    "tracking_waiting_points": "Points of the journal that MLflow has not taken.",
}
_KEYS = {
    "train/loss": "loss",
    "train/top1_error": "top1_error",
    "val/top1_error": "validation_top1_error",
    "val/top5_error": "validation_top5_error",
    "throughput/images_per_second": "images_per_second",
    "schedule/learning_rate": "learning_rate",
    "data/damaged_images": DAMAGED,
    "time/step_seconds": "step_seconds",
    "time/data_seconds": "data_wait_seconds",
    "time/checkpoint_seconds": "checkpoint_stall_seconds",
}


class _Telemetry:
    """Values that a thread hands to Ray every second, from `start` to `close` or within the `with` block.

    Ray drops a gauge that nobody has set since its last report, and what stands still is what alerts are about. So the
    training loop only writes numbers down and calls nothing of Ray's.
    """

    def __init__(self, gauges: dict[str, str], counters: dict[str, str], tags: dict[str, str]) -> None:
        self._gauges, self._counters = _made(Gauge, gauges, tags), _made(Counter, counters, tags)
        self.values: dict[str, float] = {}
        """By name: of a gauge its value, of a counter all that was added."""
        self._counted = dict.fromkeys(counters, 0.0)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="telemetry", daemon=True)

    def start(self) -> Self:
        """Hands values over from now on."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Hands over the last values and no more."""
        self._over.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add(self, name: str, value: float) -> None:
        self.values[name] = self.values.get(name, 0.0) + value

    def _work(self) -> None:
        last = False
        while not last:
            last = self._over.wait(_SECONDS_BETWEEN_VALUES)
            try:
                self._hand_over()
            except Exception as error:
                # Nothing that only looks at a run may end it.
                logger.warning("the run goes on without metrics: %s: %s", type(error).__name__, error)
                return

    def _hand_over(self) -> None:
        for name, value in list(self.values.items()):
            if name in self._gauges:
                self._gauges[name].set(value)
            elif value > self._counted[name]:  # Ray counts no zeros.
                self._counters[name].inc(value - self._counted[name])
                self._counted[name] = value


class WorkerTelemetry(_Telemetry):
    """Observes the records of one worker."""

    def __init__(self, run: str, rank: int) -> None:
        super().__init__(WORKER_GAUGES, WORKER_COUNTERS, {"run": run, "rank": str(rank)})

    def __call__(self, records: Sequence[Record]) -> None:
        """Takes in records as `tracking.recorder.Recorder` makes them."""
        for record in records:
            if isinstance(record, Session):
                self.values |= {STEP: record.start_step, WORLD_SIZE: record.world_size or 1, DAMAGED: 0}
            if not isinstance(record, Metrics):
                continue
            self.values[STEP] = record.step
            for key, value in record.values.items():
                name = _KEYS.get(key)
                if name in WORKER_GAUGES:
                    self.values[name] = value
                elif name in WORKER_COUNTERS:
                    self._add(name, value)


class RunTelemetry(_Telemetry):
    """Observes on the driver, which outlives its workers, the new records of the run's journal.

    Restarts are a gauge and not a counter: it is there, at 0, before the first one, as Prometheus needs it to see an
    increase.
    """

    def __init__(self, run: str, workers_wanted: int) -> None:
        super().__init__(RUN_GAUGES, {}, {"run": run})
        self._sessions, self._furthest = 0, 0
        self.values |= {"running": 1, "workers_wanted": workers_wanted, "restarts": 0, "tracking_waiting_points": 0}
        self.values |= dict.fromkeys(("progress_timestamp_seconds", "checkpoint_timestamp_seconds"), time.time())

    def __call__(self, records: Sequence[Record]) -> None:
        """Takes in records as `launch.follow` passes them on."""
        for record in records:
            self._take(record)

    def _take(self, record: Record) -> None:
        values, now = self.values, time.time()
        match record:
            case Session():
                self._sessions += 1
                self._furthest = max(self._furthest, record.start_step)
                values["restarts"] = self._sessions - 1
                values["total_steps"] = record.total_steps or 0
                values["checkpoint_step"] = record.start_step
            case Evaluating() | Metrics():
                # Steps that are done again after a restart are no progress: a run that always fails makes none.
                if isinstance(record, Evaluating) or record.step > self._furthest:
                    values["progress_timestamp_seconds"] = now
                self._furthest = max(self._furthest, record.step)
            case Checkpoint():
                values |= {"checkpoint_step": record.step, "checkpoint_timestamp_seconds": now}
            case Tracking():
                values["tracking_waiting_points"] = record.waiting_points
            case Finished() | Stopped():
                values["running"] = 0


def _made(kind: type, descriptions: dict[str, str], tags: dict[str, str]) -> dict[str, Any]:
    # Ray takes no other letters, and a run's name may have them.
    tags = {key: value.encode("ascii", "backslashreplace").decode() for key, value in tags.items()}
    return {
        name: kind(f"dist_resnet_{name}", description, tuple(tags)).set_default_tags(tags)
        for name, description in descriptions.items()
    }
