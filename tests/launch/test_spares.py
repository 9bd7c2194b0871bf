"""Spare processes. Oracle: the process ids that a real Ray gives its actors."""

import os
import sys
import time

import pytest
import ray

from dist_resnet.launch import spares

pytestmark = pytest.mark.ray


class _Actor:
    """Stands where a worker would, in an environment of its own."""

    def pid(self) -> int:
        return os.getpid()

    def has_imported(self, module: str) -> bool:
        return module in sys.modules

    def start_spares(self, count: int) -> set[int]:
        """The new idle processes, once they are there."""
        before = set(spares.idle_processes())
        spares.start(count)
        deadline = time.monotonic() + 60
        while len(new := set(spares.idle_processes()) - before) < count and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(_SECONDS_TO_IMPORT)
        return new

    def successor(self) -> "ray.actor.ActorHandle":
        self._successor = ray.remote(num_cpus=0)(_Actor).remote()
        return self._successor


_SECONDS_TO_IMPORT = 20


def test_the_next_worker_of_a_run_is_its_spare_with_torch_imported(ray_cluster):
    environment = {"env_vars": {"TEST_SPARES": "1", "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "600"}}
    first = ray.remote(num_cpus=0, runtime_env=environment)(_Actor).remote()
    (spare,) = ray.get(first.start_spares.remote(1))
    second = ray.get(first.successor.remote())
    assert ray.get(second.pid.remote()) == spare
    assert ray.get(second.has_imported.remote("dist_resnet.launch.ray_worker"))
    assert not ray.get(first.has_imported.remote("dist_resnet.launch.ray_worker"))
