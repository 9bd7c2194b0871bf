"""Frozen layers and initial weights in training. Oracle: torch's own SGD on the layers that are left, and equality."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from registry.conftest import WORKER, trained

from dist_resnet.launch import local
from dist_resnet.launch.measure import _random_batch
from dist_resnet.recipe import Checkpoints, Execution, Freeze, Initial, Performance, Recipe, Schedule
from dist_resnet.train import step
from dist_resnet.train.distributed import in_parts
from dist_resnet.train.loop import create_state
from dist_resnet.train.step import TrainStep


@pytest.fixture
def weights(recipe: Recipe, execution: Execution, tmp_path: Path) -> str:
    """A file of trained weights of the recipe's network."""
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(trained(recipe, execution, seed=3).weights(), path)
    return str(path)


_PARTS: dict[Freeze, tuple[str, ...]] = {
    "none": (),
    "stem": ("stem.",),
    "stage1": ("stem.", "stages.0."),
    "stage2": ("stem.", "stages.0.", "stages.1."),
    "stage3": ("stem.", "stages."),
    "all-but-head": ("stem.", "stages.", "head.activation."),
}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("part", _PARTS)
def test_a_step_changes_all_but_the_frozen_layers_and_their_statistics(
    recipe: Recipe, execution: Execution, part: Freeze, recompute: bool
):
    recipe = replace(recipe, initial=Initial(weights="a", freeze=part))
    execution = replace(execution, performance=Performance(recompute=recompute))
    state = create_state(recipe, execution, WORKER)
    state.load(trained(replace(recipe, initial=Initial()), execution, seed=3).weights(), {}, {"step": 0, "scaler": {}})
    before = state.weights()
    take = TrainStep(recipe, execution, WORKER, state)
    for number in range(2):
        take([_random_batch(8, recipe, ghost, WORKER.device) for ghost in range(4)], 0.1 * (number + 1))
    for name, tensor in state.weights().items():
        assert torch.equal(tensor, before[name]) == name.startswith(_PARTS[part] or ("-",)), name
    assert not [name for name in state.slots() if name.partition(".")[2].startswith(_PARTS[part] or ("-",))]


@pytest.mark.parametrize("part", ["stem", "stage2", "all-but-head"])
def test_a_step_with_frozen_layers_is_torchs_sgd_with_bn_in_evaluation_there(
    recipe: Recipe, execution: Execution, part: Freeze
):
    recipe = replace(recipe, initial=Initial(weights="a", freeze=part), schedule=Schedule(head_factor=10.0))
    recipe = replace(recipe, global_batch=8)
    start = trained(replace(recipe, initial=Initial()), execution, seed=3).weights()
    state = create_state(recipe, execution, WORKER)
    state.load(start, {}, {"step": 0, "scaler": {}})
    batch = _random_batch(8, recipe, 0, WORKER.device)
    TrainStep(recipe, execution, WORKER, state)([batch], 0.1)

    model = create_state(replace(recipe, initial=Initial()), execution, WORKER).model
    model.load_state_dict(start)
    model.train()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d) and name.startswith(_PARTS[part]):
            module.eval()
    F.cross_entropy(model(batch.images), batch.labels).backward()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith(_PARTS[part]):
                decay = recipe.optimizer.weight_decay if parameter.ndim >= 2 else 0.0
                rate = 0.1 * (10 if "classifier" in name else 1)
                parameter -= rate * (parameter.grad + decay * parameter)
    expected = model.state_dict()
    for name, tensor in state.weights().items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


@pytest.mark.parametrize(("part", "number"), [("none", 5), ("stem", 4), ("stage2", 2), ("all-but-head", 1)])
def test_frozen_layers_share_the_part_of_the_first_trained_one_and_parts_give_the_bits_of_one(
    recipe: Recipe, execution: Execution, part: Freeze, number: int, monkeypatch: pytest.MonkeyPatch
):
    recipe = replace(recipe, initial=Initial(weights="a", freeze=part))
    two, found = replace(WORKER, world_size=2), []
    for worker in (WORKER, two):
        state = create_state(recipe, execution, WORKER)
        monkeypatch.setattr(step, "in_parts", lambda layers, _, worker=worker: in_parts(layers, worker, part_bytes=1))
        assert len(step.in_parts(state.model.layers, WORKER)) == (number if worker is two else 1)
        TrainStep(recipe, execution, WORKER, state)(
            [_random_batch(8, recipe, ghost, WORKER.device) for ghost in range(4)], 0.1
        )
        found.append(state.weights())
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def _run(recipe: Recipe, execution: Execution, name: str, **fields) -> dict:
    return local.run(local.prepare_run(recipe, replace(execution, name=name, **fields), job="test"))


