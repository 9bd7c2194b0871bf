"""The mean and deviation of a run's own images. Oracle: the manifest that preparing wrote, and torchvision's formula
(pixel / 255 - mean) / deviation, written out."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs.inside import run_inside
from oracle.sources import prepare_here, small_images, write_folders
from registry.conftest import trained

from dist_resnet.data.datasets import Normalization, normalization_of
from dist_resnet.data.input.batch import BatchMaker
from dist_resnet.data.shards.measured import measured
from dist_resnet.data.shards.split import open_split
from dist_resnet.launch.plan import prepare
from dist_resnet.recipe import Augment, Data, Evaluation, Execution, Model, Recipe
from dist_resnet.registry import package

JOB = ("imagenet_preact200", "--execution.device", "cpu")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared set of five classes."""
    folder = tmp_path_factory.mktemp("own")
    prepare_here(write_folders(folder / "source", small_images()), folder / "set")
    return folder / "set"


def recipe_of(own: Path, **data: object) -> Recipe:
    return Recipe(
        model=Model(depth=8, num_classes=5),
        data=Data(**{"train": f"{own}/train-*", "validation": f"{own}/validation-*", "dataset": "own"} | data),
        augment=Augment(kind="scale", size=24, shorter_side=(26, 40)),
        evaluation=Evaluation(crops=(24,), shorter_sides=(28,)),
        global_batch=16,
        ghost_batch=8,
    )


def manifest_of(own: Path) -> dict:
    return json.loads((own / "manifest.json").read_text())


def test_the_recipe_of_a_run_keeps_what_preparing_measured(own: Path, execution: Execution):
    plan = prepare(recipe_of(own), execution, job="test")
    entry = manifest_of(own)["splits"]["train"]
    assert (plan.recipe.data.mean, plan.recipe.data.std) == (tuple(entry["mean"]), tuple(entry["std"]))
    given = recipe_of(own, mean=tuple(entry["mean"]), std=tuple(entry["std"]))
    assert prepare(given, execution, job="test").recipe.fingerprint() == plan.recipe.fingerprint()
    other = prepare(recipe_of(own, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)), execution, job="test")
    assert other.recipe.fingerprint() != plan.recipe.fingerprint()
    assert other.recipe.data.mean == (0.5, 0.5, 0.5)


def test_a_known_data_set_keeps_its_own_whatever_preparing_measured(own: Path, execution: Execution):
    plan = prepare(recipe_of(own, dataset="imagenet"), execution, job="test")
    assert plan.recipe.data.mean is None
    assert normalization_of(plan.recipe.data) == Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_training_evaluation_and_the_registered_model_normalize_alike(own: Path, execution: Execution, tmp_path: Path):
    recipe = prepare(recipe_of(own), execution, job="test").recipe
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), dtype=np.uint8))
    maker = BatchMaker(recipe, open_split(f"{own}/train-*"), torch.device("cpu"), channels_last=True)
    entry = manifest_of(own)["splits"]["train"]
    by_formula = (pixels.numpy() / 255 - entry["mean"]) / entry["std"]
    np.testing.assert_allclose(maker.normalized(pixels, np.arange(2)).permute(0, 2, 3, 1), by_formula, atol=1e-5)
    package.write_data(tmp_path, recipe, trained(recipe, execution).weights(), list("abcde"))
    rules = json.loads((tmp_path / "preprocessing.json").read_text())
    assert (rules["mean"], rules["std"]) == (entry["mean"], entry["std"])


def refused(*options: str, said: str) -> None:
    done = run_inside(*JOB, *options)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert said in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data.mean", "0.5", "0.5", "0.5"], "data.mean is given without data.std; give --data.mean and --data.std"),
        (["--data.std", "0.5", "0.5", "0.5"], "data.std is given without data.mean"),
        (
            ["--data.mean", "123.7", "116.3", "103.5", "--data.std", "0.2", "0.2", "0.2"],
            "data.mean must be three numbers from 0 to 1, for red, green and blue, got (123.7, 116.3, 103.5); divide",
        ),
        (["--data.mean", "0.5", "0.5", "-0.1", "--data.std", "0.2", "0.2", "0.2"], "data.mean must be three numbers"),
        (["--data.mean", "0.5", "nan", "0.5", "--data.std", "0.2", "0.2", "0.2"], "data.mean must be three numbers"),
        (
            ["--data.mean", "0", "0", "0", "--data.std", "0.2", "0", "0.2"],
            "data.std must be three numbers from above 0",
        ),
        (["--data.mean", "0", "0", "0", "--data.std", "58", "57", "57"], "data.std must be three numbers from above 0"),
    ],
)
def test_a_mean_that_cannot_be_one_is_refused_in_one_line(options: list[str], said: str):
    refused(*options, said=said)


def test_images_without_a_measured_mean_are_refused_with_the_way_out(own: Path, execution: Execution, tmp_path: Path):
    plain = tmp_path / "plain"
    plain.mkdir()
    for file in own.glob("*.parquet"):
        shutil.copy(file, plain)
    way_out = "give --data.mean and --data.std, or prepare the images with jobs/prepare_imagenet.py"
    with pytest.raises(ValueError, match=rf"mean of the training images at .*plain has no manifest.json; {way_out}"):
        prepare(recipe_of(plain), execution, job="test")
    older = manifest_of(own)
    del older["splits"]["train"]["mean"], older["splits"]["train"]["std"]
    (plain / "manifest.json").write_text(json.dumps(older))
    with pytest.raises(ValueError, match=rf"has no mean of the training images, because an earlier version.*{way_out}"):
        prepare(recipe_of(plain), execution, job="test")
    older["splits"]["train"] |= {"mean": [0.1, 0.2, 0.3], "std": [0.1, 0.0, 0.1]}
    (plain / "manifest.json").write_text(json.dumps(older))
    with pytest.raises(ValueError, match=r"cannot normalize them \(data.std must be .*; give --data.mean and --data"):
        prepare(recipe_of(plain), execution, job="test")


def test_shards_of_several_folders_have_no_mean_in_common(own: Path, tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(sorted(own.glob("train-*"))[0], tmp_path / name / "train-0.parquet")
    split = dataclasses.replace(
        open_split(f"{tmp_path}/a"), shards=tuple(f"{tmp_path}/{name}/train-0.parquet" for name in ("a", "b"))
    )
    with pytest.raises(ValueError, match="is unknown, because they are in several folders"):
        measured(split)
