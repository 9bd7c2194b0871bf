"""Ctrl-C and SIGTERM at every job, early. Oracle: a shell's exit codes, 130 and 143, and one line.

A job's imports are watched through Python's own `-X importtime`, so that a signal comes in the middle of a known one.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

JOBS = Path(__file__).parents[2] / "jobs"
# Arguments with which a job gets as far as its late imports, and a module that comes then.
LATE = {
    "cifar_preact164": ((), "torch"),
    "imagenet_preact200": (("--demo",), "torch"),
    "cifar_ablation": (("--demo",), "torch"),
    "evaluate": (("--run", "/nowhere"), "torch"),
    "probe_signal": ((), "torch"),
    "register_model": (("--run", "/nowhere"), "torch"),
    "pull_model": (("--model", "models:/a/1", "--target", "x"), "torch"),
    "deliver_tracking": (("--run", "/nowhere"), "mlflow"),
    "prepare_cifar": (("--source", "/nowhere", "--target", "x"), "pyarrow"),
    "prepare_imagenet": (("--check", "/nowhere"), "pyarrow"),
    "runs": (("list", "--storage", "/nowhere"), "pyarrow"),
}


def _interrupted(name: str, *arguments: str, importing: str, by: int = signal.SIGINT) -> tuple[int, list[str]]:
    """(exit code, what it said) of a job that gets a signal when it has imported a part of a module."""
    command = [sys.executable, "-X", "importtime", str(JOBS / f"{name}.py"), *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as job:
        assert job.stderr is not None
        said = []
        for line in job.stderr:
            if not line.startswith("import time:"):
                said.append(line)
            elif importing and line.rpartition("|")[2].strip().startswith(f"{importing}."):
                importing = ""
                job.send_signal(by)
        return job.wait(), said


@pytest.mark.parametrize("name", LATE)
def test_ctrl_c_while_a_job_imports_is_one_line_and_130(name: str):
    arguments, importing = LATE[name]
    code, said = _interrupted(name, *arguments, importing=importing)
    assert code == 130, said
    (line,) = said
    assert line.startswith(f"{name}: interrupted")


@pytest.mark.parametrize("name", ["cifar_preact164", "prepare_cifar"])
def test_ctrl_c_before_a_job_reads_its_options_is_one_line_and_130(name: str):
    code, said = _interrupted(name, "--help", importing="tyro")
    assert code == 130
    assert said == [f"{name}: interrupted\n"]


def test_sigterm_is_one_line_and_143():
    code, said = _interrupted("evaluate", "--run", "/nowhere", importing="torch", by=signal.SIGTERM)
    assert code == 143
    assert said == ["evaluate: interrupted\n"]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("process", ["gcs_server", "raylet"])
def test_a_signal_while_ray_starts_is_one_line_and_leaves_no_process(tmp_path: Path, process: str, number: int):
    options = ["--demo", "--model.depth", "8", "--execution.storage", str(tmp_path)]
    command = [sys.executable, str(JOBS / "cifar_preact164.py"), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as job:
        started = _wait_for(psutil.Process(job.pid), process)
        os.killpg(job.pid, number)
        _, said = job.communicate(timeout=100)
    assert job.returncode == 128 + number, said
    # Ray's own lines on how it starts may come before.
    assert said.splitlines()[-1] == "cifar_preact164: interrupted; the same command resumes from the newest checkpoint"
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not alive


def _wait_for(job: psutil.Process, name: str) -> list[psutil.Process]:
    """The processes that a job has started, as soon as one is of that name."""
    while job.is_running():
        children = job.children(recursive=True)
        if any(name in child.name() for child in children):
            return children
        time.sleep(0.05)
    raise AssertionError(f"no {name} was started")
