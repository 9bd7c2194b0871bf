"""The use of Ray's private interface. Oracle: Ray's own parameters and constants, and processes here.

`test_cluster` has it with Rays that run side by side.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray._private import parameter, ray_constants
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from dist_resnet.launch.ray import internals


def test_this_ray_is_one_that_the_internals_were_checked_with():
    assert ray.__version__.startswith(internals.CHECKED_WITH), (
        f"check every function of {internals.__name__} with Ray {ray.__version__}, then change CHECKED_WITH"
    )


def test_a_jobs_own_ray_gets_no_fixed_port(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_GCS_SERVER_PORT", "6379")
    monkeypatch.setenv("DASHBOARD_METRIC_PORT", "44227")
    monkeypatch.delenv("AUTOSCALER_METRIC_PORT", raising=False)
    earlier, outside = dict(os.environ), parameter.RayParams
    assert outside().dashboard_agent_listen_port == ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
    with internals.free_ports():
        inside = parameter.RayParams(num_cpus=1, dashboard_port=None)
        assert isinstance(inside, outside)
        assert inside.dashboard_agent_listen_port == 0
        # The ports of the head, the object manager, the workers and others: unset, or free.
        assert not {value for name, value in vars(inside).items() if "port" in name and value}
        assert "RAY_GCS_SERVER_PORT" not in os.environ
        assert os.environ["AUTOSCALER_METRIC_PORT"] == os.environ["DASHBOARD_METRIC_PORT"] == "0"
    assert parameter.RayParams is outside
    assert dict(os.environ) == earlier


@pytest.mark.parametrize("python", ["/usr/bin/python", "/a b/bin/python", "/it's/python"])
def test_nodes_are_found_with_the_python_that_they_start(tmp_path: Path, python: str):
    # A raylet's command line in Ray's form.
    workers = subprocess.list2cmdline([python, "/ray/setup_worker.py", "--node-ip-address=10.0.0.1"])
    command = [str(tmp_path / "raylet"), "-c", "input()", "--node_id=f00d", f"--python_worker_command={workers}"]
    with subprocess.Popen(command, executable=sys.executable, stdin=subprocess.PIPE) as process:
        assert internals.nodes_here()["f00d"] == python
        process.kill()


@pytest.mark.ray
def test_a_rays_essential_processes_are_its_raylet_and_its_heads_server(ray_cluster):
    found = internals.essential_processes()
    assert sorted(process.name() for process in found) == ["gcs_server", "raylet"]
    below = {process.pid for process in internals.psutil.Process().children(recursive=True)}
    assert {process.pid for process in found} <= below
    assert ray.get_runtime_context().get_node_id() in internals.nodes_here()


def _names(trainer: TorchTrainer) -> list[str]:
    return [type(callback).__name__ for callback in trainer._create_default_callbacks()]


@pytest.mark.parametrize(
    ("own_cluster", "left_out"),
    [(False, {"DatasetsCallback"}), (True, {"DatasetsCallback", "PlacementGroupCleanerCallback"})],
)
def test_only_unneeded_callbacks_are_left_out(own_cluster: bool, left_out: set[str]) -> None:
    scaling = ScalingConfig(num_workers=2)
    theirs = _names(TorchTrainer(print, scaling_config=scaling))
    trainer = TorchTrainer(print, scaling_config=scaling)
    internals.leave_out_helpers(trainer, own_cluster=own_cluster)
    assert _names(trainer) == [name for name in theirs if name not in left_out]
    assert left_out <= set(theirs)


@pytest.mark.ray
def test_resources_reserved_by_a_dead_run_are_free_for_the_next(ray_cluster: str) -> None:
    coordinator = get_or_create_autoscaling_coordinator()
    every_core = {"resources": [{"CPU": ray.cluster_resources()["CPU"]}], "expire_after_s": 180}

    def reserved(run_id: str) -> dict:
        return ray.get(coordinator.get_reserved_resources.remote(f"train-{run_id}", recompute=True))

    for run_id in ("gone", "next"):
        ray.get(coordinator.request_resources.remote(requester_id=f"train-{run_id}", **every_core))
    assert reserved("gone")
    assert not reserved("next")
    internals.release("gone")
    assert not reserved("gone")
    assert reserved("next")
    internals.release("next")
    internals.release("never heard of")
