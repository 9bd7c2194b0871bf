"""A real run with one failure after another, watched by a real Prometheus. Oracle: the alerts that fire.

Rules and configuration are docker/prometheus/'s, in which a minute is two seconds and a look is taken every second.
Nodes are network namespaces; see `cluster/hosts.py`.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from cluster.hosts import Hosts, reason_against
from observability.queries import BOARDS, PROMETHEUS, ROOT, queries_of

from dist_resnet.data.prepare.demo import write_demo
from dist_resnet.recipe import (
    Augment,
    Checkpoints,
    Data,
    Evaluation,
    Execution,
    Model,
    Recipe,
    Recovery,
    Schedule,
    Tracking,
)

pytestmark = [pytest.mark.slow, pytest.mark.services, pytest.mark.ray, pytest.mark.timeout(1500)]

_SECONDS_FOR_A_CHANGE = 180.0
_SECONDS_PER_MINUTE = 2
_NO_MLFLOW = "http://127.0.0.1:9"
_ASK = (
    "import json, sys, urllib.parse, urllib.request; "
    "url = 'http://127.0.0.1:9090/api/v1/query?' + urllib.parse.urlencode({'query': sys.argv[1]}); "
    "print(urllib.request.urlopen(url, timeout=10).read().decode())"
)
_DRIVE = (
    "import json, sys; from dist_resnet import logs; from dist_resnet.launch.ray import train as ray_train; "
    "from dist_resnet.recipe import *; recipe, execution = json.loads(sys.argv[1]); logs.configure(); "
    "plan = ray_train.prepare_run(Recipe.from_dict(recipe), eval(execution), job='test'); "
    "print(ray_train.run(plan)['status'])"
)
_UPLOAD = (
    "import boto3, pathlib, sys; store, folder = boto3.client('s3'), pathlib.Path(sys.argv[1]); "
    "store.create_bucket(Bucket='images'); "
    "[store.upload_file(str(path), 'images', str(path.relative_to(folder))) for path in folder.rglob('*.parquet')]"
)


class _Watched:
    """Three hosts with a Ray node each, S3 and Prometheus on the first, and the driver of a run."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self._hosts, self._folder = hosts, folder
        self._driver: subprocess.Popen | None = None
        self._started: list[subprocess.Popen] = []
        self._began = time.monotonic()

    def start_s3(self) -> subprocess.Popen:
        server = self.popen("s3", [sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", "8333"])
        train, _ = write_demo(
            str(self._folder / "images"), size=40, num_classes=4, train_images=512, validation_images=40, seed=0
        )
        upload = [sys.executable, "-c", _UPLOAD, str(Path(train).parent)]
        self.wait_until("S3 has the images", lambda: self.popen("upload", upload).wait() == 0)
        return server

    def start_prometheus(self) -> None:
        folder = self._folder / "prometheus"
        folder.mkdir()
        for source in PROMETHEUS.iterdir():
            (folder / source.name).write_text(_hurried(source.read_text(), self._folder / "ray"))
        words = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        self.popen("prometheus", ["prometheus", *words, "--web.listen-address=127.0.0.1:9090"])

    def start_driver(self) -> None:
        recipe = Recipe(
            model=Model(depth=20, num_classes=4),
            data=Data(train="s3://images/train", validation="s3://images/validation", dataset="cifar10"),
            augment=Augment(kind="scale", size=24, shorter_side=(26, 40)),
            schedule=Schedule(kind="step", learning_rate=0.01, drops=()),
            evaluation=Evaluation(crops=(24,), shorter_sides=(28,), every_epochs=20),
            epochs=100_000,
            global_batch=32,
            ghost_batch=8,
        )
        execution = Execution(
            workers="1:2",
            cpus_per_worker=1,
            device="cpu",
            precision="fp32",
            storage=str(self._folder / "runs"),
            name="run",
            tracking=Tracking(uri=_NO_MLFLOW),
            checkpoints=Checkpoints(minutes=0.2),
            recovery=Recovery(max_failures=10),
        )
        command = [sys.executable, "-c", _DRIVE, json.dumps([recipe.to_dict(), repr(execution)])]
        self._driver = self.popen("driver", command, env={"RAY_ADDRESS": f"{self._hosts.address(0)}:6379"}, cwd=ROOT)

    def popen(self, name: str, command: list[str], **options: object) -> subprocess.Popen:
        """Starts a command on the first host, its output in a file of that name."""
        with (self._folder / f"{name}.log").open("ab") as log:
            self._started.append(self._hosts.popen(0, command, stdout=log, stderr=log, **options))
        return self._started[-1]

    def close(self) -> None:
        """Ends all started processes."""
        for process in self._started:
            process.kill()
            process.wait()

    @property
    def driver(self) -> subprocess.Popen:
        assert self._driver is not None
        return self._driver

    def workers(self) -> list[psutil.Process]:
        """Ray Train's workers on the second and third host."""
        found = []
        for pid in (pid for host in (1, 2) for pid in self._hosts.processes(host)):
            with contextlib.suppress(psutil.NoSuchProcess):  # other processes may end meanwhile
                process = psutil.Process(pid)
                found += [process] if "ray::RayTrainWorker" in " ".join(process.cmdline()) else []
        return found

    def ask(self, query: str) -> list[dict]:
        """Prometheus' answer now; empty if it does not answer."""
        done = subprocess.run(
            [*self._hosts.entering(0, self._folder / "ray"), sys.executable, "-S", "-c", _ASK, query],
            capture_output=True,
            text=True,
        )
        return json.loads(done.stdout)["data"]["result"] if done.returncode == 0 else []

    def value(self, query: str) -> float:
        """The one value of a query; NaN if there is none."""
        found = self.ask(query)
        return float(found[0]["value"][1]) if found else float("nan")

    def fires(self, alert: str) -> bool:
        return bool(self.ask(f'ALERTS{{alertname="{alert}", alertstate="firing", run="run"}}'))

    def wait_until(self, what: str, holds: Callable[[], bool]) -> None:
        """Returns once it holds, and prints after how many seconds. Fails after minutes."""
        began = time.monotonic()
        while not holds():
            if time.monotonic() - began > _SECONDS_FOR_A_CHANGE:
                logs = [f"{path}:\n{path.read_text()[-1000:]}" for path in sorted(self._folder.glob("[a-gi-z]*.log"))]
                pytest.fail(f"not so in time: {what}\n" + "\n".join(logs))
            time.sleep(0.3)
        now = time.monotonic()
        print(f"{now - self._began:6.1f} s, after {now - began:5.1f} s: {what}", flush=True)


def _hurried(text: str, ray_folder: Path) -> str:
    """A file of docker/prometheus with shorter times, and this cluster's folder for the container's."""
    text = re.sub(r"\b(\d+)m\b", lambda found: f"{int(found[1]) * _SECONDS_PER_MINUTE}s", text)
    text = re.sub(r"\b(\d+) \* 60\b", rf"\1 * {_SECONDS_PER_MINUTE}", text)
    return text.replace("interval: 15s", "interval: 1s").replace("/tmp/ray/", f"{ray_folder}/")


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Watched]:
    reason = reason_against() or (None if shutil.which("prometheus") else "prometheus is not installed")
    if reason:
        pytest.skip(reason)
    folder = Path("/tmp") / f"dr{os.getpid()}"
    with Hosts(3, folder) as hosts:
        monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
        for name, value in (
            ("ENDPOINT_URL", f"http://{hosts.address(0)}:8333"),
            ("ACCESS_KEY_ID", "test"),
            ("SECRET_ACCESS_KEY", "test"),
            ("DEFAULT_REGION", "us-east-1"),
            ("EC2_METADATA_DISABLED", "true"),
        ):
            monkeypatch.setenv(f"AWS_{name}", value)
        hosts.start_head(cpus=0)
        for host in (1, 2):
            hosts.start_node(host, cpus=1)
        watched = _Watched(hosts, folder)
        yield watched
        watched.close()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_killed_worker_a_starved_loader_and_other_failures_fire_alerts(watched: _Watched):
    s3 = watched.start_s3()
    watched.start_prometheus()
    watched.start_driver()
    watched.wait_until("both workers train", lambda: watched.value("count(ray_dist_resnet_loss)") == 2)
    watched.wait_until("every node is scraped", lambda: watched.value("sum(up)") >= 3)
    asked = [query for board in BOARDS for query in queries_of(board) if "ray_node_g" not in query]  # no GPU here
    quiet = [query for query in asked if "restarts" not in query and "ALERTS" not in query]
    for query in quiet:
        watched.wait_until(f"there are data for {query}", lambda query=query: bool(watched.ask(query)))
    assert watched.value("ray_dist_resnet_restarts") == 0
    assert not [alert for alert in ("WorkerLost", "InputBound", "TrainingStalled") if watched.fires(alert)]

    watched.workers()[0].kill()
    watched.wait_until("a killed worker fires an alert", lambda: watched.fires("WorkerLost"))
    for query in set(asked) - set(quiet):
        watched.wait_until(f"there are data for {query}", lambda query=query: bool(watched.ask(query)))
    watched.wait_until("both workers train again", lambda: watched.value("count(ray_dist_resnet_loss)") == 2)

    with _stuttering(s3):
        watched.wait_until("a starved loader fires an alert", lambda: watched.fires("InputBound"))
    watched.wait_until("a loader that is fed again is not", lambda: not watched.fires("InputBound"))
    watched.wait_until("undelivered points fire an alert", lambda: watched.fires("TrackingBacklog"))

    stopped = watched.workers()
    assert len(stopped) == 2
    for process in stopped:
        process.suspend()
    watched.wait_until("hung workers fire an alert", lambda: watched.fires("TrainingStalled"))
    watched.wait_until("a checkpoint that is too old fires an alert", lambda: watched.fires("CheckpointTooOld"))
    for process in stopped:
        with contextlib.suppress(psutil.NoSuchProcess):  # Ray may have been quicker.
            process.kill()
    watched.wait_until("workers that train again are not", lambda: not watched.fires("TrainingStalled"))

    watched._hosts.kill_node(2)
    watched.wait_until("a run on fewer workers fires an alert", lambda: watched.fires("FewerWorkers"))

    watched.driver.kill()
    watched.wait_until("a dead driver fires an alert", lambda: watched.fires("RunFailed"))

    watched.start_driver()
    steps = watched.value("max_over_time(max(ray_dist_resnet_step)[10m:1s])")
    watched.wait_until("the run resumes", lambda: watched.value("max(ray_dist_resnet_step)") > steps)
    watched.driver.send_signal(signal.SIGINT)
    watched.wait_until("the driver stops", lambda: watched.driver.poll() is not None)
    assert watched.value("min(min_over_time(ray_dist_resnet_running[1m]))") == 0
    until = time.monotonic() + 5 * _SECONDS_PER_MINUTE
    watched.wait_until("time passes", lambda: time.monotonic() > until)
    assert not watched.fires("RunFailed")


class _stuttering:  # noqa: N801
    """Within the block a process is stopped for 2.5 s of every 2.6."""

    def __init__(self, process: subprocess.Popen) -> None:
        self._process, self._over = process, threading.Event()
        self._thread = threading.Thread(target=self._stutter, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _stutter(self) -> None:
        while not self._over.is_set():
            os.killpg(self._process.pid, signal.SIGSTOP)
            self._over.wait(2.5)
            os.killpg(self._process.pid, signal.SIGCONT)
            self._over.wait(0.1)
