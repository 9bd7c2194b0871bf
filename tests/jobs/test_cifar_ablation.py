"""The ablation job as a user starts it. Oracle: exit codes, lines, MLflow's client, and real signals to the driver."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from jobs.inside import run_inside
from mlflow import MlflowClient

from dist_resnet.data.prepare.demo import write_demo

JOB = Path(__file__).parents[2] / "jobs" / "cifar_ablation.py"
SMALL = ("--demo", "--tables", "1", "--depths", "8", "--execution.precision", "fp32")


def _run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(JOB), *arguments], capture_output=True, text=True, timeout=280, check=False
    )


@pytest.fixture(scope="module")
def ten_classes(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options that name images of ten classes as CIFAR-10's and, wrongly, as CIFAR-100's."""
    folder = tmp_path_factory.mktemp("ten")
    train, validation = write_demo(str(folder), size=32, num_classes=10, train_images=96, validation_images=40, seed=0)
    names = ("--data.train", "--data.validation", "--data.train100", "--data.validation100")
    return tuple(word for name, uri in zip(names, (train, validation) * 2, strict=True) for word in (name, uri))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--tables", "7"], "unknown table '7'; allowed are 1, 2, 3, replication"),
        (["--cells", "table1/nothing/110"], "unknown cell 'table1/nothing/110'"),
        (["--depths", "21"], "no network has 21 layers"),
        (["--shortcuts", "conv3x3"], "conv3x3"),
        (["--iterations", "0"], "iterations must be at least 1, got 0"),
        (["--global-batch", "33"], "global_batch must be even"),
        (["--datasets", "cifar100"], "cifar100 has 100 classes, but the shards at"),
        (["--execution.workers", "2"], "execution.workers"),
        (["--data.train", "/nowhere/*.parquet"], "no Parquet shards"),
        (["--report-only"], "is not a sweep"),
    ],
)
def test_bad_input_exits_with_2_and_one_line_and_starts_nothing(arguments, complaint, ten_classes, tmp_path):
    options = ("--global-batch", "32", "--execution.storage", str(tmp_path))
    done = run_inside("cifar_ablation", *ten_classes, *options, *arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("sweep.json"))


@pytest.mark.ray
def test_a_gpu_fraction_that_cannot_fit_exits_with_2_and_starts_no_trial(ten_classes, tmp_path):
    options = ("--global-batch", "32", "--execution.storage", str(tmp_path), "--execution.device", "cpu")
    done = _run(*ten_classes, *options, "--trials-per-gpu", "4")
    assert done.returncode == 2
    assert "--trials-per-gpu 4 cannot fit" in done.stderr.strip().splitlines()[-1]
    assert not list(tmp_path.rglob("sweep.json"))


def test_the_list_has_the_published_cells_and_costs_no_images():
    options = ("--tables", "1", "replication", "--global-batch", "4", "--execution.precision", "fp32")
    done = run_inside("cifar_ablation", "--list", *options)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()[1:-2]}
    assert len(lines) == 11 + 11
    assert lines["table1/exclusive_gating_bias-6/110"][0] == "8.70"
    assert lines["table1/dropout/110"][0] == "fail"
    assert lines["replication/conv1x1-full_preactivation/20"][0] == "8.16"


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.ray
def test_ctrl_c_saves_checkpoints_ends_with_130_leaves_no_process_and_says_so_in_mlflow(tmp_path):
    shortcuts = ("--shortcuts", "identity", "conv1x1", "dropout")
    driver = _start(tmp_path, "sweep", *shortcuts, "--iterations", "30000", "--execution.cpus-per-worker", "1")
    _wait_until(lambda: _points(tmp_path / "sweep" / "table1-original-8-seed0") > 5, driver)
    started = psutil.Process(driver.pid).children(recursive=True)
    assert any("ImplicitFunc" in process.name() for process in started)
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=120)
    assert driver.returncode == 130
    assert "interrupted; the same command continues the sweep" in said
    assert "Traceback" not in said
    assert psutil.wait_procs(started, timeout=30)[1] == []
    begun = [path.parent for path in (tmp_path / "sweep").glob("*-seed0/journal")]
    assert begun
    for run in begun:
        last = _records(run)[-1]
        assert last["kind"] == "stopped"
        assert (run / "checkpoints" / f"step_{last['step']:08d}").is_dir(), list((run / "checkpoints").iterdir())
    assert not list((tmp_path / "sweep").glob("*-seed0/summary.json"))
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("dist_resnet")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1 + len(begun)
    assert {run.info.status for run in runs} == {"KILLED"}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.chaos
