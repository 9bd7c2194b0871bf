"""The function that Ray Train runs on every worker.

A worker imports this module at its start, so every import here delays each recovery; what only the driver needs
(MLflow, matplotlib) is not imported.
"""

from typing import Any

import ray.train
from ray.train.torch import get_device

from dist_resnet import logs
from dist_resnet.launch import gpu
from dist_resnet.launch.ray.spares import keep_spares
from dist_resnet.launch.ray.telemetry import WorkerTelemetry
from dist_resnet.launch.worker import run_worker
from dist_resnet.worker import Worker


def run(config: dict[str, Any]) -> None:
    """Trains a worker's share of the run from start to end; `config` holds the `plan`."""
    plan, context = config["plan"], ray.train.get_context()
    worker = Worker(rank=context.get_world_rank(), world_size=context.get_world_size(), device=get_device())
    logs.configure(worker.rank)
    gpu.take(worker.device)
    if plan.execution.recovery.spare_processes:
        keep_spares()
    with WorkerTelemetry(plan.name, worker.rank) as telemetry:
        run_worker(plan, worker, warned=lambda: ray.train.get_preemption_info() is not None, observer=telemetry)
