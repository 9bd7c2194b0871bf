"""Initial weights on the driver. Oracle: the tensors that were saved, sha256 by hashlib, and bad input of each kind."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from jobs.inside import run_inside
from registry.conftest import trained
from weights.published import torchvision_network

from dist_resnet.launch.plan import Plan, prepare
from dist_resnet.recipe import Execution, Initial, Model, Recipe
from dist_resnet.registry.publish import publish_run
from dist_resnet.tracking.run_directory import RunDirectory
from dist_resnet.train import checkpoint
from dist_resnet.train.checkpoint import Snapshot
from dist_resnet.weights.files import CLASSES

CLASSIFIER = ("head.classifier.weight", "head.classifier.bias")


@pytest.fixture
def source(recipe: Recipe, execution: Execution, tmp_path: Path) -> str:
    """A run of the same recipe with a checkpoint."""
    plan = prepare(recipe, replace(execution, name="source"), job="test")
    plan.claim()
    checkpoint.save(plan.directory, Snapshot.of(trained(recipe, execution, seed=5)))
    return plan.directory.uri


def _from(recipe: Recipe, weights: object, **fields) -> Recipe:
    return replace(recipe, initial=Initial(weights=str(weights), **fields))


def _weights(source: str) -> Path:
    return Path(source, "checkpoints/step_00000006/model.safetensors")


def _started(plan: Plan) -> dict[str, torch.Tensor]:
    """The file that a plan writes for its workers."""
    plan.claim()
    return safetensors.torch.load_file(f"{plan.directory.uri}/initial.safetensors")


def test_a_run_a_checkpoint_a_file_and_a_registered_model_are_the_same_recipe(
    recipe: Recipe, execution: Execution, source: str, tmp_path: Path
):
    store = f"sqlite:///{tmp_path}/mlflow.db"
    sha256 = hashlib.sha256(_weights(source).read_bytes()).hexdigest()
    torch.save(safetensors.torch.load_file(_weights(source)), tmp_path / "a.pth")
    published = publish_run(source, tracking_uri=store, name="initial")
    in_store = replace(execution, tracking=replace(execution.tracking, uri=store))
    sources = (source, f"{source}/checkpoints/step_00000006", _weights(source), tmp_path / "a.pth", published.uri)
    plans = [prepare(_from(recipe, one, head="keep"), in_store, job="test") for one in sources]
    assert {plan.recipe.initial.sha256 for plan in plans} == {sha256}
    assert len({plan.recipe.fingerprint() for plan in plans}) == 1
    assert plans[0].recipe.fingerprint() != prepare(recipe, execution, job="test").recipe.fingerprint()
    assert _started(plans[0]).keys() == safetensors.torch.load_file(_weights(source)).keys()


def test_the_weights_are_written_on_the_claim_and_do_not_travel_with_the_plan(
    recipe: Recipe, execution: Execution, source: str
):
    plan = prepare(_from(recipe, source), execution, job="test")
    assert plan.directory.list("") == []
    assert plan.__getstate__()["initial_weights"] is None
    for name, tensor in _started(plan).items():
        assert torch.equal(tensor, safetensors.torch.load_file(_weights(source))[name])
    assert plan.notes[0].startswith(
        f"training starts from {source} (sha256 {plan.recipe.initial.sha256[:12]}...), with"
    )


def _file(source: str, tmp_path: Path, class_names: list[str] | None) -> Path:
    """The source's weights in a file that has class names, or none."""
    path, about = tmp_path / "named.safetensors", {CLASSES: json.dumps(class_names)} if class_names else {}
    safetensors.torch.save_file(safetensors.torch.load_file(_weights(source)), path, metadata=about)
    return path


