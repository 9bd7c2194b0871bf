"""Operations from the terminal. Oracle: a real job on a real Ray, and its own log and journal."""

import json
import os
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import pytest
from jobs.inside import run_inside

JOBS = Path(__file__).parents[2] / "jobs"
_SECONDS_FOR_A_CHANGE = 240.0


def _runs(*arguments: str, server: str, code: int = 0) -> subprocess.CompletedProcess:
    done = _inside(*arguments, server=server)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def _shown(name: str, storage: Sequence[str], server: str) -> dict:
    """What `show --json` prints; an empty overview before the run exists."""
    done = _inside("show", name, "--json", *storage, server=server)
    return json.loads(done.stdout) if done.returncode == 0 else {"step": 0, "job": None, "started": {}}


def _inside(*arguments: str, server: str) -> subprocess.CompletedProcess:
    """Runs the command in this process: a new one would import for seconds, on the cores on which the job trains."""
    with mock.patch.dict(os.environ, _environment(server)):
        return run_inside("runs", *arguments)


def _log(name: str, storage: Sequence[str], server: str) -> str:
    """What `logs` prints of a job that has ended; in its own process, because Ray's client leaves sockets open."""
    command = _command("logs", name, *storage)
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=_environment(server))
    assert done.returncode == 0, done.stderr
    return done.stdout


def _command(*arguments: str) -> list[str]:
    return [sys.executable, str(JOBS / "runs.py"), *arguments]


def _environment(server: str) -> dict[str, str]:
    return dict(os.environ) | {"RAY_API_SERVER_ADDRESS": server}


