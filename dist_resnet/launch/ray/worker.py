"""What Ray Train runs on every worker.

A worker imports this module when it starts, and all it imports here is waited for after each failure; what only the
driver needs (MLflow, matplotlib) stays out of it.
"""

from typing import Any

import ray.train
from ray.train.torch import get_device

from dist_resnet import logs
from dist_resnet.launch.ray.spares import keep_spares
from dist_resnet.launch.ray.telemetry import WorkerTelemetry
from dist_resnet.launch.worker import run_worker
from dist_resnet.worker import Worker


def run(config: dict[str, Any]) -> None:
    """A worker's whole life; `config` holds the `plan`."""
    plan, context = config["plan"], ray.train.get_context()
    worker = Worker(rank=context.get_world_rank(), world_size=context.get_world_size(), device=get_device())
    logs.configure(worker.rank)
    if plan.execution.recovery.spare_processes:
        keep_spares()
    with WorkerTelemetry(plan.name, worker.rank) as telemetry:
        run_worker(plan, worker, warned=lambda: ray.train.get_preemption_info() is not None, observer=telemetry)
