"""Metrics for Prometheus. Oracle: the samples that Ray's own agent serves, read as Prometheus reads them."""

import dataclasses
import re
import socket
import time
import urllib.request

import pytest
from observability.queries import exported
from ray.util.metrics import Gauge

from dist_resnet.launch.ray import telemetry
from dist_resnet.launch.ray import train as ray_train
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.tracking.records import Checkpoint, Diverged, Metrics, Session, Stopped, Tracking, WorkerSeconds


def _served() -> dict[str, list[tuple[dict[str, str], float]]]:
    """The samples that the agent of this machine's Ray node serves: name -> (labels, value) of each."""
    import ray

    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for name, labels, value in re.findall(r"(?m)^(ray_dist_resnet_\w+)\{(.*)\} (\S+)$", text):
        samples.setdefault(name, []).append((dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)))
    return samples


def test_a_run_of_any_name_is_measured():
    made = telemetry._create(Gauge, {"named": "A gauge."}, {"run": "r\u00e9seau 1"})["named"]
    made.set(1.0)
    assert made.info["default_tags"] == {"run": r"r\xe9seau 1"}


@pytest.mark.slow
@pytest.mark.ray
def test_both_workers_and_the_driver_are_served_by_rays_agent(ray_cluster, recipe: Recipe, execution: Execution):
    execution = dataclasses.replace(execution, workers=2, name="telemetry")
    ray_train.run(ray_train.prepare_run(recipe, execution, job="test"))
    deadline = time.monotonic() + 60
    step_seconds = exported("step_seconds")
    ranks: set[str] = set()
    while ranks != {"0", "1"}:
        assert time.monotonic() < deadline, _served()
        time.sleep(0.5)
        samples = [labels for labels, _ in _served().get(step_seconds, []) if labels["run"] == "telemetry"]
        ranks = {labels["rank"] for labels in samples}
    assert {labels["machine"] for labels in samples} == {socket.gethostname()}
    for name in ("compute_seconds", "reduce_wait_seconds"):
        values = {labels["rank"]: value for labels, value in _served()[exported(name)] if labels["run"] == "telemetry"}
        assert set(values) == {"0", "1"}
        assert min(values.values()) > 0
    running = exported("running")
    while not [value for labels, value in _served().get(running, []) if labels["run"] == "telemetry" and value == 0]:
        assert time.monotonic() < deadline, _served()
        time.sleep(0.5)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> telemetry.RunTelemetry:
    monkeypatch.setattr("time.time", lambda: 1000.0)
    return telemetry.RunTelemetry("run", 4)


def test_a_restart_is_counted_and_repeated_steps_are_not_progress(driver, monkeypatch):
    driver([Session(start_step=100, total_steps=500)])
    monkeypatch.setattr("time.time", lambda: 1010.0)
    driver([Metrics(step=120, values={})])
    driver([Session(start_step=110, total_steps=500)])
    monkeypatch.setattr("time.time", lambda: 1020.0)
    driver([Metrics(step=120, values={})])
    values = driver.values
    assert values["restarts"] == 1
    assert values["checkpoint_step"] == 110
    assert values["progress_timestamp_seconds"] == 1010.0
    driver([Metrics(step=121, values={})])
    assert driver.values["progress_timestamp_seconds"] == 1020.0


def test_a_run_that_diverged_still_counts_as_running(driver):
    driver([Diverged(step=3)])
    assert driver.values["running"] == 1
    driver([Stopped(step=3)])
    assert driver.values["running"] == 0


def test_a_checkpoint_and_points_waiting_for_mlflow_are_exported(driver, monkeypatch):
    assert driver.values["checkpoint_timestamp_seconds"] == 1000.0
    monkeypatch.setattr("time.time", lambda: 1300.0)
    driver([Checkpoint(step=40, seconds=1.0), Tracking(waiting_points=12)])
    values = driver.values
    assert (values["checkpoint_step"], values["checkpoint_timestamp_seconds"]) == (40, 1300.0)
    assert values["tracking_waiting_points"] == 12
    assert values["workers_wanted"] == 4


def test_a_worker_keeps_its_newest_numbers_and_adds_up_its_seconds():
    worker = telemetry.WorkerTelemetry("run", 1)
    worker([Session(start_step=10, world_size=2)])
    for step in (11, 12):
        worker([Metrics(step=step, values={"train/loss": 1 / step, "time/data_seconds": 0.25})])
        worker([_seconds(step, data=[9.0, 9.0], compute=[3.0, 1.0], reduce=[0.0, 2.0])])
    worker([Metrics(step=12, values={"system/cpu_utilization_percentage": 50.0})])
    expected = {"step": 12, "world_size": 2, "damaged_images": 0, "loss": 1 / 12, "data_wait_seconds": 0.5}
    assert worker.values == expected | {"compute_seconds": 2.0, "reduce_wait_seconds": 4.0}


def _seconds(step: int, *, data: list[float], compute: list[float], reduce: list[float]) -> WorkerSeconds:
    return WorkerSeconds(step=step, steps=1, data_seconds=data, compute_seconds=compute, reduce_seconds=reduce)
