"""Imported by each of Ray's processes at its start, if RAY_preload_python_modules names it.

A process that has no work then is a spare (`spares`), and imports in advance what a worker needs.
"""

import importlib
import os
import threading
import time
from pathlib import Path

# Set only in the environment of a run's processes: other idle processes are not its spares.
_VARIABLE_OF_A_RUN = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"
_SECONDS_TO_BE_GIVEN_WORK = 3.0
# On machines with GPUs only torch: DALI might initialize a GPU before Ray has assigned one.
_MODULES = ("torch",) if Path("/dev/nvidiactl").exists() else ("torch._dynamo", "dist_resnet.launch.ray.worker")


def _import_if_idle() -> None:
    time.sleep(_SECONDS_TO_BE_GIVEN_WORK)
    if Path("/proc/self/cmdline").read_bytes().startswith(b"ray::IDLE"):
        for module in _MODULES:
            importlib.import_module(module)


if _VARIABLE_OF_A_RUN in os.environ:
    threading.Thread(target=_import_if_idle, name="preload", daemon=True).start()