@pytest.mark.parametrize("part", ["none", "stage1", "all-but-head"])
def test_training_starts_from_the_weights_and_resumes_without_them_to_the_same_bits(
    recipe: Recipe, execution: Execution, weights: str, part: Freeze
):
    recipe = replace(recipe, initial=Initial(weights=weights, head="keep", freeze=part))
    whole = _run(recipe, execution, "whole")
    start = safetensors.torch.load_file(weights)
    end = safetensors.torch.load_file(whole["weights_uri"] if "weights_uri" in whole else whole["model_uri"])
    for name, tensor in end.items():
        if name.startswith(_PARTS[part] or ("-",)):
            assert torch.equal(tensor, start[name]), name
    short = _run(recipe, execution, "again", checkpoints=Checkpoints(every=2))
    assert short["weights_sha256"] == whole["weights_sha256"]
    folder = Path(execution.storage, "again")
    (folder / "summary.json").unlink()
    for checkpoint in sorted((folder / "checkpoints").iterdir())[1:]:
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    (folder / "initial.safetensors").unlink()
    Path(weights).unlink()
    assert _run(recipe, execution, "again")["weights_sha256"] == whole["weights_sha256"]


def test_a_new_head_is_that_of_the_seed_on_the_given_layers(recipe: Recipe, execution: Execution, weights: str):
    recipe = replace(
        recipe, initial=Initial(weights=weights, head="new"), schedule=Schedule(learning_rate=1e-30, kind="cosine")
    )
    summary = _run(recipe, execution, "run")
    found = safetensors.torch.load_file(summary["weights_uri"] if "weights_uri" in summary else summary["model_uri"])
    drawn = create_state(replace(recipe, initial=Initial()), execution, WORKER).weights()
    given = safetensors.torch.load_file(weights)
    for name, tensor in found.items():
        if "running" not in name and "num_batches" not in name:
            assert (tensor - (drawn if "classifier" in name else given)[name]).abs().max() < 1e-20, name


def test_a_damaged_copy_in_the_runs_directory_stops_the_run(recipe: Recipe, execution: Execution, weights: str):
    recipe = replace(recipe, initial=Initial(weights=weights))
    plan = local.prepare_run(recipe, execution, job="test")
    plan.claim()
    copy = Path(plan.directory.uri, "initial.safetensors")
    content = bytearray(copy.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    with pytest.raises(ValueError, match="initial.safetensors is damaged: it does not have the sha256 of the recipe's"):
        local.run(plan)


_SCRIPT = """
import json, sys
from dist_resnet.launch import local
from dist_resnet.recipe import *
if __name__ == "__main__":
    recipe, execution = json.loads(sys.argv[1])
    local.run(local.prepare_run(Recipe.from_dict(recipe), eval(execution), job="test"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "points", [pytest.param(0, marks=pytest.mark.chaos), 2, pytest.param(21, marks=pytest.mark.chaos)]
)
def test_two_workers_that_are_killed_go_on_from_the_weights_to_the_same_bits(
    recipe: Recipe, execution: Execution, weights: str, points: int, tmp_path: Path
):
    recipe = replace(recipe, epochs=12, initial=Initial(weights=weights, head="new", freeze="stage1"))
    recipe = replace(recipe, schedule=Schedule(learning_rate=0.05, kind="cosine", head_factor=10.0))
    execution = replace(execution, workers=2, checkpoints=Checkpoints(every=5))
    whole = _run(recipe, execution, "whole")
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    broken = replace(execution, name="broken")
    process = subprocess.Popen(
        [sys.executable, str(script), json.dumps([recipe.to_dict(), repr(broken)])], start_new_session=True
    )
    journal = Path(execution.storage, "broken", "journal", "000001.jsonl")
    while not journal.exists() or journal.read_text().count('"metrics"') < points:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not Path(execution.storage, "broken", "summary.json").exists()
    Path(weights).unlink()
    assert _run(recipe, execution, "broken")["weights_sha256"] == whole["weights_sha256"]
