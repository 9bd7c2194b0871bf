"""Spare processes. Oracle: the process ids that a real Ray gives its actors."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from dist_resnet.launch.ray import internals, spares

pytestmark = pytest.mark.ray


class _Actor:
    """An actor in place of a worker, in its own environment."""

    def pid(self) -> int:
        return os.getpid()

    def has_imported(self, module: str) -> bool:
        return module in sys.modules

    def start_spare(self) -> int:
        """The id of a new idle process, once it has started to import torch."""
        before = set(spares.idle_processes())
        internals.prestart(1)
        _wait(lambda: set(spares.idle_processes()) - before)
        (spare,) = set(spares.idle_processes()) - before
        _wait(lambda: "libtorch" in Path(f"/proc/{spare}/maps").read_text())
        return spare

    def successor(self) -> "ray.actor.ActorHandle":
        self._successor = ray.remote(num_cpus=0)(_Actor).remote()
        return self._successor


def _wait(for_what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not for_what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.chaos
def test_the_next_worker_of_a_run_is_its_spare_with_torch_imported(ray_cluster):
    environment = {"env_vars": {"TEST_SPARES": "1", "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "600"}}
    first = ray.remote(num_cpus=0, runtime_env=environment)(_Actor).remote()
    spare = ray.get(first.start_spare.remote())
    second = ray.get(first.successor.remote())
    assert ray.get(second.pid.remote()) == spare
    _wait(lambda: ray.get(second.has_imported.remote("dist_resnet.launch.ray.worker")))
