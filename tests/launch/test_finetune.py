"""Fine-tuning's defaults. Oracle: the recipes of the runs, and torchvision's networks, that the weights are of."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
import torchvision
from jobs.inside import run_inside

from dist_resnet.launch import local
from dist_resnet.launch.finetune import follow_weights, value_of
from dist_resnet.recipe import Augment, Data, Evaluation, Execution, Initial, Model, Recipe

OTHERS = Recipe(
    model=Model(depth=50, placement="original"),
    data=Data(train="a/train-*.parquet", validation="a/validation-*.parquet", dataset="imagenet"),
    augment=Augment(kind="inception", size=224),
    evaluation=Evaluation(crops=(224,), shorter_sides=(256,), every_epochs=3),
    epochs=7,
)


def _follow(weights: str, storage: Path, name: str | None = None) -> Recipe:
    return follow_weights(OTHERS, weights, storage=str(storage), name=name, tracking_uri=None)


@pytest.fixture
def trained(recipe: Recipe, execution: Execution) -> Path:
    """The directory of a finished run."""
    recipe = dataclasses.replace(recipe, epochs=1, model=dataclasses.replace(recipe.model, placement="original"))
    plan = local.prepare_run(recipe, dataclasses.replace(execution, name="base"), job="test")
    local.run(plan)
    return Path(plan.directory.uri)


def test_network_crops_and_colors_are_those_of_the_run_and_the_rest_is_the_jobs(trained: Path, recipe: Recipe):
    followed = _follow(str(trained), trained.parent)
    assert followed.model == dataclasses.replace(recipe.model, placement="original", num_classes=None)
    assert (followed.augment, followed.data.dataset) == (recipe.augment, recipe.data.dataset)
    assert (followed.evaluation.crops, followed.evaluation.every_epochs) == (recipe.evaluation.crops, 3)
    assert (followed.epochs, followed.data.train) == (7, "a/train-*.parquet")


@pytest.mark.parametrize("depth", [50, 101])
def test_a_published_file_tells_its_network(depth: int, tmp_path: Path):
    network = torchvision.models.get_model(f"resnet{depth}")
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    followed = _follow(str(tmp_path / "weights.pth"), tmp_path)
    assert (followed.model.depth, followed.model.placement, followed.model.num_classes) == (depth, "original", None)
    assert (followed.augment, followed.evaluation) == (OTHERS.augment, OTHERS.evaluation)


def test_a_run_resumes_though_the_weights_that_it_started_from_are_gone(trained: Path, recipe, execution: Execution):
    tuned = dataclasses.replace(recipe, epochs=1, initial=Initial(weights=str(trained)))
    tuned = dataclasses.replace(tuned, model=dataclasses.replace(recipe.model, placement="original"))
    first = local.run(local.prepare_run(tuned, dataclasses.replace(execution, name="tuned"), job="test"))
    shutil.rmtree(trained)
    followed = _follow(str(trained), trained.parent, name="tuned")
    assert followed.model.placement == "original"
    again = local.prepare_run(tuned, dataclasses.replace(execution, name="tuned"), job="test")
    assert local.run(again)["weights_sha256"] == first["weights_sha256"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "give --initial.weights models:/NAME@ALIAS, a run STORAGE/NAME or a file"),
        (["--initial.weights", ""], "give --initial.weights"),
        (["--initial.weights={folder}/none"], "none is not a run: it has no recipe.json"),
        (["--initial.weights", "{folder}/none.pth"], "none.pth"),
        (["--initial.weights", "{folder}/broken.safetensors"], "is damaged or not a safetensors file"),
        (["--initial.weights", "{folder}/keras.h5"], "docs/initial-weights.md says how to convert it"),
    ],
)
def test_weights_that_cannot_be_read_are_one_line_before_anything_starts(arguments, complaint: str, tmp_path: Path):
    (tmp_path / "broken.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    given = [word.format(folder=tmp_path) for word in arguments]
    done = run_inside("finetune", *given, "--execution.storage", str(tmp_path / "runs"))
    assert done.returncode == 2, done.stderr
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_the_last_value_counts_as_it_does_for_the_parser():
    assert value_of(["--a=1", "--a", "2"], "--a") == "2"
    assert value_of(["--a", "2", "--a=1"], "--a") == "1"
    assert value_of(["--ab=1", "--a"], "--a") is None
