"""The work of every worker process, with Ray or without."""

import datetime
import threading
from collections.abc import Callable

import torch
import torch.distributed as dist

from dist_resnet.data.input.decoders import InputOptions
from dist_resnet.data.loader import EvaluationImages, TrainingImages
from dist_resnet.launch.plan import Plan
from dist_resnet.tracking.observer import Observer, nobody
from dist_resnet.train.context import Evaluated, RunContext
from dist_resnet.train.loop import train
from dist_resnet.train.watchdog import Watchdog
from dist_resnet.worker import Worker


def run_worker(
    plan: Plan,
    worker: Worker,
    *,
    evaluated: Evaluated | None = None,
    warned: Callable[[], bool] = lambda: False,
    observer: Observer = nobody,
) -> None:
    """Trains this worker's share of a planned run to its end; `RunContext` describes the arguments."""
    torch.set_num_threads(plan.execution.cpus_per_worker or 1)
    with Watchdog(plan.execution.recovery.hang_seconds) as watchdog:
        context = RunContext(
            recipe=plan.recipe,
            execution=plan.execution,
            worker=worker,
            directory=plan.directory,
            watchdog=watchdog,
            evaluated=evaluated,
            warned=warned,
            observer=observer,
        )
        _train(context, plan)


def join_group(worker: Worker, rendezvous: str, *, timeout: datetime.timedelta) -> None:
    """Joins the process group of a worker of this machine: NCCL's, with the worker's GPU for all it does, or gloo's."""
    on_gpu = worker.device.type == "cuda"
    if on_gpu:
        # Otherwise every rank's lists of objects, and whatever names no GPU, would go to the first one.
        torch.cuda.set_device(worker.device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=rendezvous,
        rank=worker.rank,
        world_size=worker.world_size,
        timeout=timeout,
        device_id=worker.device if on_gpu else None,
    )


def _train(context: RunContext, plan: Plan) -> None:
    closing = threading.Event()

    def alive() -> None:
        if not closing.is_set():  # at the end a failing store must not extend the time limit
            # As at the start: a store that fails then must not shorten the time for the first step.
            context.watchdog.alive(starting=True)

    options = InputOptions.of(plan.execution, alive)
    training = TrainingImages(plan.recipe, plan.train, context.worker, options)
    validation = EvaluationImages(plan.recipe, plan.validation, context.worker, options)
    try:
        train(context, training, validation)
    finally:
        closing.set()
        context.watchdog.alive()
        training.close()
        validation.close()
