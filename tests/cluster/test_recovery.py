"""Runs on several hosts that are killed, cut off, lost and gained. Oracle: an undisturbed run.

On real CIFAR-10 images. Each host is a network namespace with a Ray node; see `hosts.py`.
"""

import collections
import dataclasses
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from cluster.hosts import Hosts, reason_against
from oracle.images import real

from dist_resnet import cli
from dist_resnet.launch import local
from dist_resnet.recipe import Augment, Checkpoints, Data, Evaluation, Execution, Model, Recipe, Recovery, Schedule
from dist_resnet.tracking.journal import history, read_journal
from dist_resnet.tracking.records import Checkpoint, Metrics, Record, Session, Stopped
from dist_resnet.tracking.run_directory import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]

_ROOT = Path(__file__).parents[2]
_KILLS = 20
_SECONDS_FOR_A_CHANGE = 180.0


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    reason = reason_against()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """The first 1,280 training and 1,000 test images of CIFAR-10."""
    folder = tmp_path_factory.mktemp("cifar")
    for split, name, rows in (("train", "train", 1280), ("validation", "test", 1000)):
        source = real(f"cifar10/{name}-*.parquet").uri
        table = pq.read_table(str(next(Path(source).parent.glob(Path(source).name)))).slice(0, rows)
        pq.write_table(table, folder / f"{split}.parquet", row_group_size=100, compression="none")
    return Data(train=str(folder / "train.parquet"), validation=str(folder / "validation.parquet"), dataset="cifar10")


@pytest.fixture
def recipe(data: Data) -> Recipe:
    """ResNet-8, 10 steps an epoch of 4 ghost batches of 32, evaluated every 2 epochs."""
    return Recipe(
        model=Model(depth=8, num_classes=10),
        data=data,
        augment=Augment(kind="pad", size=32),
        schedule=Schedule(learning_rate=0.05, kind="cosine"),
        evaluation=Evaluation(crops=(32,), shorter_sides=(32,), every_epochs=2),
        epochs=30,
        global_batch=128,
        ghost_batch=32,
    )


_RECOVERY = Recovery(max_failures=10, hang_timeout_minutes=0.5)


class _Job:
    """A run whose driver is a process on host 0, and what its directory says of it."""

    def __init__(self, hosts: Hosts, recipe: Recipe, folder: Path, **execution: object) -> None:
        self._hosts = hosts
        self.folder = folder / "runs" / "run"
        options = {"storage": str(folder / "runs"), "name": "run", "cpus_per_worker": 1, "precision": "fp32"}
        options |= {"checkpoints": Checkpoints(every=5), "recovery": _RECOVERY, "device": "cpu"} | execution
        self.arguments = json.dumps([recipe.to_dict(), repr(Execution(**options))])  # pyrefly: ignore
        self._log = folder / "driver.log"
        self._driver: subprocess.Popen | None = None
        self._tail_read: dict[str, int] = {}

    def start(self) -> None:
        code = (
            "import json, sys; from dist_resnet import logs; from dist_resnet.launch.ray import train as ray_train; "
            "from dist_resnet.recipe import *; recipe, execution = json.loads(sys.argv[1]); "
            "logs.configure(); "
            "plan = ray_train.prepare_run(Recipe.from_dict(recipe), eval(execution), job='test'); "
            "print(ray_train.run(plan))"
        )
        with self._log.open("ab") as log:
            command = [sys.executable, "-c", code, self.arguments]
            address = {"RAY_ADDRESS": f"{self._hosts.address(0)}:6379"}
            self._driver = self._hosts.popen(0, command, stdout=log, stderr=log, cwd=_ROOT, env=address)

    def kill_driver(self) -> None:
        """SIGKILL of the driver, and the same command again."""
        assert self._driver is not None
        os.kill(self._driver.pid, signal.SIGKILL)
        self._driver.wait()
        self.start()

    def records(self) -> list[Record]:
        return read_journal(RunDirectory(str(self.folder))) if self.folder.exists() else []

    def step(self) -> int:
        """The last step in the journal."""
        steps = [record.step for record in self.records() if isinstance(record, Metrics)]
        return steps[-1] if steps else 0

    def sessions(self) -> list[Session]:
        return [record for record in self.records() if isinstance(record, Session)]

    def wait_until(self, what: Callable[[], bool], *, pause: float = 0.05) -> None:
        """Returns once `what` holds. Fails if the driver ends before, or after minutes."""
        deadline = time.monotonic() + _SECONDS_FOR_A_CHANGE
        while not what():
            assert self._driver is not None
            ended = self._driver.poll()
            if ended is not None and not what():
                pytest.fail(f"the driver ended with {ended}:\n{self._log.read_text()[-3000:]}")
            if time.monotonic() > deadline:
                pytest.fail(f"nothing happened for too long:\n{self._log.read_text()[-3000:]}")
            time.sleep(pause)

    def finish(self) -> dict:
        """The summary, once the run is over."""
        assert self._driver is not None
        code = self._driver.wait(timeout=600)
        assert code == 0, self._log.read_text()[-3000:]
        return json.loads((self.folder / "summary.json").read_text())

    def stop(self) -> None:
        if self._driver is not None and self._driver.poll() is None:
            self._driver.kill()
            self._driver.wait()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    with Hosts(4, Path("/tmp") / f"dr{os.getpid()}") as three:
        try:
            yield three
        finally:
            logs = Path("/tmp") / f"dr{os.getpid()}"
    shutil.rmtree(logs, ignore_errors=True)


