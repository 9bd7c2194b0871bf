"""What every worker process does, however it was started."""

import threading
from collections.abc import Callable

import torch

from dist_resnet.data.loader import open_loader
from dist_resnet.launch.plan import Plan
from dist_resnet.tracking.observer import Observer, nobody
from dist_resnet.train.loop import Evaluated, train
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
    """Trains this worker's share of a planned run to its end; what is called meanwhile is as `train` says."""
    torch.set_num_threads(plan.execution.cpus_per_worker or 1)
    with Watchdog(60 * plan.execution.hang_minutes) as watchdog:
        watchdog.alive(starting=True)
        _train(plan, worker, watchdog, evaluated, warned, observer)


def _train(
    plan: Plan,
    worker: Worker,
    watchdog: Watchdog,
    evaluated: Evaluated | None,
    warned: Callable[[], bool],
    observer: Observer,
) -> None:
    closing = threading.Event()

    def alive() -> None:
        if not closing.is_set():  # the end waits for no store longer than for anything else
            # As while starting: a store that fails just then must not shorten the time for the first step.
            watchdog.alive(starting=True)

    loader = open_loader(
        plan.recipe,
        plan.execution,
        plan.train,
        plan.validation,
        rank=worker.rank,
        world_size=worker.world_size,
        device=worker.device,
        alive=alive,
    )
    try:
        train(
            plan.recipe,
            plan.execution,
            worker,
            loader,
            plan.directory,
            evaluated=evaluated,
            warned=warned,
            observer=observer,
        )
    finally:
        closing.set()
        watchdog.alive()
        loader.close()
