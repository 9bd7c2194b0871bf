"""What is used of Ray that it does not publish. Oracle: Ray's own parameters and constants, and processes here.

`test_cluster` has it with Rays that run side by side.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray._private import parameter, ray_constants

from dist_resnet.launch.ray import internals


def test_a_ray_of_ones_own_is_given_no_fixed_port(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_GCS_SERVER_PORT", "6379")
    monkeypatch.setenv("DASHBOARD_METRIC_PORT", "44227")
    monkeypatch.delenv("AUTOSCALER_METRIC_PORT", raising=False)
    earlier, outside = dict(os.environ), parameter.RayParams
    assert outside().dashboard_agent_listen_port == ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
    with internals.free_ports():
        inside = parameter.RayParams(num_cpus=1, dashboard_port=None)
        assert isinstance(inside, outside)
        assert inside.dashboard_agent_listen_port == 0
        # The head's, the object manager's, the workers' and the others: none, or one that is free.
        assert not {value for name, value in vars(inside).items() if "port" in name and value}
        assert "RAY_GCS_SERVER_PORT" not in os.environ
        assert os.environ["AUTOSCALER_METRIC_PORT"] == os.environ["DASHBOARD_METRIC_PORT"] == "0"
    assert parameter.RayParams is outside
    assert dict(os.environ) == earlier


@pytest.mark.parametrize("python", ["/usr/bin/python", "/a b/bin/python", "/it's/python"])
def test_nodes_are_found_with_the_python_that_they_start(tmp_path: Path, python: str):
    # As Ray writes a raylet's command down.
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
