"""What every worker process does, however it was started."""

import torch

from dist_resnet.data.loader import open_loader
from dist_resnet.launch.preparation import Plan
from dist_resnet.train.distributed import Worker
from dist_resnet.train.loop import Evaluated, train


def run_worker(plan: Plan, worker: Worker, *, evaluated: Evaluated | None = None) -> None:
    """Trains this worker's share of a planned run to its end; `evaluated` is called after each evaluation."""
    torch.set_num_threads(plan.execution.cpus_per_worker or 1)
    loader = open_loader(
        plan.recipe,
        plan.execution,
        plan.train,
        plan.validation,
        rank=worker.rank,
        world_size=worker.world_size,
        device=worker.device,
    )
    try:
        train(plan.recipe, plan.execution, worker, loader, plan.directory, evaluated=evaluated)
    finally:
        loader.close()
