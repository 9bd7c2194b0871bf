"""Checkpoints in the background. Oracle: the files on the storage, and a storage made to fail."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from moto.server import ThreadedMotoServer
from safetensors import SafetensorError

from dist_resnet.recipe import Execution, Recipe
from dist_resnet.tracking.journal import read_journal
from dist_resnet.tracking.recorder import Recorder
from dist_resnet.tracking.records import Metrics
from dist_resnet.tracking.run_directory import RunDirectory
from dist_resnet.train import checkpoint
from dist_resnet.train.loop import create_state
from dist_resnet.train.state import TrainState
from dist_resnet.train.writer import CheckpointWriter
from dist_resnet.worker import Worker

WORKER = Worker(rank=0, world_size=1, device=torch.device("cpu"))


@pytest.fixture
def state(recipe: Recipe, execution: Execution) -> TrainState:
    return create_state(recipe, execution, WORKER)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.json").touch()
    return RunDirectory(str(tmp_path / "run"))


def _writer(
    directory: RunDirectory, *, keep: int = 2, patience: float = 60.0, errors=(), grace: float = 60.0
) -> CheckpointWriter:
    recorder = Recorder.of_rank(0, directory)
    return CheckpointWriter(
        directory, recorder, keep=keep, patience_seconds=patience, errors=dict(errors), grace_seconds=grace
    )


def _save(writer: CheckpointWriter, state: TrainState, *steps: int) -> None:
    for step in steps:
        state.step = step
        writer.save(state)
        writer.wait(lambda: None)


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _steps(directory: RunDirectory) -> list[int]:
    return [int(name.split("_")[1]) for name, _ in directory.list("checkpoints")]


def test_a_checkpoint_has_the_state_at_the_time_of_saving(directory: RunDirectory, state: TrainState):
    writer = _writer(directory)
    name = next(iter(state.weights()))
    expected = state.weights()[name]
    writer.save(state)
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.zero_()
    writer.wait(lambda: None)
    assert torch.equal(checkpoint.latest(directory).weights[name], expected)
    writer.close()


def test_the_loop_does_not_wait_for_the_storage(directory: RunDirectory, state: TrainState, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(checkpoint, "save", lambda *_: release.wait(30))
    writer = _writer(directory)
    start = time.monotonic()
    for step in range(5):
        state.step = step
        writer.save(state)
    assert time.monotonic() - start < 5
    release.set()
    writer.wait(lambda: None)
    writer.close()


def test_a_newer_copy_replaces_one_that_waits(directory: RunDirectory, state: TrainState, monkeypatch):
    started, release, save = threading.Event(), threading.Event(), checkpoint.save

    def slow(*arguments) -> None:
        started.set()
        release.wait(30)
        save(*arguments)

    monkeypatch.setattr(checkpoint, "save", slow)
    writer = _writer(directory, keep=9)
    for step in (1, 2, 3):
        state.step = step
        writer.save(state)
        assert started.wait(30)
    release.set()
    writer.wait(lambda: None)
    writer.close()
    assert _steps(directory) == [1, 3]


def test_the_best_is_kept_even_if_an_earlier_session_found_it(directory: RunDirectory, state: TrainState):
    writer = _writer(directory, keep=1)
    _save(writer, state, 1)
    writer.note_error(1, 0.5)
    _save(writer, state, 2)
    writer.note_error(2, 0.1)
    _save(writer, state, 3)
    writer.note_error(3, 0.3)
    writer.close()
    assert _steps(directory) == [2, 3]
    again = _writer(directory, keep=1, errors={1: 0.5, 2: 0.1, 3: 0.3})
    _save(again, state, 4)
    again.close()
    assert _steps(directory) == [2, 4]


def test_a_storage_that_disappears_for_a_while_delays_checkpoints(directory, state, tmp_path: Path, caplog):
    writer = _writer(directory)
    _save(writer, state, 1)
    os.rename(tmp_path / "run", tmp_path / "elsewhere")
    state.step = 2
    writer.save(state)
    _wait_until(lambda: "no checkpoint can be written" in caplog.text)
    state.step = 3
    writer.save(state)
    assert not (tmp_path / "run").exists()
    os.rename(tmp_path / "elsewhere", tmp_path / "run")
    writer.wait(lambda: None)
    writer.close()
    assert _steps(directory) == [1, 3]
    assert caplog.text.count("no checkpoint can be written") == 1
    assert caplog.text.count("the storage works again") == 1


def test_a_storage_that_stays_unreachable_is_an_error_after_the_stated_time(directory, state, tmp_path: Path):
    writer = _writer(directory, patience=0.6)
    os.rename(tmp_path / "run", tmp_path / "elsewhere")
    writer.save(state)
    with pytest.raises(FileNotFoundError, match="is its disk mounted"):
        writer.wait(lambda: None)
    with pytest.raises(FileNotFoundError, match="is its disk mounted"):
        writer.save(state)
    writer.close()


def test_a_full_disk_delays_checkpoints_and_leaves_no_partial_one(directory, state, monkeypatch):
    full, failed, save_whole = [True], threading.Event(), safetensors.torch.save_file

    def save_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if full[0] and path.name.startswith("optimizer.safetensors"):
            path.write_bytes(b"half")
            failed.set()
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save_whole(tensors, path)

    monkeypatch.setattr(safetensors.torch, "save_file", save_file)
    writer = _writer(directory)
    writer.save(state)
    assert failed.wait(30)
    _wait_until(lambda: not list(Path(directory.uri).rglob("*.partial")))
    assert checkpoint.latest(directory) is None
    full[0] = False
    writer.wait(lambda: None)
    writer.close()
    assert checkpoint.latest(directory).step == 0


def test_the_journal_up_to_a_checkpoint_is_durable_before_it(directory: RunDirectory, state: TrainState, monkeypatch):
    save, seen = checkpoint.save, []
    recorder = Recorder.of_rank(0, directory)

    def look(*arguments) -> None:
        seen.append([record.step for record in read_journal(directory) if isinstance(record, Metrics)])
        save(*arguments)

    monkeypatch.setattr(checkpoint, "save", look)
    writer = CheckpointWriter(directory, recorder, keep=2, patience_seconds=60, errors={})
    for step in (1, 2, 3):
        recorder.metrics(step, {"train/loss": 1.0})
    _save(writer, state, 3)
    writer.close()
    assert seen == [[1, 2, 3]]


def test_an_object_store_that_is_down_delays_checkpoints(s3: str, state: TrainState, monkeypatch, caplog):
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    directory = RunDirectory(f"{s3}/away")
    directory.write("recipe.json", b"{}")
    writer = _writer(directory)
    _save(writer, state, 1)
    server.stop()
    state.step = 2
    writer.save(state)
    _wait_until(lambda: "no checkpoint can be written" in caplog.text)
    again = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    again.start()
    writer.wait(lambda: None)
    writer.close()
    assert checkpoint.latest(directory).step == 2
    again.stop()
    assert caplog.text.count("no checkpoint can be written") == 1
    assert caplog.text.count("the storage works again") == 1


def test_a_storage_that_hangs_is_an_error_in_the_end(directory, state, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(checkpoint, "save", lambda *_: release.wait(30))
    writer = _writer(directory, patience=0.2, grace=0.2)
    writer.save(state)
    with pytest.raises(TimeoutError, match="has not finished after"):
        writer.wait(lambda: None)
    release.set()
    writer.close()
