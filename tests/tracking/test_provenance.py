"""Provenance. Oracle: git and the installed distributions, asked directly."""

import importlib.metadata
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest

from dist_resnet.tracking import provenance


def test_the_commit_is_the_checkouts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DIST_RESNET_COMMIT", raising=False)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    if head.returncode:
        pytest.skip("not a git checkout")
    assert provenance.collect()["commit"].removesuffix("-dirty") == head.stdout.strip()


def test_a_container_image_states_its_commit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIST_RESNET_COMMIT", "abc123")
    assert provenance.collect()["commit"] == "abc123"


def test_versions_are_the_installed_ones():
    assert provenance.collect()["version.torch"] == importlib.metadata.version("torch")
    assert f"pyarrow=={importlib.metadata.version('pyarrow')}\n" in provenance.environment()


def _run_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this process one that runs a file, which a worker of pytest-xdist does not."""
    program = types.ModuleType("__main__")
    program.__file__ = "job.py"
    monkeypatch.setitem(sys.modules, "__main__", program)


def test_no_password_of_an_address_is_recorded(monkeypatch: pytest.MonkeyPatch):
    _run_a_file(monkeypatch)
    monkeypatch.setattr("sys.argv", ["job.py", "--execution.tracking.uri", "https://someone:secret@host/x"])
    assert provenance.collect()["command"] == "job.py --execution.tracking.uri https://***@host/x"


def test_a_notebook_has_no_command(monkeypatch: pytest.MonkeyPatch):
    _run_a_file(monkeypatch)
    assert "command" in provenance.collect()
    monkeypatch.setattr("sys.argv", ["ipykernel_launcher.py", "-f", "kernel-1.json"])
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    assert "command" not in provenance.collect()


def test_the_recorded_command_works_in_a_shell(monkeypatch: pytest.MonkeyPatch):
    _run_a_file(monkeypatch)
    given = ["job.py", "--data.train", "/data/set [v1]/train-*.parquet", "--execution.name", "it's"]
    monkeypatch.setattr("sys.argv", ["jobs/job.py", *given[1:]])
    assert shlex.split(provenance.collect()["command"]) == given
