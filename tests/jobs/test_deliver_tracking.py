"""jobs/deliver_tracking.py as a user starts it. Oracles: its exit codes and lines, and MLflow's client."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from jobs.inside import JOBS, run_inside
from mlflow import MlflowClient

from dist_resnet.tracking.journal import Journal
from dist_resnet.tracking.mlflow.ledger import Ledger
from dist_resnet.tracking.mlflow.run_description import RunDescription
from dist_resnet.tracking.records import Metrics
from dist_resnet.tracking.run_directory import RunDirectory

POINTS = 2000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('delivery')}/mlflow.db"
    MlflowClient(uri).search_experiments()
    return uri


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two runs, each in an experiment of its own, that were trained while MLflow was away."""
    found = []
    for name in ("first", "second"):
        directory = RunDirectory(str(tmp_path / name))
        directory.write("recipe.json", b"{}")
        journal = Journal(directory)
        for step in range(1, POINTS + 1):
            journal.append(Metrics(step=step, values={"train/loss": 1.0 / step}))
        journal.commit()
        card = RunDescription(experiment=f"{tmp_path.name} {name}", name=name, params={}, tags={})
        Ledger(directory, "http://127.0.0.1:9").note_description(card, parent=None, every=1)
        found.append(directory.uri)
    return found


def test_each_run_is_shown_as_it_is_delivered(runs: list[str], store: str):
    done = run_inside("deliver_tracking", "--run", *runs, "--tracking-uri", store)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{run}: delivered" for run in runs]
    lines = [line for line in done.stderr.splitlines() if line.endswith("points delivered")]
    for name in ("first", "second"):
        own = [line for line in lines if line.startswith(f"{name}: ")]
        assert own[0] == f"{name}: 0/{POINTS} points delivered"
        assert own[-1] == f"{name}: {POINTS}/{POINTS} points delivered"
    again = run_inside("deliver_tracking", "--run", *runs, "--tracking-uri", store)
    assert (again.returncode, again.stdout) == (0, done.stdout)


def test_a_deleted_experiment_costs_its_own_runs_one_line_and_not_the_others(runs: list[str], store: str):
    client = MlflowClient(store)
    experiment = client.create_experiment(f"{Path(runs[0]).parent.name} first")
    client.delete_experiment(experiment)
    done = run_inside("deliver_tracking", "--run", *runs, "--tracking-uri", store)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if runs[0] in line]
    assert f"refuses: its experiment {Path(runs[0]).parent.name} first is deleted" in line
    assert f"experiments restore --experiment-id {experiment}`" in line
    assert done.stdout.splitlines() == [f"{runs[1]}: delivered"]
    elsewhere = run_inside("deliver_tracking", "--run", *runs, "--tracking-uri", store, "--experiment", "elsewhere")
    assert elsewhere.returncode == 0, elsewhere.stderr


@pytest.mark.parametrize("uri", ["./mlruns", "file:///data/mlruns", "sqlite:///:memory:", "mysql://user@127.0.0.1/x"])
def test_an_address_that_is_none_is_refused_wherever_it_comes_from(uri: str, runs: list[str], monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for arguments in ([], ["--tracking-uri", uri]):
        done = run_inside("deliver_tracking", "--run", *runs, *arguments)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("deliver_tracking.py: ")


def test_a_server_that_is_away_is_said_at_once_and_ctrl_c_ends_the_waiting(runs: list[str]):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
    command = [sys.executable, str(JOBS / "deliver_tracking.py"), "--run", *runs, "--tracking-uri", uri]
    environment = os.environ | {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    said = [process.stderr.readline() for _ in range(2)]
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert "does not answer" in said[0]
    assert said[1] == f"first: 0/{POINTS} points delivered\n"
    assert rest.splitlines()[-1].endswith("; the same command delivers the rest")
    assert "Traceback" not in rest
    assert process.returncode == 130
