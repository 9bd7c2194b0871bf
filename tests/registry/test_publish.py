"""Publishing. Oracle: what MLflow's own client and loaders find, in sqlite."""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import mlflow.pytorch
import pytest
from jobs.inside import run_inside
from mlflow import MlflowClient
from oracle.sources import rename_classes
from registry.conftest import MakeRun

from dist_resnet.data.shards.split import open_split
from dist_resnet.recipe import Evaluation, Model, Recipe
from dist_resnet.registry.publish import default_name, publish_run, record_evaluation
from dist_resnet.registry.pull import download


def test_a_version_carries_its_evidence(recipe: Recipe, make_run: MakeRun, store: str):
    published = publish_run(make_run(recipe, top1_error=0.25), tracking_uri=store, name="evidence")
    version = MlflowClient(store).get_model_version("evidence", published.version)
    tags = version.tags
    assert float(tags["top1_error"]) == 0.25
    assert tags["validation_digest"] == "b" * 64
    assert tags["train_digest"] == "a" * 64
    assert tags["weights_sha256"] == published.weights_sha256
    assert tags["step"] == "6"
    assert len(tags["fingerprint"]) == 64
    assert "license" in tags
    assert tags["evaluated_at"] == "32 px of 32 px"


def _names(uri: str, store: str, target: Path) -> tuple[list[str], str]:
    """The class names in a version's package, and the tag with their source."""
    pulled = download(uri, target, tracking_uri=store)
    return json.loads((pulled.folder / "data" / "classes.json").read_text()), pulled.version.tags["class_names"]


def test_the_class_names_are_those_of_the_runs_training_images(recipe, make_run, store, tmp_path, caplog):
    run = make_run(recipe, classes={"names": ["ant", "bee", "cat", "dog"], "validation_labels": [3, 2, 1, 0]})
    published = publish_run(run, tracking_uri=store, name="named")
    assert _names(published.uri, store, tmp_path / "p") == (["ant", "bee", "cat", "dog"], "of the training images")
    assert not [line for line in caplog.messages if "numbers" in line]


def test_outputs_without_a_class_are_named_unnamed(recipe, make_run, store, tmp_path):
    wide = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, num_classes=6))
    run = make_run(wide, classes={"names": ["0", "1", "10", "5"], "validation_labels": None})
    names, _ = _names(publish_run(run, tracking_uri=store, name="wide").uri, store, tmp_path / "package")
    assert names == ["0", "1", "10", "5", "unnamed 4", "unnamed 5"]


def test_an_older_runs_class_names_are_those_of_its_training_shards(recipe, make_run, store, tmp_path):
    run = make_run(recipe)
    record = json.loads(Path(run, "recipe.json").read_text())
    record["recipe"]["data"]["train_digest"] = open_split(recipe.data.train).digest
    Path(run, "recipe.json").write_text(json.dumps(record))
    names, _ = _names(publish_run(run, tracking_uri=store, name="older").uri, store, tmp_path / "package")
    assert names == ["horizontal stripes", "vertical stripes", "diagonal stripes", "checkerboard"]


@pytest.mark.parametrize(
    ("recorded", "reason"),
    [
        ({"names": None, "validation_labels": None}, "its training images have no class names"),
        (None, "the run recorded no class names and the training images at .* have none"),
    ],
)
def test_numbers_replace_names_only_if_there_are_none_and_this_is_logged(
    recorded, reason, recipe, make_run, store, tmp_path, caplog
):
    # The images are normalized like CIFAR-10's, but they do not show its classes.
    assert recipe.data.dataset == "cifar10"
    published = publish_run(make_run(recipe, classes=recorded), tracking_uri=store, name="numbered")
    assert _names(published.uri, store, tmp_path / "package") == (["0", "1", "2", "3"], "numbers")
    (line,) = [line for line in caplog.messages if "registered as numbers" in line]
    assert re.fullmatch(f"the model's classes are registered as numbers: {reason}", line)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_a_registered_model_is_evaluated_by_name(order, recipe, make_run, store, tmp_path):
    names = ["horizontal stripes", "vertical stripes", "diagonal stripes", "checkerboard"]
    run = make_run(recipe, classes={"names": names, "validation_labels": None})
    model = publish_run(run, tracking_uri=store, name=f"by-name-{order[0]}").uri
    uri = rename_classes(
        recipe.data.validation, tmp_path / "other", [names[order.index(label)] for label in range(4)], order
    )
    options = ["--device", "cpu", "--tracking-uri", store]
    own = run_inside("evaluate", "--model", model, *options)
    other = run_inside("evaluate", "--model", model, "--validation", uri, *options)
    assert own.returncode == other.returncode == 0
    assert json.loads(own.stdout) == json.loads(other.stdout)
    assert ("have their classes in another order" in other.stderr) == (order != sorted(order))
    few = rename_classes(recipe.data.validation, tmp_path / "few", [names[2]], [None, None, 0, None])
    assert run_inside("evaluate", "--model", model, "--validation", few, *options).returncode == 0
    tags = MlflowClient(store).get_model_version(*model.removeprefix("models:/").split("/")).tags
    assert tags[f"evaluation.{open_split(few).digest[:12]}.classes"] == "1 of 4"
    assert tags[f"evaluation.{open_split(uri).digest[:12]}.classes"] == "4 of 4"
    strange = rename_classes(recipe.data.validation, tmp_path / "strange", ["a", "b", "c", "d"], [0, 1, 2, 3])
    assert run_inside("evaluate", "--model", model, "--validation", strange, *options).returncode == 2


