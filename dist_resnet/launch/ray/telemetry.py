"""A run's metrics for Prometheus: observers that write its newest numbers to Ray's own metrics.

Ray's agent on every node serves them, `step` as `ray_dist_resnet_step`, each with the label `run` and a worker's also
with `rank` and `machine`. A new value may take ten seconds. A gauge is served until twenty seconds after its process
has ended; a counter, whose name ends in `_total`, as long as the node lives. docs/observability.md has the alerts and
panels.
"""

import logging
import socket
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
    WorkerSeconds,
)

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_VALUES = 1.0

STEP, WORLD_SIZE, DAMAGED = "step", "world_size", "damaged_images"
WORKER_GAUGES = {
    STEP: "Optimizer steps done.",
    WORLD_SIZE: "Workers that train together.",
    "loss": "Training loss of the newest step.",
    "top1_error": "Top-1 error of the newest step's images.",
    "validation_top1_error": "Top-1 error of the newest evaluation.",
    "validation_top5_error": "Top-5 error of the newest evaluation.",
    "images_per_second": "Images that all workers together trained on in the newest step, divided by its seconds.",
    "learning_rate": "Learning rate of the newest step.",
    DAMAGED: "Training images of the whole run that could not be decoded; 0 until these workers find one.",
}
WORKER_COUNTERS = {
    "step_seconds": "Seconds of all steps, including the wait for images.",
    "data_wait_seconds": "Seconds that steps waited for images.",
    "compute_seconds": "Seconds that the worker computed in steps.",
    "reduce_wait_seconds": "Seconds that the worker waited for the sum of all workers' gradients, with its own done.",
    "checkpoint_stall_seconds": "Seconds that training waited for a copy of its state.",
}
RUN_GAUGES = {
    "running": "1 while the driver trains, 0 once the run has finished or was stopped.",
    "workers_wanted": "The most workers that the run uses.",
    "total_steps": "Optimizer steps of the whole run.",
    "restarts": "Restarts of the workers under this driver.",
    "progress_timestamp_seconds": "When the run last took a new step or an evaluation last progressed.",
    "checkpoint_step": "Optimizer steps in the newest committed checkpoint.",
    "checkpoint_timestamp_seconds": "When a checkpoint was last committed; before the first, when the driver started.",
    "tracking_waiting_points": "Points of the journal not yet delivered to MLflow.",
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
    """Values that a thread passes to Ray every second, from `start` to `close` or within the `with` block.

    Ray drops a gauge that was not set since its last report, but alerts need the values of a hung run. So the training
    loop only stores numbers, and the thread calls Ray.
    """

    def __init__(self, gauges: dict[str, str], counters: dict[str, str], tags: dict[str, str]) -> None:
        self._gauges, self._counters = _create(Gauge, gauges, tags), _create(Counter, counters, tags)
        self.values: dict[str, float] = {}
        """Name -> a gauge's value, or a counter's total."""
        self._counted = dict.fromkeys(counters, 0.0)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="telemetry", daemon=True)

    def start(self) -> Self:
        """Passes values to Ray from now on."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Passes the last values and stops."""
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
                self._export()
            except Exception as error:
                # Metrics must never end a run.
                logger.warning("the run continues without metrics: %s: %s", type(error).__name__, error)
                return

    def _export(self) -> None:
        for name, value in list(self.values.items()):
            if name in self._gauges:
                self._gauges[name].set(value)
            elif value > self._counted[name]:  # Ray rejects an increment of zero.
                self._counters[name].inc(value - self._counted[name])
                self._counted[name] = value


class WorkerTelemetry(_Telemetry):
    """Exports the records of one worker."""

    def __init__(self, run: str, rank: int) -> None:
        tags = {"run": run, "rank": str(rank), "machine": socket.gethostname()}
        super().__init__(WORKER_GAUGES, WORKER_COUNTERS, tags)
        self._rank = rank

    def __call__(self, records: Sequence[Record]) -> None:
        """Takes records as `tracking.recorder.Recorder` makes them."""
        for record in records:
            if isinstance(record, Session):
                self.values |= {STEP: record.start_step, WORLD_SIZE: record.world_size or 1, DAMAGED: 0}
            if isinstance(record, WorkerSeconds):
                self._add("compute_seconds", record.compute_seconds[self._rank])
                self._add("reduce_wait_seconds", record.reduce_seconds[self._rank])
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
    """Exports the new records of the run's journal on the driver, which outlives its workers.

    Restarts are a gauge, not a counter: a gauge is exported as 0 before the first restart, so that Prometheus sees the
    increase.
    """

    def __init__(self, run: str, workers_wanted: int) -> None:
        super().__init__(RUN_GAUGES, {}, {"run": run})
        self._sessions, self._furthest = 0, 0
        self.values |= {"running": 1, "workers_wanted": workers_wanted, "restarts": 0, "tracking_waiting_points": 0}
        self.values |= dict.fromkeys(("progress_timestamp_seconds", "checkpoint_timestamp_seconds"), time.time())

    def __call__(self, records: Sequence[Record]) -> None:
        """Takes records as `launch.follow` passes them on."""
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
                # Steps repeated after a restart are not progress: a run that fails repeatedly makes none.
                if isinstance(record, Evaluating) or record.step > self._furthest:
                    values["progress_timestamp_seconds"] = now
                self._furthest = max(self._furthest, record.step)
            case Checkpoint():
                values |= {"checkpoint_step": record.step, "checkpoint_timestamp_seconds": now}
            case Tracking():
                values["tracking_waiting_points"] = record.waiting_points
            case Finished() | Stopped():
                values["running"] = 0


def _create(kind: type, descriptions: dict[str, str], tags: dict[str, str]) -> dict[str, Any]:
    # Ray accepts only ASCII, and a run's name may have other letters.
    tags = {key: value.encode("ascii", "backslashreplace").decode() for key, value in tags.items()}
    return {
        name: kind(f"dist_resnet_{name}", description, tuple(tags)).set_default_tags(tags)
        for name, description in descriptions.items()
    }
