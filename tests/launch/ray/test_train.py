"""Runs on Ray Train. Oracle: the same run without Ray, and a real SIGKILL of a worker."""

import dataclasses
import os
import signal
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest
from oracle.images import jpeg, smooth, write_rows
from ray.train import ControllerError

from dist_resnet.launch import local
from dist_resnet.launch.plan import Plan
from dist_resnet.launch.ray import train as ray_train
from dist_resnet.recipe import Execution, Recipe, Recovery
from dist_resnet.tracking import stop
from dist_resnet.tracking.journal import Tail
from dist_resnet.tracking.records import Straggler, WorkerSeconds

pytestmark = pytest.mark.ray


@pytest.fixture
def on_two(execution: Execution) -> Execution:
    return dataclasses.replace(execution, workers=2)


@pytest.mark.slow
def test_ray_workers_end_bit_identical_to_local_ones(ray_cluster, recipe: Recipe, on_two: Execution):
    local_run = local.run(local.prepare_run(recipe, dataclasses.replace(on_two, name="local"), job="test"))
    ray_run = ray_train.run(ray_train.prepare_run(recipe, dataclasses.replace(on_two, name="ray"), job="test"))
    assert ray_run["status"] == "finished"
    assert ray_run["weights_sha256"] == local_run["weights_sha256"]


@pytest.mark.slow
@pytest.mark.chaos
def test_a_killed_worker_restarts_and_the_result_is_bit_identical(ray_cluster, recipe: Recipe, on_two: Execution):
    recipe = dataclasses.replace(recipe, epochs=20)
    whole = local.run(local.prepare_run(recipe, dataclasses.replace(on_two, name="whole"), job="test"))
    plan = ray_train.prepare_run(recipe, dataclasses.replace(on_two, name="broken"), job="test")
    killer = threading.Thread(target=_kill_a_worker_after, args=(Path(plan.directory.uri), 12), daemon=True)
    killer.start()
    summary = ray_train.run(plan)
    killer.join()
    assert summary["weights_sha256"] == whole["weights_sha256"]
    assert len(plan.directory.list("journal")) == 2


@pytest.mark.slow
@pytest.mark.chaos  # it compares times, so nothing else may run
def test_one_of_three_workers_that_is_slowed_by_signals_is_named_and_no_longer_afterwards(
    ray_cluster, recipe: Recipe, execution: Execution, capsys
):
    evaluation = dataclasses.replace(recipe.evaluation, every_epochs=10_000)
    recipe = dataclasses.replace(recipe, global_batch=24, epochs=10_000, evaluation=evaluation)
    checkpoints = dataclasses.replace(execution.checkpoints, every=10_000)
    execution = dataclasses.replace(execution, workers=3, log_every=5, name="slowed", checkpoints=checkpoints)
    plan = ray_train.prepare_run(recipe, execution, job="test")
    findings: list[Straggler] = []
    slower = threading.Thread(target=_slow_a_worker, args=(plan, findings), daemon=True)
    slower.start()
    summary = ray_train.run(plan)
    slower.join()
    assert summary["status"] == "stopped"
    named, over = findings
    assert (named.rank, named.machine, named.reason) == (over.rank, socket.gethostname(), "computing")
    assert (named.fraction or 0) > 0.3
    said = capsys.readouterr().err
    assert [said.count(f"slowed: step {each.step}: {each}\n") for each in findings] == [1, 1]


def _slow_a_worker(plan: Plan, findings: list[Straggler]) -> None:
    """Stops a worker for four fifths of the time until one is named, and asks the run to stop when that is over."""
    tail, until = Tail(plan.directory), time.monotonic() + 240
    worker: psutil.Process | None = None
    while len(findings) < 2 and time.monotonic() < until:
        records = tail.poll()
        findings += [record for record in records if isinstance(record, Straggler)]
        if worker is None and any(isinstance(record, WorkerSeconds) for record in records):
            worker = _processes("RayTrainWorker")[0]
        if worker and not findings:
            worker.suspend()
            time.sleep(0.2)
            worker.resume()
        time.sleep(0.05)
    stop.request(plan.directory)


@pytest.mark.slow
@pytest.mark.chaos
def test_a_killed_controller_is_replaced(ray_cluster, recipe: Recipe, on_two: Execution, caplog):
    recipe = dataclasses.replace(recipe, epochs=40)
    whole = local.run(local.prepare_run(recipe, dataclasses.replace(on_two, name="whole"), job="test"))
    plan = ray_train.prepare_run(recipe, dataclasses.replace(on_two, name="broken"), job="test")
    arguments = (Path(plan.directory.uri), 12, "TrainController")
    killer = threading.Thread(target=_kill_a_worker_after, args=arguments, daemon=True)
    killer.start()
    summary = ray_train.run(plan)
    killer.join()
    assert summary["weights_sha256"] == whole["weights_sha256"]
    assert "(the training controller died); restarting" in caplog.text


def test_a_shard_that_cannot_be_read_ends_the_run_with_its_name(ray_cluster, recipe: Recipe, on_two, tmp_path):
    images = [jpeg(smooth(32, 32, index)) for index in range(40)]
    for name, rows in (("train", images), ("validation", images[:8])):
        write_rows(tmp_path / name / "part.parquet", rows, [index % 4 for index in range(len(rows))], 10)
    data = dataclasses.replace(recipe.data, train=str(tmp_path / "train"), validation=str(tmp_path / "validation"))
    broken = dataclasses.replace(recipe, data=data)
    plan = ray_train.prepare_run(broken, dataclasses.replace(on_two, recovery=Recovery(max_failures=0)), job="test")
    (tmp_path / "train" / "part.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        RuntimeError, match="training failed without a restart: rank .*part.parquet cannot be read"
    ) as it:
        ray_train.run(plan)
    assert "\n" not in str(it.value)


def _kill_a_worker_after(run: Path, points: int, name: str = "RayTrainWorker") -> None:
    journal = run / "journal" / "000001.jsonl"
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and (not journal.exists() or journal.read_text().count('"metrics"') < points):
        time.sleep(0.01)
    os.kill(_processes(name)[0].pid, signal.SIGKILL)


def _processes(name: str) -> list[psutil.Process]:
    # Only this process's descendants, because others on the machine may run Ray too.
    return [process for process in psutil.Process().children(recursive=True) if name in " ".join(_command(process))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


class _Failing:
    """A trainer whose controller fails `times` times, with or without a new checkpoint before each failure."""

    def __init__(self, plan: Plan, times: int, *, commits: bool) -> None:
        self.fits, self._plan, self._times, self._commits = 0, plan, times, commits

    def fit(self) -> None:
        self.fits += 1
        if self.fits > self._times:
            return
        if self._commits:
            self._plan.directory.write_json(f"checkpoints/step_{self.fits:08d}/manifest.json", {})
        raise ControllerError(RuntimeError("no room"))


@pytest.mark.parametrize(("commits", "fits"), [(False, 4), (True, 8)])
def test_failures_in_a_row_count_until_a_new_checkpoint(recipe, execution: Execution, monkeypatch, commits, fits):
    plan = local.prepare_run(recipe, execution, job="test")
    trainer = _Failing(plan, 7, commits=commits)
    monkeypatch.setattr(ray_train, "_trainer", lambda _: trainer)
    monkeypatch.setattr(ray_train, "own_cluster", lambda: True)  # no cluster with reserved resources to free
    if commits:
        ray_train._fit(plan)
    else:
        with pytest.raises(RuntimeError, match="training failed after 3 restarts: no room"):
            ray_train._fit(plan)
    assert trainer.fits == fits
