"""Delivery to MLflow. Oracle: what MLflow's own client reads back, from sqlite and from a real server over HTTP."""

import http.server
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from dist_resnet.launch.follow import RunFollower
from dist_resnet.tracking.journal import Journal, read_journal
from dist_resnet.tracking.mlflow.delivery import deliver
from dist_resnet.tracking.mlflow.run_description import DataSet, RunDescription
from dist_resnet.tracking.mlflow.sink import MlflowSink
from dist_resnet.tracking.records import Metrics, Session
from dist_resnet.tracking.run_directory import RunDirectory

DESCRIPTION = RunDescription(
    experiment="tests",
    name="run",
    params={"model.depth": 20, "seed": 0},
    tags={"fingerprint": "abc"},
    texts={"recipe.json": "{}"},
)


def _journal(directory: RunDirectory, start_step: int, steps: range) -> None:
    directory.write("recipe.json", b"{}")
    journal = Journal(directory)
    journal.append(Session(start_step=start_step, world_size=2, device="CPU, 1 threads each"))
    for step in steps:
        journal.append(Metrics(step=step, values={"train/loss": 1.0 / step, "train/top1_error": 0.5}))
    journal.commit()


def _sink(uri: str, directory: RunDirectory, description: RunDescription = DESCRIPTION, **options) -> MlflowSink:
    """A sink that has the journal so far."""
    return MlflowSink(uri, directory, description, records=read_journal(directory), **options)


def _points(uri: str, run_id: str, key: str = "train/loss") -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in MlflowClient(uri).get_metric_history(run_id, key)]


def test_a_finished_run_has_its_points_parameters_tags_and_files(store: str, tmp_path: Path):
    directory = RunDirectory(str(tmp_path))
    _journal(directory, 0, range(1, 2000))
    sink = _sink(store, directory)
    sink.close("FINISHED", {"training_curve.png": b"image"})
    client = MlflowClient(store)
    run = client.get_run(sink.run_id)
    assert _points(store, sink.run_id) == [(step, pytest.approx(1 / step)) for step in range(1, 2000)]
    assert run.data.params == {"model.depth": "20", "seed": "0"}
    assert run.data.tags["fingerprint"] == "abc"
    assert run.data.tags["hardware.workers"] == "2 x CPU, 1 threads each"
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    names = sorted(file.path for file in client.list_artifacts(sink.run_id))
    assert names == ["recipe.json", "training_curve.png"]


def test_a_continued_run_is_the_same_run_without_doubled_points(store: str, tmp_path: Path):
    directory = RunDirectory(str(tmp_path))
    _journal(directory, 0, range(1, 8))
    first = _sink(store, directory)
    first.close("KILLED", {})
    _journal(directory, 4, range(5, 11))
    second = _sink(store, directory)
    second.close("FINISHED", {})
    assert second.run_id == first.run_id
    assert [step for step, _ in _points(store, second.run_id)] == list(range(1, 11))
    assert MlflowClient(store).get_run(second.run_id).info.status == "FINISHED"


def test_a_batch_sent_twice_adds_no_points(store: str, tmp_path: Path):
    directory = RunDirectory(str(tmp_path))
    _journal(directory, 0, range(1, 6))
    first = _sink(store, directory)
    first.close("KILLED", {})
    # As if the answer to the last batch had been lost: the position was never saved.
    MlflowClient(store).set_tag(first.run_id, "dist_resnet.journal_position", "0")
    second = _sink(store, directory)
    second.close("FINISHED", {})
    assert [step for step, _ in _points(store, second.run_id)] == [1, 2, 3, 4, 5]


