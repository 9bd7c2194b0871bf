"""Refusals of MLflow's. Oracles: what a real sqlite store does, and what MLflow's own client finds in it afterwards.

Root may write where permissions forbid it: stores are made unwritable by the file system's immutable flag.
"""

import contextlib
import http.server
import os
import shlex
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from oracle.immutable import immutable

from dist_resnet.launch.follow import Lookout, RunFollower
from dist_resnet.tracking.journal import Journal
from dist_resnet.tracking.mlflow.delivery import deliver
from dist_resnet.tracking.mlflow.ledger import Ledger
from dist_resnet.tracking.mlflow.refusal import RefusedError
from dist_resnet.tracking.mlflow.run_description import RunDescription
from dist_resnet.tracking.mlflow.sink import MlflowSink
from dist_resnet.tracking.records import Metrics
from dist_resnet.tracking.run_directory import RunDirectory

DESCRIPTION = RunDescription(experiment="ours", name="run", params={"model.depth": 20}, tags={"fingerprint": "abc"})


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """A run's directory with three points of one metric."""
    directory = RunDirectory(str(tmp_path / "a run"))
    directory.write("recipe.json", b"{}")
    _train(directory, range(1, 4))
    return directory


@pytest.fixture
def tracked(directory: RunDirectory) -> RunDirectory:
    """The same, tracked once at a server that was down."""
    Ledger(directory, "http://127.0.0.1:9").note_description(DESCRIPTION, parent=None, every=1)
    return directory


def _train(directory: RunDirectory, steps: range) -> None:
    journal = Journal(directory)
    for step in steps:
        journal.append(Metrics(step=step, values={"train/loss": 1.0 / step}))
    journal.commit()


def _steps(uri: str, run_id: str) -> list[int]:
    return [point.step for point in MlflowClient(uri).get_metric_history(run_id, "train/loss")]


def _run_id(directory: RunDirectory, uri: str) -> str:
    return directory.read_json("mlflow.json")["servers"][uri]["run_id"]


class _Followed(MlflowSink):
    """A sink that follows a journal as in a run's driver."""

    def __init__(self, uri: str, directory: RunDirectory, description: RunDescription, **options) -> None:
        follower = RunFollower(directory)
        super().__init__(uri, directory, description, records=follower.look(), **options)
        follower.report(self.take)
        self._lookout = Lookout(follower.look)

    def close(self, *arguments, **options) -> None:
        self._lookout.close(wait_seconds=5)
        super().close(*arguments, **options)


def _closed(sink: MlflowSink) -> float:
    """Ends a sink; returns the seconds this took."""
    start = time.monotonic()
    sink.close("FINISHED", {}, wait_seconds=60)
    return time.monotonic() - start


def _wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_deleted_experiment_is_logged_once_with_the_command_that_restores_it(own_store, directory, caplog):
    client = MlflowClient(own_store)
    experiment = client.create_experiment("ours")
    client.delete_experiment(experiment)
    sink = _Followed(own_store, directory, DESCRIPTION)
    _wait_until(lambda: sink.refusal)
    assert _closed(sink) < 20
    # Threads of an earlier test may still be trying a server that is down.
    own = [record for record in caplog.records if record.name.startswith("dist_resnet")]
    (at_once, at_the_end) = [record.getMessage() for record in own]
    assert f"mlflow experiments restore --experiment-id {experiment}`, or use another --execution.trac" in at_once
    assert "training continues" in at_once
    assert not any("does not answer" in record.getMessage() for record in own)
    assert "3 points wait in" in at_the_end
    assert f"jobs/deliver_tracking.py --run '{directory.uri}' --tracking-uri {own_store}" in at_the_end

    command = at_once.partition("`")[2].partition("`")[0]
    variable, *words = shlex.split(command)
    assert variable == f"MLFLOW_TRACKING_URI={own_store}"
    arguments = words[words.index("experiments") :]
    environment = os.environ | {"MLFLOW_TRACKING_URI": own_store}
    subprocess.run([sys.executable, "-m", "mlflow", *arguments], env=environment, check=True, capture_output=True)
    assert deliver(directory, own_store, wait_seconds=60)
    run = MlflowClient(own_store).get_run(_run_id(directory, own_store))
    assert run.info.experiment_id == experiment
    assert _steps(own_store, run.info.run_id) == [1, 2, 3]


