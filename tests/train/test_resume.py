"""Resuming. Oracle: the saved state, and a storage made to fail."""

from pathlib import Path

import pytest
import torch
from oracle import images

from dist_resnet.recipe import Execution, Recipe, Recovery
from dist_resnet.tracking.run_directory import RunDirectory
from dist_resnet.train import checkpoint
from dist_resnet.train.checkpoint import Snapshot
from dist_resnet.train.context import RunContext
from dist_resnet.train.loop import create_state
from dist_resnet.train.resume import resume
from dist_resnet.train.state import TrainState
from dist_resnet.train.watchdog import Watchdog
from dist_resnet.worker import Worker

RECIPE = images.recipe()
WORKER = Worker(rank=0, world_size=1, device=torch.device("cpu"))


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    (tmp_path / "recipe.json").touch()
    return RunDirectory(str(tmp_path))


@pytest.fixture
def state(recipe: Recipe, execution: Execution) -> TrainState:
    return create_state(recipe, execution, WORKER)


def _resume(state: TrainState, directory: RunDirectory, patience_seconds: float = 60.0) -> None:
    execution = Execution(recovery=Recovery(storage_timeout_minutes=patience_seconds / 60))
    watchdog = Watchdog(60.0)
    context = RunContext(recipe=RECIPE, execution=execution, worker=WORKER, directory=directory, watchdog=watchdog)
    resume(state, context, pause_seconds=0.01)


def _save(state: TrainState, directory: RunDirectory, step: int) -> None:
    state.step = step
    checkpoint.save(directory, Snapshot.of(state))
    state.step = 0


def test_a_run_without_a_checkpoint_starts_from_scratch(state: TrainState, directory: RunDirectory):
    _resume(state, directory)
    assert state.step == 0


def test_a_run_resumes_from_the_newest_checkpoint(state: TrainState, directory: RunDirectory):
    for step in (2, 7):
        _save(state, directory, step)
    _resume(state, directory)
    assert state.step == 7


def test_a_storage_that_fails_for_a_while_is_waited_for(state, directory, monkeypatch, caplog):
    _save(state, directory, 7)
    left, whole = [2], RunDirectory.read

    def read(self: RunDirectory, name: str, start: int = 0) -> bytes:
        if left[0]:
            left[0] -= 1
            raise OSError("away")
        return whole(self, name, start)

    monkeypatch.setattr(RunDirectory, "read", read)
    _resume(state, directory)
    assert state.step == 7
    assert caplog.text.count("cannot be read (away)") == 1
    assert caplog.text.count("the storage works again") == 1


def test_a_directory_without_a_run_is_not_a_fresh_start(state: TrainState, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="is its disk mounted"):
        _resume(state, RunDirectory(str(tmp_path)), patience_seconds=0.05)