def test_a_driver_killed_before_it_saved_the_runs_id_leaves_no_second_run(store: str, tmp_path: Path):
    directory = RunDirectory(str(tmp_path))
    _journal(directory, 0, range(1, 6))
    description = replace(DESCRIPTION, experiment="killed")
    first = _sink(store, directory, description)
    first.close("KILLED", {})
    known = directory.read_json("mlflow.json")
    key = known["servers"][store]["key"]
    directory.write_json("mlflow.json", known | {"servers": {store: {"key": key}}})
    second = _sink(store, directory, description)
    second.close("FINISHED", {})
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("killed")
    assert [run.info.run_id for run in client.search_runs([experiment.experiment_id])] == [first.run_id]
    assert [step for step, _ in _points(store, first.run_id)] == [1, 2, 3, 4, 5]


def test_nan_arrives(store: str, tmp_path: Path):
    directory = RunDirectory(str(tmp_path))
    directory.write("recipe.json", b"{}")
    journal = Journal(directory)
    journal.append(Metrics(step=1, values={"train/loss": math.nan}))
    journal.commit()
    sink = _sink(store, directory)
    sink.close("FINISHED", {})
    assert math.isnan(_points(store, sink.run_id)[0][1])


@pytest.fixture
def server(store: str, tmp_path: Path) -> Iterator["_Server"]:
    server = _Server(store, tmp_path)
    server.start()
    yield server
    server.stop()


class _Server:
    """A real `mlflow server` on a free port of loopback."""

    def __init__(self, store: str, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--backend-store-uri", store, "--artifacts-destination", str(folder / "artifacts"), "--workers", "1"),
        ]
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self._process = subprocess.Popen(
            self._command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.2)
        raise TimeoutError("mlflow server did not come up")

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def test_a_server_that_was_down_gets_every_point_once_with_one_warning(server: _Server, tmp_path: Path, caplog):
    directory = RunDirectory(str(tmp_path))
    _journal(directory, 0, range(1, 4))
    sink, follower = MlflowSink(server.uri, directory, DESCRIPTION), RunFollower(directory)
    follower.report(sink.take)
    follower.look()
    deadline = time.monotonic() + 60
    while sink.run_id is None and time.monotonic() < deadline:
        time.sleep(0.1)
    server.stop()
    _journal(directory, 3, range(4, 9))
    follower.look()
    deadline = time.monotonic() + 60
    while "does not answer" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.1)
    server.start()
    sink.close("FINISHED", {"training_curve.png": b"image"}, wait_seconds=120)
    assert [step for step, _ in _points(server.uri, sink.run_id)] == list(range(1, 9))
    assert MlflowClient(server.uri).get_run(sink.run_id).info.status == "FINISHED"
    assert sink.waiting_points == 0
    assert caplog.text.count("does not answer") == 1
    assert caplog.text.count("answers again") == 1


class _Sick(http.server.BaseHTTPRequestHandler):
    """A server that answers but does not work."""

    ailment = ""

    def _answer(self) -> None:
        if self.ailment == "hangs":
            time.sleep(3)  # Longer than the client's time limit, which is what is tested.
        status = {"500": 500, "401": 401}.get(self.ailment, 200)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b"<html>garbage" if status == 200 else b"{}")

    do_GET = do_POST = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("ailment", ["500", "401", "garbage", "hangs", "gone"])