def test_an_experiment_deleted_and_restored_while_training_has_every_point_at_the_end(own_store, directory, caplog):
    sink = _Followed(own_store, directory, DESCRIPTION)
    _wait_until(lambda: sink.run_id and not sink.waiting_points)
    client = MlflowClient(own_store)
    experiment = client.get_run(sink.run_id).info.experiment_id
    client.delete_experiment(experiment)
    _train(directory, range(4, 6))
    _wait_until(lambda: sink.refusal)
    assert f"experiments restore --experiment-id {experiment}`" in caplog.text
    _train(directory, range(6, 8))
    _wait_until(lambda: sink.waiting_points == 4)
    client.restore_experiment(experiment)
    _closed(sink)
    assert sink.is_delivered
    assert _steps(own_store, sink.run_id) == [1, 2, 3, 4, 5, 6, 7]


def test_a_deleted_run_is_logged_with_the_command_that_restores_it(own_store, directory, caplog):
    sink = _Followed(own_store, directory, DESCRIPTION)
    _wait_until(lambda: sink.run_id and not sink.waiting_points)
    client = MlflowClient(own_store)
    client.delete_run(sink.run_id)
    _train(directory, range(4, 6))
    _wait_until(lambda: sink.refusal)
    assert _closed(sink) < 20
    assert f"mlflow runs restore --run-id {sink.run_id}`" in caplog.text
    assert "2 points wait in" in caplog.text
    with pytest.raises(RefusedError, match=f"runs restore --run-id {sink.run_id}"):
        deliver(directory, own_store, wait_seconds=60)
    client.restore_run(sink.run_id)
    assert deliver(directory, own_store, wait_seconds=60)
    assert _steps(own_store, sink.run_id) == [1, 2, 3, 4, 5]


def test_another_experiment_accepts_what_a_deleted_one_refuses(own_store, directory):
    sink = _Followed(own_store, directory, DESCRIPTION)
    _closed(sink)
    client = MlflowClient(own_store)
    client.delete_experiment(client.get_run(sink.run_id).info.experiment_id)
    _train(directory, range(4, 6))
    with pytest.raises(RefusedError, match="its experiment ours is deleted"):
        deliver(directory, own_store, wait_seconds=60)
    assert deliver(directory, own_store, wait_seconds=60, experiment="another")
    run = client.get_run(_run_id(directory, own_store))
    assert client.get_experiment(run.info.experiment_id).name == "another"
    assert _steps(own_store, run.info.run_id) == [1, 2, 3, 4, 5]


def test_a_run_that_the_store_no_longer_has_is_created_again(own_store, store, directory):
    first = _Followed(own_store, directory, DESCRIPTION)
    _closed(first)
    _train(directory, range(4, 6))
    file = Path(own_store.removeprefix("sqlite:///"))
    file.write_bytes(Path(store.removeprefix("sqlite:///")).read_bytes())
    assert deliver(directory, own_store, wait_seconds=60)
    assert _run_id(directory, own_store) != first.run_id
    assert _steps(own_store, _run_id(directory, own_store)) == [1, 2, 3, 4, 5]


def test_a_store_that_is_removed_while_training_refuses_and_the_next_process_creates_another(
    own_store, store, directory, caplog
):
    sink = _Followed(own_store, directory, DESCRIPTION)
    _wait_until(lambda: sink.run_id and not sink.waiting_points)
    file = Path(own_store.removeprefix("sqlite:///"))
    file.unlink()
    _train(directory, range(4, 6))
    assert _closed(sink) < 20
    assert f"refuses: its database {file} is gone; put it back, or let" in caplog.text
    assert "2 points wait in" in caplog.text
    file.write_bytes(Path(store.removeprefix("sqlite:///")).read_bytes())
    job = Path(__file__).parents[3] / "jobs" / "deliver_tracking.py"
    command = [sys.executable, str(job), "--run", directory.uri, "--tracking-uri", own_store]
    delivered = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert delivered.returncode == 0, delivered.stderr
    assert "no longer has the run" in delivered.stderr
    made = Ledger(directory, own_store).run_id()
    assert made not in (None, sink.run_id)
    query = "SELECT step FROM metrics WHERE key = 'train/loss' AND run_uuid = ? ORDER BY step"
    with contextlib.closing(sqlite3.connect(file)) as database:
        steps = database.execute(query, (made,)).fetchall()
    assert steps == [(1,), (2,), (3,), (4,), (5,)]


def test_a_store_that_becomes_read_only_refuses_and_is_not_waited_for(own_store, directory, caplog):
    sink = _Followed(own_store, directory, DESCRIPTION)
    _wait_until(lambda: sink.run_id and not sink.waiting_points)
    with immutable(Path(own_store.removeprefix("sqlite:///"))):
        _train(directory, range(4, 6))
        _wait_until(lambda: sink.refusal)
        assert _closed(sink) < 20
    assert caplog.text.count("refuses: the tracking store") == 1
    assert "cannot be written (attempt to write a readonly database)" in caplog.text
    assert "2 points wait in" in caplog.text
    assert deliver(directory, own_store, wait_seconds=60)
    assert _steps(own_store, sink.run_id) == [1, 2, 3, 4, 5]