def _undisturbed(recipe: Recipe, folder: Path, workers: int) -> dict:
    """The summary of the same run without Ray, undisturbed."""
    execution = Execution(
        workers=workers,
        cpus_per_worker=1,
        device="cpu",
        precision="fp32",
        storage=str(folder / "runs"),
        name="whole",
        checkpoints=Checkpoints(every=1000),
    )
    return local.run(local.prepare_run(recipe, execution, job="test"))


def _processes(name: str) -> list[psutil.Process]:
    known = psutil.process_iter(["cmdline"])
    found = [process for process in known if name in " ".join(process.info["cmdline"] or [])]
    return sorted(found, key=lambda process: process.pid)


def _assert_nothing_is_left() -> None:
    """After a run only the cluster's own processes remain."""
    names, deadline = (
        ("ray::RayTrainWorker", "ray::TrainController", "import train as ray_train"),
        time.monotonic() + 30,
    )
    while left := [process for name in names for process in _processes(name)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


def _kill_process(name: str, number: int = 0) -> bool:
    found = _processes(name)
    if not found:
        return False
    found[number % len(found)].kill()
    return True


@pytest.mark.chaos
def test_a_run_with_twenty_kills_is_bit_identical(hosts: Hosts, recipe: Recipe, tmp_path: Path):
    whole = _undisturbed(recipe, tmp_path, 2)
    hosts.start_head(cpus=0)
    for host in (1, 2):
        hosts.start_node(host, cpus=1)
    job = _Job(hosts, recipe, tmp_path, workers=2)
    job.start()
    chance = random.Random(0)
    kills: collections.Counter[str] = collections.Counter()
    plan = ["worker"] * 5 + ["checkpoint"] * 4 + ["evaluation"] * 3 + ["controller"] * 2 + ["driver"] * 2 + ["node"] * 3
    plan += ["hang"]
    assert len(plan) == _KILLS
    chance.shuffle(plan)
    try:
        for kind in plan:
            before = len(job.sessions())
            target = job.step() + chance.randint(2, 9)
            job.wait_until(lambda target=target: job.step() >= target)
            _kill(kind, job, hosts, chance)
            kills[kind] += 1
            print(f"kill {sum(kills.values())}: {kind} after step {job.step()}", flush=True)
            job.wait_until(lambda before=before: len(job.sessions()) > before)
        summary = job.finish()
        _assert_nothing_is_left()
    finally:
        job.stop()
    sessions = job.sessions()
    print(kills, "sessions began after steps", [session.start_step for session in sessions])
    assert sum(kills.values()) == _KILLS
    assert summary["weights_sha256"] == whole["weights_sha256"]
    assert summary["top1_error"] == whole["top1_error"]


def _kill(kind: str, job: _Job, hosts: Hosts, chance: random.Random) -> None:
    if kind == "worker":
        assert _kill_process("ray::RayTrainWorker", chance.randint(0, 1))
    elif kind == "checkpoint":
        known = set((job.folder / "checkpoints").glob("step_*"))
        job.wait_until(lambda: _is_writing(job.folder, known), pause=0.001)
        for _ in range(2):
            _kill_process("ray::RayTrainWorker")
    elif kind == "evaluation":
        job.wait_until(lambda: _is_evaluating(job), pause=0.01)
        assert _kill_process("ray::RayTrainWorker", chance.randint(0, 1))
    elif kind == "hang":
        _processes("ray::RayTrainWorker")[1].suspend()
    elif kind == "controller":
        assert _kill_process("ray::TrainController")
    elif kind == "driver":
        job.kill_driver()
    elif kind == "node":
        host = chance.randint(1, 2)
        hosts.kill_node(host)
        hosts.start_node(host, cpus=1)


def _is_writing(folder: Path, known: set[Path]) -> bool:
    """Whether there is a new checkpoint without a manifest yet."""
    new = set((folder / "checkpoints").glob("step_*")) - known
    return any(not (path / "manifest.json").exists() for path in new)


def _is_evaluating(job: _Job) -> bool:
    """Whether an evaluation after the last step is running."""
    records = [record for record in job.records() if isinstance(record, Metrics)]
    last = records[-1]
    return last.step % 20 == 0 and not last.is_evaluation


@pytest.mark.chaos
def test_a_lost_node_is_survived_on_fewer_workers_and_a_gained_one_is_used(
    hosts: Hosts, recipe: Recipe, tmp_path: Path
):
    recipe = dataclasses.replace(recipe, epochs=40)
    hosts.start_head(cpus=0)
    for host in (1, 2, 3):
        hosts.start_node(host, cpus=1)
    job = _Job(hosts, recipe, tmp_path, workers="1:3", recovery=dataclasses.replace(_RECOVERY, resize_minutes=0.1))
    job.start()
    try:
        job.wait_until(lambda: job.step() >= 20)
        hosts.kill_node(2)
        job.wait_until(lambda: len(job.sessions()) >= 2 and job.step() >= job.sessions()[-1].start_step + 10)
        assert job.sessions()[-1].world_size == 2
        hosts.start_node(2, cpus=1)
        job.wait_until(lambda: job.sessions()[-1].world_size == 3 and len(job.sessions()) >= 3)
        summary = job.finish()
        _assert_nothing_is_left()
    finally:
        job.stop()
    sizes = [session.world_size for session in job.sessions()]
    print("world sizes", sizes, "from steps", [session.start_step for session in job.sessions()])
    assert sizes[0] == 3
    assert summary["steps"] == 400
    _undisturbed(recipe, tmp_path, 3)
    found, expected = (
        history(read_journal(RunDirectory(str(tmp_path / "runs" / name))))["train/loss"] for name in ("run", "whole")
    )
    assert [step for step, _, _ in found] == list(range(1, 401))
    # The same sums in another order, which training amplifies: close at first, of the same size at the end.
    assert [loss for _, _, loss in found[:40]] == pytest.approx([loss for _, _, loss in expected[:40]], rel=2e-3)
    last = [sum(loss for _, _, loss in points[-50:]) / 50 for points in (found, expected)]
    assert last[0] == pytest.approx(last[1], rel=0.1)


@pytest.mark.chaos
def test_a_drained_node_saves_a_checkpoint_before_it_ends(hosts: Hosts, recipe: Recipe, tmp_path: Path):
    # Without evaluations, which save checkpoints too, only the notice saves one before the end.
    recipe = dataclasses.replace(recipe, epochs=60, evaluation=dataclasses.replace(recipe.evaluation, every_epochs=60))
    hosts.start_head(cpus=0)
    for host in (1, 2):
        hosts.start_node(host, cpus=1)
    job = _Job(hosts, recipe, tmp_path, workers=2, checkpoints=Checkpoints(every=10_000, minutes=60))
    job.start()
    try:
        job.wait_until(lambda: job.step() >= 5)
        hosts.drain_node(2)
        job.wait_until(lambda: any(isinstance(record, Checkpoint) for record in job.records()))
        assert not hosts.has_ended(2)
        job.wait_until(lambda: hosts.has_ended(2))
        reached = job.step()
        hosts.start_node(2, cpus=1)
        job.wait_until(lambda: len(job.sessions()) >= 2)
        summary = job.finish()
        _assert_nothing_is_left()
    finally:
        job.stop()
    starts = [session.start_step for session in job.sessions()]
    print("gone after step", reached, "sessions began after steps", starts)
    assert starts[-1] > 5
    assert summary["weights_sha256"] == _undisturbed(recipe, tmp_path, 2)["weights_sha256"]


@pytest.mark.chaos
def test_a_host_cut_off_is_replaced_and_a_stopped_job_resumes(hosts: Hosts, recipe: Recipe, tmp_path: Path):
    hosts.start_head(cpus=0)
    for host in (1, 2):
        hosts.start_node(host, cpus=1)
    job = _Submitted(hosts, recipe.data, tmp_path)
    try:
        job.submit("first")
        job.wait_until(lambda: job.step() >= 20)
        hosts.cut(2)
        job.wait_until(lambda: len(hosts.nodes()) == 2, pause=1.0)
        hosts.restore(2)
        # Ray ends a node that was declared dead; it must be started again.
        job.wait_until(lambda: hosts.has_ended(2), pause=1.0)
        hosts.start_node(2, cpus=1)
        cut_off = job.sessions()
        job.wait_until(lambda: len(job.sessions()) > len(cut_off) and job.step() >= 60)
        job.ray("stop", "first")
        job.wait_until(lambda: isinstance(job.records()[-1], Stopped))
        _assert_nothing_is_left()
        job.submit("second")
        job.wait_until(lambda: (job.folder / "summary.json").exists())
    finally:
        print(job.ray("logs", "first")[-3000:])
    print("sessions began after steps", [session.start_step for session in job.sessions()])
    summary = json.loads((job.folder / "summary.json").read_text())
    execution = dataclasses.replace(job.execution, name="whole", device="cpu")
    whole = local.run(local.prepare_run(job.recipe, execution, job="test"))
    assert summary["weights_sha256"] == whole["weights_sha256"]


class _Submitted(_Job):
    """The same by `ray job submit` of a job of ours."""

    def __init__(self, hosts: Hosts, data: Data, folder: Path) -> None:
        self._hosts = hosts
        self.folder = folder / "runs" / "run"
        self._log = folder / "driver.log"
        self._log.touch()
        self._arguments = [
            *("--model.depth", "8", "--epochs", "30", "--global-batch", "128", "--ghost-batch", "32"),
            *("--data.train", data.train, "--data.validation", data.validation, "--evaluation.every-epochs", "2"),
            *("--execution.workers", "2", "--execution.cpus-per-worker", "1"),
            *("--execution.recovery.hang-timeout-minutes", "2"),
            *("--execution.precision", "fp32", "--execution.checkpoints.every", "5"),
            *("--execution.storage", str(folder / "runs"), "--execution.name", "run"),
        ]
        job = runpy.run_path(str(_ROOT / "jobs" / "cifar_preact164.py"))
        self.recipe, self.execution, _ = cli.parse(job["RECIPE"], job["EXECUTION"], doc=None, arguments=self._arguments)

    def submit(self, name: str) -> None:
        environment = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})
        options = ["--no-wait", "--submission-id", name, "--working-dir", ".", "--runtime-env-json", environment]
        self.ray("submit", *options, "--", "python", "jobs/cifar_preact164.py", *self._arguments)

    def ray(self, *arguments: str) -> str:
        """The output of `ray job`."""
        process = self._hosts.popen(
            0, ["ray", "job", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=_ROOT, text=True
        )
        return process.communicate(timeout=120)[0]

    def wait_until(self, what: Callable[[], bool], *, pause: float = 0.2) -> None:
        deadline = time.monotonic() + _SECONDS_FOR_A_CHANGE
        while not what():
            if time.monotonic() > deadline:
                pytest.fail("nothing happened for too long")
            time.sleep(pause)