def _wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SECONDS_FOR_A_CHANGE
    while not what():
        assert time.monotonic() < deadline
        time.sleep(1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.ray
def test_a_submitted_run_is_shown_followed_stopped_and_resumed(ray_cluster: str, tmp_path: Path):
    from ray.job_submission import JobSubmissionClient

    storage = ("--storage", str(tmp_path))

    def shown() -> dict:
        return _shown("first", storage, ray_cluster)

    options = ["--demo", "--model.depth", "8", "--epochs", "1000", "--execution.cpus-per-worker", "1"]
    options += ["--execution.workers", "2", "--execution.name", "first", "--execution.storage", str(tmp_path)]
    job = shlex.join([sys.executable, str(JOBS / "cifar_preact164.py"), *options])
    submitted = JobSubmissionClient(ray_cluster).submit_job(entrypoint=job)
    _wait_until(lambda: shown()["step"] >= 20)
    facts = shown()
    assert (facts["status"], facts["world_size"], facts["total_steps"]) == ("open", 2, 30_000)
    assert facts["images_per_second"] > 0
    assert facts["seconds_left"] > 0
    assert (facts["job"]["submission_id"], facts["job"]["status"]) == (submitted, "RUNNING")
    assert f"{submitted} RUNNING" in _runs("list", *storage, server=ray_cluster).stdout
    assert (
        f"first is running already, as {submitted}"
        in _runs("resume", "first", *storage, server=ray_cluster, code=2).stderr
    )

    log = tmp_path / "followed.log"
    with log.open("wb") as file:
        follower = subprocess.Popen(
            _command("logs", "first", *storage), stdout=file, stderr=file, env=_environment(ray_cluster)
        )
        done = _runs("stop", "first", *storage, server=ray_cluster).stdout
        assert follower.wait(timeout=60) == 0
    stopped = shown()
    assert stopped["status"] == "stopped"
    assert stopped["checkpoint_step"] == stopped["step"] >= facts["step"]
    assert f"first: stopped, 2 workers, step {stopped['step']}/30000" in done
    assert f"stopped after step {stopped['step']} of 30000" in log.read_text()
    assert "is not running: it is stopped" in _runs("stop", "first", *storage, server=ray_cluster, code=2).stderr

    again = _runs("resume", "first", *storage, server=ray_cluster).stdout.strip()
    assert again != submitted
    _wait_until(lambda: shown()["step"] > stopped["step"])
    resumed = shown()
    assert (resumed["status"], resumed["restarts"], resumed["job"]["submission_id"]) == ("open", 0, again)
    _runs("stop", "first", *storage, server=ray_cluster)
    assert "stopped after step" in _log("first", storage, ray_cluster)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.ray
def test_a_submitted_sweep_is_shown_measured_and_stopped_as_a_whole(ray_cluster: str, tmp_path: Path):
    import ray
    from ray.job_submission import JobSubmissionClient

    storage = ("--storage", str(tmp_path))

    def shown() -> dict:
        return _shown("grid", storage, ray_cluster)

    options = ["--demo", "--tables", "1", "--iterations", "30000", "--execution.name", "grid"]
    options += ["--shortcuts", "identity", "conv1x1", "--placements", "original", "--execution.cpus-per-worker", "1"]
    options += ["--execution.storage", str(tmp_path), "--execution.precision", "fp32"]
    job = shlex.join([sys.executable, str(JOBS / "cifar_ablation.py"), *options])
    submitted = JobSubmissionClient(ray_cluster).submit_job(entrypoint=job)
    _wait_until(lambda: any(trial["step"] >= 20 for trial in shown()["started"].values()))
    facts = shown()
    assert (facts["status"], set(facts["trials"].values()) <= {"started", "waiting"}) == ("open", True)
    assert facts["job"]["submission_id"] == submitted
    assert f"grid: open, {len(facts['trials'])} trials" in _runs("list", *storage, server=ray_cluster).stdout

    started = next(iter(facts["started"]))
    url = next(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in ray.nodes())

    def exported() -> bool:
        lines = urllib.request.urlopen(url).read().decode().splitlines()
        return all(
            any(line.startswith(name) and f'run="grid/{started}"' in line for line in lines)
            for name in ("ray_dist_resnet_step{", "ray_dist_resnet_running{", "ray_dist_resnet_checkpoint_step{")
        )

    _wait_until(exported)
    done = _runs("stop", "grid", *storage, server=ray_cluster).stdout
    assert done.startswith("grid: stopped, ")
    trials = shown()["started"].values()
    assert {trial["status"] for trial in trials} == {"stopped"}
    assert all(trial["checkpoint_step"] == trial["step"] >= 1 for trial in trials)
    assert "interrupted; the same command continues" in _log("grid", storage, ray_cluster)

    again = _runs("resume", "grid", *storage, server=ray_cluster).stdout.strip()
    assert again != submitted
    before = {trial["name"]: trial["step"] for trial in trials}
    _wait_until(lambda: any(trial["step"] > before.get(name, 0) > 0 for name, trial in shown()["started"].items()))
    _runs("stop", "grid", *storage, server=ray_cluster)


def test_without_a_cluster_only_the_directory_is_shown(tmp_path: Path):
    run = tmp_path / "first"
    run.mkdir()
    (run / "recipe.json").write_text('{"recipe": {"global_batch": 32}}')
    done = _runs("list", "--storage", str(tmp_path), server="http://127.0.0.1:9")
    assert done.stdout == "first: open\n"
    assert "showing only what the directory says: Ray's job server is unreachable" in done.stderr
    done = _runs("resume", "first", "--storage", str(tmp_path), server="http://127.0.0.1:9", code=2)
    assert "name the cluster by RAY_API_SERVER_ADDRESS" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["show"], "list takes no name and the other commands need one, got show"),
        (["list", "first"], "list takes no name and the other commands need one, got list first"),
        (["drain", "first"], "drain"),
        (["show", "none", "--storage", "/nowhere"], "/nowhere/none is not a run"),
    ],
)
def test_bad_input_exits_with_2_and_one_line(arguments: Sequence[str], complaint, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    done = run_inside("runs", *arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
