"""What a run on Ray tells Prometheus: observers that keep its newest numbers in Ray's own metrics.

Ray's agent on every node serves them, a name such as `step` as `ray_dist_resnet_step`, each with the labels `run` and,
of a worker, `rank`. Ten seconds may pass before it has a new value. A gauge is served as long as its process lives and
twenty seconds more; a counter, with `_total` behind its name, as long as the node. docs/observability.md has the
alerts and panels that are made of them.
"""

import time
from typing import Any

from ray.util.metrics import Counter, Gauge

STEP, WORLD_SIZE = "step", "world_size"
WORKER_GAUGES = {
    STEP: "Optimizer steps done.",
    WORLD_SIZE: "Workers that train together.",
    "loss": "Training loss of the newest step.",
    "top1_error": "Share of the newest step's pictures that were taken for another class.",
    "validation_top1_error": "Top-1 error of the newest evaluation.",
    "validation_top5_error": "Top-5 error of the newest evaluation.",
    "images_per_second": "Pictures that all workers together trained on in the newest step, over its seconds.",
    "learning_rate": "Learning rate of the newest step.",
    "damaged_pictures": "Training pictures that could not be decoded, so far.",
}
WORKER_COUNTERS = {
    "step_seconds": "Seconds of all steps, those of waiting for pictures among them.",
    "data_wait_seconds": "Seconds that steps waited for pictures.",
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
    "data/damaged_pictures": "damaged_pictures",
    "time/step_seconds": "step_seconds",
    "time/data_seconds": "data_wait_seconds",
    "time/checkpoint_seconds": "checkpoint_stall_seconds",
}


class WorkerTelemetry:
    """Observes the records of one worker."""

    def __init__(self, run: str, rank: int) -> None:
        tags = {"run": run, "rank": str(rank)}
        self._gauges = _made(Gauge, WORKER_GAUGES, tags)
        self._counters = _made(Counter, WORKER_COUNTERS, tags)

    def __call__(self, kind: str, fields: dict[str, Any]) -> None:
        """Takes in a record as `tracking.run.Run` makes it."""
        if kind == "session":
            self._gauges[STEP].set(fields["start_step"])
            self._gauges[WORLD_SIZE].set(fields["world_size"])
        elif kind == "metrics":
            self._gauges[STEP].set(fields["step"])
            for key, value in fields["values"].items():
                name = _KEYS.get(key, "")
                if name in self._gauges:
                    self._gauges[name].set(value)
                elif name in self._counters and value > 0:  # Ray counts no zeros.
                    self._counters[name].inc(value)


class RunTelemetry:
    """Observes on the driver, which outlives its workers, the new records of the run's journal.

    Restarts are a gauge and not a counter: it is there, at 0, before the first one, as Prometheus needs it to see an
    increase.
    """

    def __init__(self, run: str, workers_wanted: int) -> None:
        self._gauges = _made(Gauge, RUN_GAUGES, {"run": run})
        self._sessions, self._furthest = 0, 0
        started = time.time()
        for name in ("progress_timestamp_seconds", "checkpoint_timestamp_seconds"):
            self._gauges[name].set(started)
        self._gauges["running"].set(1)
        self._gauges["workers_wanted"].set(workers_wanted)
        self._gauges["restarts"].set(0)

    def __call__(self, kind: str, fields: dict[str, Any]) -> None:
        """Takes in a record as `supervise` passes it on."""
        gauges, now = self._gauges, time.time()
        if kind == "session":
            self._sessions += 1
            self._furthest = max(self._furthest, fields["start_step"])
            gauges["restarts"].set(self._sessions - 1)
            gauges["total_steps"].set(fields["total_steps"])
            gauges["checkpoint_step"].set(fields["start_step"])
        elif kind == "evaluating" or (kind == "metrics" and fields["step"] > self._furthest):
            # Steps that are done again after a restart are no progress: a run that always fails makes none.
            self._furthest = max(self._furthest, fields["step"])
            gauges["progress_timestamp_seconds"].set(now)
        elif kind == "checkpoint":
            gauges["checkpoint_step"].set(fields["step"])
            gauges["checkpoint_timestamp_seconds"].set(now)
        elif kind == "tracking":
            gauges["tracking_waiting_points"].set(fields["waiting_points"])
        elif kind in ("finished", "stopped"):
            gauges["running"].set(0)


def exported(name: str) -> str:
    """The name under which Prometheus knows a metric of this module."""
    return f"ray_dist_resnet_{name}{'_total' if name in WORKER_COUNTERS else ''}"


def _made(kind: type, descriptions: dict[str, str], tags: dict[str, str]) -> dict[str, Any]:
    return {
        name: kind(f"dist_resnet_{name}", description, tuple(tags)).set_default_tags(tags)
        for name, description in descriptions.items()
    }