def test_points_that_a_broken_server_missed_are_delivered_later(
    ailment, store: str, tmp_path: Path, caplog, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    directory = RunDirectory(str(tmp_path))
    _journal(directory, 0, range(1, 4))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Sick", (_Sick,), {"ailment": ailment})) as sick:
        threading.Thread(target=sick.serve_forever, daemon=True).start()
        port = 9 if ailment == "gone" else sick.server_address[1]
        sink = _sink(f"http://someone:secret@127.0.0.1:{port}", directory)
        sink.close("FINISHED", {"training_curve.png": b"image"}, tags={"result": "5.0"}, wait_seconds=4)
        sick.shutdown()
    assert sink.run_id is None
    assert sink.waiting_points == 6
    assert caplog.text.count("refuses: it does not know this user" if ailment == "401" else "does not answer") == 1
    assert "6 points wait in" in caplog.text
    assert "secret" not in caplog.text
    assert "secret" not in (tmp_path / "mlflow.json").read_text()

    assert deliver(directory, store, wait_seconds=60)
    client = MlflowClient(store)
    run = client.get_run(directory.read_json("mlflow.json")["servers"][store]["run_id"])
    assert [step for step, _ in _points(store, run.info.run_id)] == [1, 2, 3]
    assert run.info.status == "FINISHED"
    assert run.data.tags["result"] == "5.0"
    assert run.data.params == {"model.depth": "20", "seed": "0"}
    assert "training_curve.png" in [file.path for file in client.list_artifacts(run.info.run_id)]
    # A second delivery adds nothing.
    assert deliver(directory, store, wait_seconds=60)
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 3


def test_repeated_steps_arrive_once_even_in_one_batch(store: str, tmp_path: Path):
    directory = RunDirectory(str(tmp_path))
    _journal(directory, 0, range(1, 8))
    _journal(directory, 4, range(5, 11))
    sink = _sink(store, directory)
    sink.close("FINISHED", {})
    assert [step for step, _ in _points(store, sink.run_id)] == list(range(1, 11))


def test_points_that_a_continued_run_adds_are_not_considered_delivered(store: str, tmp_path: Path):
    directory = RunDirectory(str(tmp_path))
    _journal(directory, 0, range(1, 4))
    _sink(store, directory).close("KILLED", {})
    _journal(directory, 3, range(4, 7))
    # As if no sink had run since the second session.
    assert deliver(directory, store, wait_seconds=60)
    run_id = directory.read_json("mlflow.json")["servers"][store]["run_id"]
    assert [step for step, _ in _points(store, run_id)] == [1, 2, 3, 4, 5, 6]


def test_a_password_in_the_servers_address_is_not_written_anywhere(server: _Server, tmp_path: Path, caplog, capfd):
    directory = RunDirectory(str(tmp_path))
    _journal(directory, 0, range(1, 4))
    sink = _sink(server.uri.replace("http://", "http://someone:sec@ret@"), directory)
    sink.close("FINISHED", {})
    said = capfd.readouterr()
    written = caplog.text + said.out + said.err + (tmp_path / "mlflow.json").read_text()
    assert "ret@" not in written


def test_delivering_a_child_delivers_its_parent_first(store: str, tmp_path: Path):
    above, below = (RunDirectory(str(tmp_path / name)) for name in ("sweep", "sweep/trial"))
    for directory in (above, below):
        _journal(directory, 0, range(1, 3))
    dead = "http://127.0.0.1:9"
    parent = _sink(dead, above)
    child = _sink(dead, below, parent=parent)
    for sink in (child, parent):
        sink.close("FINISHED", {}, wait_seconds=3)
    assert deliver(below, store, wait_seconds=60)
    ids = [directory.read_json("mlflow.json")["servers"][store]["run_id"] for directory in (above, below)]
    runs = [MlflowClient(store).get_run(run_id) for run_id in ids]
    assert runs[1].data.tags["mlflow.parentRunId"] == ids[0]
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]


def test_the_data_sets_are_the_runs_inputs(store: str, tmp_path: Path):
    directory = RunDirectory(str(tmp_path))
    _journal(directory, 0, range(1, 3))
    source = "s3://key:secret@bucket/train"
    data = DataSet(name="cifar10", digest="d" * 64, context="training", source=source, images=96, classes=4)
    sink = _sink(store, directory, replace(DESCRIPTION, data_sets=(data,)))
    sink.close("FINISHED", {})
    (found,) = MlflowClient(store).get_run(sink.run_id).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("cifar10", "d" * 36)
    assert json.loads(found.dataset.profile) == {"images": 96, "classes": 4}
    assert [tag.value for tag in found.tags] == ["training"]
    assert "secret" not in found.dataset.source


def test_a_run_that_was_never_tracked_has_nothing_to_deliver(store: str, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="was never tracked"):
        deliver(RunDirectory(str(tmp_path)), store, wait_seconds=1)
