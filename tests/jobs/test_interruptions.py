"""Ctrl-C and SIGTERM at every job, early. Oracle: a shell's exit codes, 130 and 143, and one line.

A job's imports are watched through Python's own `-X importtime`, so that a signal comes in the middle of a known one.
"""

import signal
import subprocess
import sys
from pathlib import Path

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
