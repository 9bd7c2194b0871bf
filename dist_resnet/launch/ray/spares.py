"""Idle processes kept ready for the next workers, so that after a failure none waits for Python to start.

A Ray actor takes an idle, never used process of its job on its machine if there is one, and otherwise a new one, which
starts and then imports torch: seconds on few cores, most of a recovery's time.
"""

import contextlib
import logging
import os
import threading

import psutil
import ray
import ray.train

from dist_resnet.launch.ray.internals import prestart

logger = logging.getLogger(__name__)

# A run that has just started has little to repeat and needs all its cores.
_SECONDS_BEFORE_SPARES = 60.0


def keep_spares() -> None:
    """Soon starts an idle process on this machine for the successor of each of its workers; called in every worker.

    Without spares a run only resumes later, so a failure here is only logged. Spares import what a worker needs if
    RAY_preload_python_modules names `dist_resnet.launch.ray.preload`.
    """
    context = ray.train.get_context()
    if context.get_local_rank() == 0:
        # One more for Ray Train's actor that synchronizes the workers, mostly on the machine of the first of them.
        count = context.get_local_world_size() + (context.get_world_rank() == 0)
        timer = threading.Timer(_SECONDS_BEFORE_SPARES, _start, args=(count,))
        timer.name, timer.daemon = "spares", True
        timer.start()


def _start(count: int) -> None:
    try:
        missing = count - len(idle_processes())
        if missing > 0:
            prestart(missing)
    except Exception as error:  # Ray's private interface may change
        logger.info("no spare processes, so a run resumes more slowly after a failure: %s", error)


def idle_processes() -> list[int]:
    """The process ids of this machine's spares that this process's successors could use."""
    ours = {name: os.environ.get(name) for name in ("RAY_JOB_ID", *ray.get_runtime_context().runtime_env.env_vars())}
    found = []
    for process in psutil.Process(os.getppid()).children():
        # A process may end meanwhile.
        with contextlib.suppress(psutil.Error):
            if "ray::IDLE" in " ".join(process.cmdline()) and ours.items() <= process.environ().items():
                found.append(process.pid)
    return found