def test_a_store_whose_folder_becomes_read_only_refuses(own_store, tracked):
    folder = Path(own_store.removeprefix("sqlite:///")).parent
    with immutable(folder), pytest.raises(RefusedError, match="cannot be written"):
        deliver(tracked, own_store, wait_seconds=60)


def test_a_file_that_is_not_a_database_refuses(tracked, tmp_path):
    (tmp_path / "notes.db").write_text("no database " * 100)
    with pytest.raises(RefusedError, match="is not a sqlite database"):
        deliver(tracked, f"sqlite:///{tmp_path}/notes.db", wait_seconds=60)


def test_a_schema_of_another_version_refuses_with_the_command_that_upgrades_it(own_store, tracked):
    with contextlib.closing(sqlite3.connect(own_store.removeprefix("sqlite:///"))) as database:
        database.execute("UPDATE alembic_version SET version_num = 'another'")
        database.commit()
    with pytest.raises(RefusedError, match=f"mlflow db upgrade {own_store}"):
        deliver(tracked, own_store, wait_seconds=60)


def test_a_database_that_is_locked_is_an_outage(own_store, tracked, caplog):
    with contextlib.closing(sqlite3.connect(own_store.removeprefix("sqlite:///"))) as database:
        database.execute("BEGIN EXCLUSIVE")
        assert not deliver(tracked, own_store, wait_seconds=1)
    assert "does not answer" in caplog.text
    assert deliver(tracked, own_store, wait_seconds=60)


class _Gate(http.server.BaseHTTPRequestHandler):
    """A gateway that rejects everybody."""

    status, body, asked = 0, b"", 0

    def _answer(self) -> None:
        type(self).asked += 1
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_GET = do_POST = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("body", [b"<html>no entry", b'{"message": "no entry"}', b"{}"])
@pytest.mark.parametrize(
    ("status", "fix"),
    [(401, "set MLFLOW_TRACKING_USERNAME"), (403, "permission to edit"), (404, "there is no MLflow there")],
)
def test_a_gateway_that_rejects_everybody_refuses(status: int, fix: str, body: bytes, directory, caplog):
    gate = type("Gate", (_Gate,), {"status": status, "body": body})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), gate) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sink = _Followed(f"http://127.0.0.1:{server.server_address[1]}", directory, DESCRIPTION, seconds_between=0.05)
        _wait_until(lambda: sink.refusal)
        asked = gate.asked
        time.sleep(1)  # Time for twenty retries, none of which may come.
        assert gate.asked == asked
        assert _closed(sink) < 20
        server.shutdown()
    assert caplog.text.count("refuses: ") == 1
    assert fix in caplog.text
    assert "3 points wait in" in caplog.text
    assert "does not answer" not in caplog.text


def test_a_child_of_a_refused_parent_does_not_wait(own_store, directory, tmp_path, caplog):
    client = MlflowClient(own_store)
    client.delete_experiment(client.create_experiment("ours"))
    above = RunDirectory(str(tmp_path / "sweep"))
    above.write("recipe.json", b"{}")
    parent = _Followed(own_store, above, DESCRIPTION)
    child = _Followed(own_store, directory, DESCRIPTION, parent=parent)
    _wait_until(lambda: child.refusal)
    assert _closed(child) < 20
    assert _closed(parent) < 20
    assert caplog.text.count("refuses: ") == 1
    with pytest.raises(RefusedError, match="experiments restore"):
        deliver(directory, own_store, wait_seconds=60)


def test_files_that_cannot_be_stored_refuse_and_are_delivered_later(own_store, directory, caplog):
    sink = _Followed(own_store, directory, DESCRIPTION)
    _wait_until(lambda: sink.run_id and not sink.waiting_points)
    client = MlflowClient(own_store)
    folder = Path(client.get_run(sink.run_id).info.artifact_uri.removeprefix("file://"))
    folder.mkdir(parents=True, exist_ok=True)
    with immutable(folder):
        start = time.monotonic()
        sink.close("FINISHED", {"curve.png": b"image"}, wait_seconds=60)
        assert time.monotonic() - start < 20
    assert "its folder for files cannot be written" in caplog.text
    assert deliver(directory, own_store, wait_seconds=60)
    assert [file.path for file in client.list_artifacts(sink.run_id)] == ["curve.png"]
