"""Imported by each of Ray's processes as it starts, where RAY_preload_python_modules names it.

A process that then has no work is a spare (`spares`): it imports in advance what a worker would.
"""

import importlib
import os
import threading
import time
from pathlib import Path

# Set in the environment of a run's processes alone: others that are idle are not for it.
_VARIABLE_OF_A_RUN = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"
_SECONDS_TO_BE_GIVEN_WORK = 3.0
# Where there are GPUs only torch: DALI might take hold of a card before Ray has said which is whose.
_MODULES = ("torch",) if Path("/dev/nvidiactl").exists() else ("torch._dynamo", "dist_resnet.launch.ray.worker")


def _import_if_idle() -> None:
    time.sleep(_SECONDS_TO_BE_GIVEN_WORK)
    if Path("/proc/self/cmdline").read_bytes().startswith(b"ray::IDLE"):
        for module in _MODULES:
            importlib.import_module(module)


if _VARIABLE_OF_A_RUN in os.environ:
    threading.Thread(target=_import_if_idle, name="preload", daemon=True).start()