def test_a_killed_driver_is_continued_by_the_same_command(tmp_path):
    options = ("--shortcuts", "identity", "conv1x1", "dropout", "--iterations", "300")
    _finish(_start(tmp_path, "whole", *options))
    driver = _start(tmp_path, "broken", *options)
    folder = tmp_path / "broken"
    names = sorted(path.name for path in (tmp_path / "whole").glob("*-seed0"))
    assert len(names) == 3

    def one_is_done_and_one_is_saved() -> bool:
        done = [name for name in names if (folder / name / "summary.json").exists()]
        saved = [name for name in names if (folder / name / "checkpoints").exists() and name not in done]
        return bool(done) and bool(saved)

    _wait_until(one_is_done_and_one_is_saved, driver)
    started = [each for each in psutil.Process(driver.pid).children(recursive=True) if "ImplicitFunc" in each.name()]
    assert started
    driver.kill()
    driver.communicate()
    # Ray's own agents take longer to see that they are alone.
    assert psutil.wait_procs(started, timeout=60)[1] == []
    done = [name for name in names if (folder / name / "summary.json").exists()]
    files = {path: path.stat().st_mtime_ns for name in done for path in (folder / name).rglob("*") if path.is_file()}
    _finish(_start(tmp_path, "broken", *options))
    assert {path: path.stat().st_mtime_ns for path in files} == files
    starts = {
        name: [each["start_step"] for each in _records(folder / name) if each["kind"] == "session"] for name in names
    }
    assert any(len(steps) == 2 and steps[1] > 0 for steps in starts.values())
    for name in names:
        whole, broken = (
            json.loads((tmp_path / sweep / name / "summary.json").read_text()) for sweep in ("whole", "broken")
        )
        assert broken["weights_sha256"] == whole["weights_sha256"]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("dist_resnet")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 2 * (1 + 3)
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_killed_sweep_that_is_continued_stops_the_same_trials_early(tmp_path):
    options = ("--early-stop", "--shortcuts", "identity", "constant_scaling", "--iterations", "64")
    _finish(_start(tmp_path, "whole", *options))
    whole = _ends(tmp_path / "whole")
    assert set(whole.values()) == {"stopped", "finished"}
    driver = _start(tmp_path, "broken", *options)
    _wait_until(lambda: "stopped" in _ends(tmp_path / "broken").values(), driver)
    driver.kill()
    driver.communicate()
    assert len(_ends(tmp_path / "broken")) < len(whole)
    _finish(_start(tmp_path, "broken", *options))
    assert _ends(tmp_path / "broken") == whole


def _ends(sweep: Path) -> dict[str, str]:
    """How each trial that is over has ended."""
    return {path.parent.name: json.loads(path.read_text())["status"] for path in sweep.glob("*-seed0/summary.json")}


# A shell has what it starts in the background ignore Ctrl-C, and its children inherit that.
_HEARING_CTRL_C = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)


def _start(storage: Path, name: str, *arguments: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-c",
        _HEARING_CTRL_C,
        sys.executable,
        str(JOB),
        *SMALL,
        "--execution.storage",
        str(storage),
        "--execution.name",
        name,
    ]
    return subprocess.Popen(
        [*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )


def _finish(driver: subprocess.Popen) -> None:
    _, said = driver.communicate(timeout=400)
    assert driver.returncode == 0, said


def _wait_until(holds: Callable[[], bool], driver: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while not holds():
        assert driver.poll() is None, driver.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _points(run: Path) -> int:
    return sum(record["kind"] == "metrics" for record in _records(run))


def _records(run: Path) -> list[dict]:
    paths = sorted((run / "journal").glob("*.jsonl"))
    lines = [line for path in paths for line in path.read_text().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith("\n")]