@pytest.mark.parametrize(
    ("names", "head", "expected"),
    [
        (lambda names: names, "auto", "keep"),
        (lambda names: names, "new", "new"),
        (lambda names: names[::-1], "auto", "keep"),
        (lambda names: [*names[:3], "other"], "auto", "new"),
        (lambda names: None, "auto", "new"),
        (lambda names: None, "keep", "keep"),
    ],
)
def test_the_head_is_kept_where_the_classes_have_the_same_names(
    recipe: Recipe, execution: Execution, source: str, tmp_path: Path, names: Callable, head, expected: str
):
    own = list(prepare(recipe, execution, job="test").classes or ())
    file = _file(source, tmp_path, names(own))
    plan = prepare(_from(recipe, file, head=head), execution, job="test")
    assert plan.recipe.initial.head == expected
    assert f"{'a new' if expected == 'new' else 'their'} head" in plan.notes[0]
    order = [names(own).index(name) for name in own] if expected == "keep" and names(own) else [0, 1, 2, 3]
    started, stored = _started(plan), safetensors.torch.load_file(file)
    for name in CLASSIFIER:
        assert torch.equal(started[name], stored[name][order])


def test_the_same_weights_with_classes_in_another_order_have_another_sha256(
    recipe: Recipe, execution: Execution, source: str, tmp_path: Path
):
    own = list(prepare(recipe, execution, job="test").classes or ())
    first = prepare(_from(recipe, _file(source, tmp_path, own)), execution, job="test").recipe
    other = prepare(_from(recipe, _file(source, tmp_path, own[::-1])), execution, job="test").recipe
    assert first.fingerprint() != other.fingerprint()
    sha256 = hashlib.sha256(_weights(source).read_bytes()).hexdigest()
    for given in (sha256, other.initial.sha256):
        same = prepare(_from(recipe, _file(source, tmp_path, own[::-1]), sha256=given), execution, job="test")
        assert same.recipe.fingerprint() == other.fingerprint()


def test_a_run_that_is_there_keeps_its_weights_whatever_the_address_has_by_now(
    recipe: Recipe, execution: Execution, source: str, tmp_path: Path
):
    file = _file(source, tmp_path, None)
    first = prepare(_from(recipe, file, freeze="stem"), execution, job="test")
    first.claim()
    file.unlink()
    again = prepare(_from(recipe, file, freeze="stem"), execution, job="test")
    assert again.recipe == first.recipe
    assert again.initial_weights is None
    with pytest.raises(ValueError, match=r"another recipe: initial.freeze \(was stem, now none\)"):
        prepare(_from(recipe, file), execution, job="test")
    # The recipe itself, as run_training takes it from a notebook.
    assert prepare(first.recipe, execution, job="test").recipe == first.recipe


def test_a_new_run_of_a_changed_address_is_another_recipe(recipe: Recipe, execution: Execution, source: str):
    first = prepare(_from(recipe, source), replace(execution, name=None), job="test")
    state = trained(recipe, execution, seed=6)
    state.step = 7
    checkpoint.save(RunDirectory(source), Snapshot.of(state))
    second = prepare(_from(recipe, source), replace(execution, name=None), job="test")
    assert first.name != second.name


def test_published_weights_of_torchvision_become_a_new_head_on_its_layers(
    recipe: Recipe, execution: Execution, tmp_path: Path
):
    theirs = torchvision_network(classes=1000)
    torch.save(theirs.state_dict(), tmp_path / "resnet50-0123abcd.pth")
    recipe = replace(recipe, model=Model(depth=50, num_classes=4, placement="original"))
    plan = prepare(_from(recipe, tmp_path / "resnet50-0123abcd.pth"), execution, job="test")
    assert plan.recipe.initial.head == "new"
    assert "with a new head: the weights have 1000 outputs, the model has 4" in plan.notes[0]
    assert torch.equal(_started(plan)["stem.conv.weight"], theirs.state_dict()["conv1.weight"])