def test_an_older_version_whose_names_are_numbers_is_evaluated_by_number(recipe, make_run, store):
    published = publish_run(make_run(recipe), tracking_uri=store, name="numbers")
    client = MlflowClient(store)
    client.delete_model_version_tag("numbers", published.version, "class_names")
    options = ["--validation", recipe.data.validation, "--device", "cpu"]
    done = run_inside("evaluate", "--model", published.uri, "--tracking-uri", store, *options)
    assert done.returncode == 0
    assert "cannot be compared with the model's, because the model's classes have no names" in done.stderr
    # A version that says so was trained on classes called 0, 1, 2, 3.
    client.set_model_version_tag("numbers", published.version, "class_names", "of the training images")
    assert run_inside("evaluate", "--model", published.uri, "--tracking-uri", store, *options).returncode == 2


def test_the_name_distinguishes_networks_and_data_sets(recipe: Recipe, make_run: MakeRun, store: str):
    assert publish_run(make_run(recipe), tracking_uri=store).name == "full_preactivation-resnet8-cifar10"


@pytest.mark.parametrize(
    ("placement", "shortcut", "dataset", "name"),
    [
        ("full_preactivation", "identity", "imagenet", "preact-resnet200"),
        ("full_preactivation", "conv1x1", "imagenet", "full_preactivation-conv1x1-resnet200-imagenet"),
        ("original", "identity", "imagenet", "original-resnet200-imagenet"),
        ("original", "identity", "cifar100", "original-resnet200-cifar100"),
    ],
)
def test_only_the_papers_network_on_imagenet_has_the_short_name(placement, shortcut, dataset, name):
    model = Model(depth=200, num_classes=10, placement=placement, shortcut=shortcut)
    assert default_name(model, dataset) == name


def test_an_evaluation_is_recorded_on_the_version(recipe: Recipe, make_run: MakeRun, store: str):
    published = publish_run(make_run(recipe), tracking_uri=store, name="evaluated")
    record_evaluation(
        published.uri,
        tracking_uri=store,
        digest="c" * 64,
        evaluation=Evaluation(),
        metrics={"val/top1_error_320px": 0.125},
    )
    tags = MlflowClient(store).get_model_version("evaluated", published.version).tags
    assert tags["evaluation.cccccccccccc.top1_error_320px"] == "0.125000"
    assert tags["evaluation.cccccccccccc.evaluated_at"] == "224 px of 256 px, 320 px of 320 px"


def test_bad_runs_and_checkpoints_are_named(recipe: Recipe, make_run: MakeRun, store: str, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"is not a run: it has no recipe.json"):
        publish_run(str(tmp_path), tracking_uri=store)
    run = make_run(recipe)
    with pytest.raises(FileNotFoundError, match="has no checkpoint after step 7"):
        publish_run(run, tracking_uri=store, step=7)
    (Path(run) / "checkpoints" / "step_00000006" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="damaged"):
        publish_run(run, tracking_uri=store)


def test_a_summary_names_the_registered_version_of_its_weights(store: str, make_run: MakeRun, recipe):
    run = make_run(recipe)
    weights = publish_run(run, tracking_uri=store, name="summed-up").weights_sha256
    file = Path(run, "summary.json")
    assert not file.exists()
    # As earlier versions of this project wrote it, without `weights_uri`.
    summary = {"status": "finished", "weights_sha256": weights, "model_uri": f"{run}/checkpoints/x/model.safetensors"}
    file.write_text(json.dumps(summary))
    published = publish_run(run, tracking_uri=store, name="summed-up")
    noted = json.loads(file.read_text())
    assert noted == summary | {"model_uri": "models:/summed-up/2", "weights_uri": summary["model_uri"]}
    with _tracking_in(store):
        loaded = mlflow.pytorch.load_model(noted["model_uri"])
    assert loaded is not None
    file.write_text(json.dumps(summary | {"weights_sha256": "of another checkpoint"}))
    publish_run(run, tracking_uri=store, name="summed-up")
    assert json.loads(file.read_text())["model_uri"] == summary["model_uri"]
    assert published.uri == "models:/summed-up/2"


@contextlib.contextmanager
def _tracking_in(uri: str) -> Iterator[None]:
    earlier = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(earlier)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
