"""Checkpoints. Oracle: the state that was saved, and damage done to files by hand."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_resnet.data.input.batch import Batch
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.tracking.run_directory import RunDirectory
from dist_resnet.train import checkpoint
from dist_resnet.train.checkpoint import Snapshot
from dist_resnet.train.loop import create_state
from dist_resnet.train.state import TrainState
from dist_resnet.train.step import TrainStep
from dist_resnet.worker import Worker

WORKER = Worker(rank=0, world_size=1, device=torch.device("cpu"))


def _trained(recipe: Recipe, execution: Execution, steps: int = 1) -> TrainState:
    state = create_state(recipe, execution, WORKER)
    step = TrainStep(recipe, execution, WORKER, state)
    torch.manual_seed(0)
    for _ in range(steps):
        images = torch.randn(8, 3, 32, 32)
        step([Batch(images, torch.arange(8) % 4, np.arange(8), ghost, torch.ones(8)) for ghost in range(4)], 0.1)
    return state


def _saved(tmp_path: Path, state: TrainState, steps: tuple[int, ...] = (1,)) -> RunDirectory:
    directory = RunDirectory(str(tmp_path / "run"))
    directory.write("recipe.json", b"{}")
    for step in steps:
        state.step = step
        checkpoint.save(directory, Snapshot.of(state))
    return directory


def test_a_loaded_checkpoint_continues_bit_for_bit(recipe: Recipe, execution: Execution, tmp_path: Path):
    state = _trained(recipe, execution)
    found = checkpoint.latest(_saved(tmp_path, state))
    other = create_state(recipe, execution, WORKER)
    other.load(found.weights, found.slots, found.counters)
    assert other.step == state.step
    images = [
        Batch(torch.randn(8, 3, 32, 32), torch.arange(8) % 4, np.arange(8), ghost, torch.ones(8)) for ghost in range(4)
    ]
    for each in (state, other):
        TrainStep(recipe, execution, WORKER, each)(images, 0.1)
    for name, tensor in state.weights().items():
        assert torch.equal(tensor, other.weights()[name]), name
    for name, tensor in state.slots().items():
        assert torch.equal(tensor, other.slots()[name]), name


def test_checkpoints_of_the_first_release_restore_their_momentum(recipe: Recipe, execution: Execution):
    state = _trained(recipe, execution)
    other = create_state(recipe, execution, WORKER)
    old = {key.replace("momentum_buffer.", "momentum."): tensor for key, tensor in state.slots().items()}
    other.load(state.weights(), old, state.counters())
    assert old.keys().isdisjoint(other.slots())
    for name, tensor in state.slots().items():
        assert torch.equal(tensor, other.slots()[name]), name


@pytest.mark.parametrize(
    ("key", "shape", "complaint"),
    [
        ("exp_avg.head.classifier.weight", None, "SGD keeps momentum_buffer for each parameter, not exp_avg"),
        ("momentum_buffer.head.nothing", (4,), r"momentum_buffer.head.nothing of shape \(4,\) matches no parameter"),
        ("momentum_buffer.head.classifier.bias", (5,), r"head.classifier.bias of shape \(5,\) matches no parameter"),
    ],
)
def test_state_of_another_optimizer_or_network_is_refused(
    recipe: Recipe, execution: Execution, key: str, shape: tuple[int, ...] | None, complaint: str
):
    state = _trained(recipe, execution)
    foreign = torch.zeros(shape) if shape else state.slots()["momentum_buffer." + key.partition(".")[2]]
    with pytest.raises(ValueError, match=complaint):
        create_state(recipe, execution, WORKER).load(state.weights(), {key: foreign}, state.counters())


def test_a_slot_that_could_not_be_restored_is_not_saved_silently(recipe: Recipe, execution: Execution):
    state = _trained(recipe, execution)
    parameter = next(state.model.parameters())
    state.optimizer.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
    with pytest.raises(ValueError, match="not exp_avg: the state belongs to another optimizer"):
        state.slots()


def test_the_same_state_gives_the_same_sha256(recipe: Recipe, execution: Execution, tmp_path: Path):
    state = _trained(recipe, execution)
    hashes = [checkpoint.latest(_saved(tmp_path / name, state)).weights_sha256 for name in "ab"]
    assert hashes[0] == hashes[1]
    content = (tmp_path / "a/run/checkpoints/step_00000001/model.safetensors").read_bytes()
    assert hashes[0] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("errors", "kept"), [({}, [3, 4]), ({1: 0.1, 2: 0.2}, [1, 3, 4]), ({1: 0.2, 4: 0.1}, [3, 4]), ({9: 0.1}, [3, 4])]
)
def test_the_newest_and_the_best_are_kept(recipe: Recipe, execution: Execution, tmp_path: Path, errors, kept):
    directory = _saved(tmp_path, create_state(recipe, execution, WORKER), steps=(1, 2, 3, 4))
    checkpoint.prune(directory, newest=4, keep=2, errors=errors)
    assert _steps(directory) == kept


def test_partial_checkpoints_are_deleted_once_a_newer_one_is_complete(
    recipe: Recipe, execution: Execution, tmp_path: Path
):
    directory = _saved(tmp_path, create_state(recipe, execution, WORKER), steps=(1, 2, 3))
    for step in (2, 3):
        directory.delete(f"checkpoints/step_{step:08d}/manifest.json")
    _saved(tmp_path, create_state(recipe, execution, WORKER), steps=(4,))
    checkpoint.prune(directory, newest=4, keep=2, errors={})
    assert _steps(directory) == [1, 4]


def test_a_damaged_newer_checkpoint_does_not_delete_the_good_ones(recipe: Recipe, execution: Execution, tmp_path: Path):
    # Training resumed from 2, because 9 is damaged, and has reached 3.
    directory = _saved(tmp_path, create_state(recipe, execution, WORKER), steps=(1, 2, 3, 9))
    checkpoint.prune(directory, newest=3, keep=1, errors={})
    assert _steps(directory) == [3, 9]


def _steps(directory: RunDirectory) -> list[int]:
    return [int(name.removeprefix("step_")) for name, _ in directory.list("checkpoints")]


def test_a_run_without_checkpoints_has_none(tmp_path: Path):
    assert checkpoint.latest(RunDirectory(str(tmp_path))) is None


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.OPTIMIZER, checkpoint.STATE])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(recipe, execution, tmp_path, caplog, name, damage):
    directory = _saved(tmp_path, _trained(recipe, execution), steps=(1, 2))
    file = tmp_path / "run/checkpoints/step_00000002" / name
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    with caplog.at_level("WARNING", logger="dist_resnet"):
        found = checkpoint.latest(directory)
    assert found.counters["step"] == 1
    assert f"{name}" in caplog.text
    assert "step_00000002 is damaged" in caplog.text


@pytest.mark.parametrize("manifest", ["", "[]", '"text"', '{"model.safetensors": 3}', '{"model.safetensors": {}}'])
def test_a_checkpoint_with_a_damaged_manifest_is_skipped_with_a_warning(recipe, execution, tmp_path, caplog, manifest):
    directory = _saved(tmp_path, _trained(recipe, execution), steps=(1, 2))
    directory.write("checkpoints/step_00000002/manifest.json", manifest.encode())
    with caplog.at_level("WARNING", logger="dist_resnet"):
        found = checkpoint.latest(directory)
    assert found is not None
    assert found.counters["step"] == 1
    assert "step_00000002 is damaged and skipped" in caplog.text


@pytest.mark.parametrize("name", ["step_00000009 (copy)", "step_00000009.bak", ".DS_Store", "__pycache__"])
def test_other_files_next_to_checkpoints_are_ignored(name, recipe: Recipe, execution: Execution, tmp_path: Path):
    directory = _saved(tmp_path, _trained(recipe, execution), steps=(1, 2))
    checkpoints = Path(directory.path("checkpoints"))
    shutil.copytree(checkpoints / "step_00000002", checkpoints / name)
    found = checkpoint.latest(directory)
    assert found is not None
    assert found.folder == "checkpoints/step_00000002"
    checkpoint.prune(directory, newest=2, keep=1, errors={})
    assert checkpoint.newest_step(directory) == 2
    assert (checkpoints / name / "manifest.json").exists()


def test_a_checkpoint_without_its_manifest_is_invisible(recipe: Recipe, execution: Execution, tmp_path: Path):
    directory = _saved(tmp_path, _trained(recipe, execution), steps=(1, 2))
    (tmp_path / "run/checkpoints/step_00000002/manifest.json").unlink()
    assert checkpoint.latest(directory).counters["step"] == 1


def test_all_damaged_is_an_error_and_not_a_fresh_start(recipe: Recipe, execution: Execution, tmp_path: Path):
    directory = _saved(tmp_path, _trained(recipe, execution), steps=(1, 2))
    for file in tmp_path.glob("run/checkpoints/*/model.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="all checkpoints under .* are damaged"):
        checkpoint.latest(directory)


def test_the_checkpoint_of_another_model_is_refused(recipe: Recipe, execution: Execution, tmp_path: Path):
    found = checkpoint.latest(_saved(tmp_path, _trained(recipe, execution)))
    other = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, num_classes=5))
    with pytest.raises(ValueError, match="the checkpoint is of another model"):
        create_state(other, execution, WORKER).load(found.weights, found.slots, found.counters)


def test_the_manifest_records_sizes_and_hashes(recipe: Recipe, execution: Execution, tmp_path: Path):
    _saved(tmp_path, _trained(recipe, execution))
    folder = tmp_path / "run/checkpoints/step_00000001"
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, entry in manifest.items():
        content = (folder / name).read_bytes()
        assert entry == {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert set(manifest) == {"model.safetensors", "optimizer.safetensors", "state.json"}
