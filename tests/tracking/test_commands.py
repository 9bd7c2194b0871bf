"""Printed commands. Oracle: the programs that a shell with that environment finds."""

from pathlib import Path

import pytest

from dist_resnet.tracking import commands


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment's folder in a project, with the two programs in it."""
    folder = tmp_path / "project" / ".venv"
    (folder / "bin").mkdir(parents=True)
    for name in ("python", "mlflow"):
        (folder / "bin" / name).write_text("#!/bin/sh\n")
        (folder / "bin" / name).chmod(0o755)
    return folder


def _command(environment: Path, variables: dict[str, str], folder: Path) -> str:
    return commands._python(variables, str(environment / "bin" / "python"), str(environment), folder)


def test_uv_run_is_printed_if_uv_started_this_process_in_its_project(environment: Path):
    # As `uv run` sets them for the process it starts.
    variables = {"UV": "/usr/bin/uv", "VIRTUAL_ENV": str(environment), "PATH": f"{environment}/bin:/usr/bin"}
    project = environment.parent
    assert _command(environment, variables, project) == "uv run"
    assert _command(environment, variables, project / "jobs") == "uv run"
    assert _command(environment, variables, Path("/")) == f"{environment}/bin/python"


def test_the_plain_name_is_printed_if_the_shell_finds_this_environment(environment: Path):
    project = environment.parent
    assert _command(environment, {"PATH": f"{environment}/bin:/usr/bin"}, project) == "python"
    assert _command(environment, {"PATH": "/nowhere"}, project) == f"{environment}/bin/python"
    (environment / "bin" / "mlflow").unlink()
    assert _command(environment, {"PATH": f"{environment}/bin"}, project) == f"{environment}/bin/python"


def test_a_jobs_path_is_absolute_outside_of_the_checkout(monkeypatch, tmp_path: Path):
    checkout = Path(__file__).parents[2]
    monkeypatch.setattr(commands, "python", lambda: "uv run")
    monkeypatch.chdir(checkout)
    assert commands.job("deliver_tracking") == "uv run jobs/deliver_tracking.py"
    monkeypatch.chdir(tmp_path)
    assert commands.job("deliver_tracking") == f"uv run {checkout}/jobs/deliver_tracking.py"


@pytest.mark.parametrize(
    ("runner", "mlflow"),
    [("uv run", "uv run mlflow"), ("python", "mlflow"), ("'/a b/python'", "'/a b/python' -m mlflow")],
)
def test_mlflow_is_run_the_same_way(runner: str, mlflow: str, monkeypatch):
    monkeypatch.setattr(commands, "python", lambda: runner)
    assert commands.look_at("sqlite:////a b/mlflow.db") == f"{mlflow} ui --backend-store-uri 'sqlite:////a b/mlflow.db'"
    assert commands.look_at("https://mlflow.example.org") == "https://mlflow.example.org"
