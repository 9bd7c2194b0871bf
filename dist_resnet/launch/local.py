"""Runs without Ray: in this process, or in several processes of this machine."""

import contextlib
import datetime
import functools
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from dist_resnet import logs
from dist_resnet.launch import gpu
from dist_resnet.launch.plan import Plan, prepare
from dist_resnet.launch.resources import of_this_machine, settle_workers
from dist_resnet.launch.supervise import supervise
from dist_resnet.launch.worker import join_group, run_worker
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.tracking.holding import hold
from dist_resnet.train.precision import check_precision
from dist_resnet.worker import Worker


def prepare_run(recipe: Recipe, execution: Execution, *, job: str) -> Plan:
    """The plan of a run, checked, for `execution.workers` processes of this machine.

    From then on no other process may run it. Raises ValueError or FileNotFoundError, before anything starts, as
    `prepare` does.
    """
    plan = prepare(recipe, settle(execution), job=job)
    if plan.summary() is None:
        hold(plan.directory)
    return plan


def run(plan: Plan) -> dict[str, Any]:
    """Trains a prepared run to its end and returns its summary."""
    return supervise(plan, lambda: start_workers(plan))


def start_workers(plan: Plan) -> None:
    """Runs the workers of a plan to their end: one in this process, several in their own processes."""
    in_processes(plan.execution, functools.partial(run_worker, plan))


def in_processes(execution: Execution, act: Callable[[Worker], None]) -> None:
    """Calls `act`, which must be picklable, on every worker of a settled execution, and waits for all."""
    if execution.most_workers == 1:
        device = _torch_device(execution, 0)
        gpu.take(device)
        act(Worker(rank=0, world_size=1, device=device))
        return
    # Python's resource tracker unblocks SIGINT when it starts, so it must start before SIGINT is blocked.
    torch.multiprocessing.get_context("spawn").Lock()
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = Path(folder, "rendezvous").as_uri()
        with _deaf_to_ctrl_c() as hear:
            workers = torch.multiprocessing.spawn(
                _run, args=(execution, act, rendezvous), nprocs=execution.most_workers, join=False
            )
            assert workers is not None
            try:
                hear()
                while not workers.join():
                    pass
            except BaseException:
                # Otherwise this process would wait for them at its exit.
                for process in workers.processes:
                    process.terminate()
                raise


def settle(execution: Execution) -> Execution:
    """The execution with `device` and `cpus_per_worker` settled for this machine.

    Raises ValueError if the machine has too few GPUs or cores, or does not support the precision.
    """
    execution = settle_workers(execution, of_this_machine(execution), fewest=execution.most_workers)
    check_precision(execution)
    return execution


def _run(rank: int, execution: Execution, act: Callable[[Worker], None], rendezvous: str) -> None:
    world_size = execution.most_workers
    logs.configure(rank)
    signal.signal(signal.SIGINT, _end_with(os.getppid()))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    worker = Worker(rank=rank, world_size=world_size, device=_torch_device(execution, rank))
    gpu.take(worker.device)
    join_group(worker, rendezvous, timeout=datetime.timedelta(minutes=execution.recovery.hang_timeout_minutes))
    try:
        act(worker)
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[Callable[[], object]]:
    """Blocks SIGINT in processes started within the block, until they unblock it. This process handles SIGINT again
    from the block's end or a call of the yielded function, which raises a Ctrl-C that came meanwhile.

    Outside the main thread it has no effect on this process.
    """
    heard: list[tuple[Any, ...]] = []
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    handler = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    # The mask is this thread's only: the kernel gives the signal to another thread, and Python still raises it here.
    if callable(handler):
        signal.signal(signal.SIGINT, lambda *signal_and_frame: heard.append(signal_and_frame))

    def hear() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if callable(handler):
            signal.signal(signal.SIGINT, handler)
            if heard:
                handler(*heard.pop())

    try:
        yield hear
    finally:
        hear()


def _end_with(driver: int) -> Callable[[int, object], None]:
    """A worker's handler of SIGINT, which does nothing while the driver lives: Ctrl-C reaches every process of a
    terminal, and the driver handles it. When the driver dies, the kernel sends SIGINT too, and the worker ends."""

    def on_interrupt(_: int, __: object) -> None:
        if os.getppid() != driver:
            os._exit(1)

    return on_interrupt


def _torch_device(execution: Execution, rank: int) -> torch.device:
    return torch.device("cuda", rank) if execution.device == "gpu" else torch.device("cpu")
