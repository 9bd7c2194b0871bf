"""Processes kept ready beside the workers, so that after a failure nobody waits for Python to start.

An actor of Ray's takes an idle process of its job on its machine where there is one that has never worked, and else a
new one, which starts and then imports torch: seconds on few cores, the greater part of a recovery.
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

# A run that has only just begun has little to repeat, and none of its cores to spare.
_SECONDS_BEFORE_SPARES = 60.0


def keep_spares() -> None:
    """Soon has an idle process on this machine for the successor of each of its workers; called in every worker.

    Without them a run only takes longer to go on, so what goes wrong here is logged and no more. They import what a
    worker needs where RAY_preload_python_modules names `dist_resnet.launch.ray.preload`.
    """
    context = ray.train.get_context()
    if context.get_local_rank() == 0:
        # One more where the actor is with which Ray Train synchronizes the workers: beside the first of them, mostly.
        count = context.get_local_world_size() + (context.get_world_rank() == 0)
        timer = threading.Timer(_SECONDS_BEFORE_SPARES, _ask_for, args=(count,))
        timer.name, timer.daemon = "spares", True
        timer.start()


def _ask_for(count: int) -> None:
    try:
        lacking = count - len(idle_processes())
        if lacking > 0:
            prestart(lacking)
    except Exception as error:  # Ray's own interface, which may change
        logger.info("no spare processes for a failure: %s", error)


def idle_processes() -> list[int]:
    """The ids of those of this machine's spares that would do for this process's successors."""
    ours = {name: os.environ.get(name) for name in ("RAY_JOB_ID", *ray.get_runtime_context().runtime_env.env_vars())}
    found = []
    for process in psutil.Process(os.getppid()).children():
        # Others end meanwhile.
        with contextlib.suppress(psutil.Error):
            if "ray::IDLE" in " ".join(process.cmdline()) and ours.items() <= process.environ().items():
                found.append(process.pid)
    return found
