"""The Ray cluster that a job uses: the one at hand, or a Ray of its own for as long as the process lives."""

import logging
import os
import threading
from pathlib import Path
from typing import Any

# Ray reads it when it is imported. Otherwise workers would each resolve the environment again under `uv run`.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

import ray

from dist_resnet.recipe import Execution

logger = logging.getLogger(__name__)

_own = threading.Event()


def connect(execution: Execution) -> None:
    """Connects to a cluster, or starts one here with a core for each worker."""
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "configure_logging": True}
    if os.environ.get("RAY_ADDRESS") or Path("/tmp/ray/ray_current_cluster").exists():
        try:
            ray.init(address="auto", **quiet)
            logger.info("using the Ray cluster at %s", ray.get_runtime_context().gcs_address)
            return
        except ConnectionError as error:
            if os.environ.get("RAY_ADDRESS"):
                raise ValueError(
                    f"no Ray cluster answers at RAY_ADDRESS {os.environ['RAY_ADDRESS']} ({first_line(error)}); "
                    "start one with `ray start --head`, or unset it to run Ray in this process"
                ) from error
    cores = max(os.cpu_count() or 1, execution.most_workers * (execution.cpus_per_worker or 1))
    # A Ray of our own is this one machine: nobody drains it, so nobody need watch for that.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # After a failure all workers start at once, and an actor that synchronizes them.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(execution.most_workers + 2))
    # Ray Train's processes have an environment of their own and would leave those that Ray starts in advance idle.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    os.environ.setdefault("RAY_preload_python_modules", "dist_resnet.launch.preload")
    # No dashboard: its processes would take a share of the cores that train, and its metrics nobody asked for.
    ray.init(address="local", num_cpus=cores, include_dashboard=False, **quiet)
    _own.set()


def disconnect() -> None:
    """Leaves the cluster, or ends the Ray of our own; what this process has running there ends."""
    ray.shutdown()


def own_cluster() -> bool:
    """Whether `connect` started the Ray that is used."""
    return _own.is_set()


def first_line(error: BaseException) -> str:
    """What an error says, without the traceback that Ray wraps it in."""
    cause = getattr(error, "cause", None) or getattr(error, "_base_exc", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[-1] if lines else type(cause).__name__