@pytest.mark.parametrize(
    ("change", "fields", "complaint"),
    [
        ({}, {"sha256": "0" * 64}, "initial.sha256 must match: 000000000000... was given, but the weights at .* have"),
        (
            {"model": Model(depth=14, num_classes=4)},
            {},
            "depth 8, not 14; they lack stages.0.units.1.preactivation.norm.weight, .* and 27 more; give --model",
        ),
        (
            {"model": Model(depth=8, num_classes=4, shortcut="dropout")},
            {},
            "they have shortcut identity, not dropout; give --mo",
        ),
        (
            {"model": Model(depth=8, num_classes=4, placement="original")},
            {},
            "they also have head.activation.norm.bias, .* and 12 more; give --model.placement full_p",
        ),
        (
            {},
            {"freeze": "stage4"},
            "initial.freeze stage4: the network of depth 8 has the stages 1 .. 3; give --initial.freeze stem, s",
        ),
    ],
)
def test_bad_weights_are_refused_in_one_line_before_anything_starts(
    recipe: Recipe, execution: Execution, source: str, change: dict, fields: dict, complaint: str
):
    with pytest.raises(ValueError, match=complaint) as caught:
        prepare(_from(replace(recipe, **change), source, **fields), execution, job="test")
    assert "\n" not in str(caught.value)
    assert not Path(execution.storage, "run", "recipe.json").exists()


def test_a_head_to_keep_with_other_classes_is_refused_with_their_names(
    recipe: Recipe, execution: Execution, source: str, tmp_path: Path
):
    own = list(prepare(recipe, execution, job="test").classes or ())
    file = _file(source, tmp_path, [*own[:3], "zebra"])
    with pytest.raises(
        ValueError, match="2 classes are not in both, the images and the weights: .*'zebra'; give images"
    ):
        prepare(_from(recipe, file, head="keep"), execution, job="test")
    torch.save(trained(replace(recipe, model=Model(depth=8, num_classes=5)), execution).weights(), tmp_path / "5.pth")
    with pytest.raises(ValueError, match="initial.head keep: the weights have 5 outputs, the model has 4; give"):
        prepare(_from(recipe, tmp_path / "5.pth", head="keep"), execution, job="test")


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("none.pth", "none.pth"),
        ("nothing", "nothing is not a run"),
        ("s3://me:secret@bucket/a.pth", r"initial.weights contains a password, s3://\*\*\*@bucket"),
        ("models:/nothing@champion", "registry|mlflow.db"),
    ],
)
def test_an_address_without_weights_is_refused(
    recipe: Recipe, execution: Execution, tmp_path: Path, address: str, complaint: str
):
    address = address if ":" in address else str(tmp_path / address)
    with pytest.raises((ValueError, OSError), match=complaint):
        prepare(_from(recipe, address), execution, job="test")


@pytest.mark.parametrize("fields", [{"sha256": "a"}, {"head": "new"}, {"freeze": "stem"}])
def test_what_is_about_trained_weights_needs_them(fields: dict):
    with pytest.raises(ValueError, match="give --initial.weights too"):
        Initial(**fields)


def test_a_job_refuses_a_truncated_file_and_an_unknown_part_with_exit_code_2(images: tuple[str, str], tmp_path: Path):
    (tmp_path / "a.pth").write_bytes(b"PK\x03\x04")
    options = ["--data.train", images[0], "--data.validation", images[1], "--model.depth", "8"]
    options += ["--model.num-classes", "4", "--global-batch", "32", "--ghost-batch", "8"]
    options += ["--execution.storage", str(tmp_path / "runs"), "--initial.weights", str(tmp_path / "a.pth")]
    done = run_inside("cifar_preact164", *options)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "a.pth is damaged or not a file of PyTorch" in done.stderr
    done = run_inside("cifar_preact164", *options, "--initial.freeze", "stage9")
    assert done.returncode == 2
    assert "stage9" in done.stderr
    assert not list((tmp_path / "runs").glob("*/recipe.json"))
