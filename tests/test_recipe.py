"""Recipes and executions. Oracle: the values written in the tests, and hashlib over JSON written by hand."""

import dataclasses
import hashlib
import json
import re

import pytest

from dist_resnet.recipe import (
    Augment,
    Data,
    Evaluation,
    Execution,
    Initial,
    Model,
    Optimizer,
    Recipe,
    Recovery,
    Schedule,
    check_pair,
)


def _recipe(**changes) -> Recipe:
    return dataclasses.replace(
        Recipe(model=Model(depth=20, num_classes=10), data=Data(train="a", validation="b"), augment=Augment()),
        **changes,
    )


def test_a_recipe_survives_json():
    recipe = _recipe(epochs=1.5, schedule=Schedule(drops=(0.25, 0.5)))
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_the_fingerprint_is_the_sha256_of_the_sorted_compact_json_without_locations():
    recipe = _recipe()
    values = recipe.to_dict()
    del values["data"]["train"], values["data"]["validation"]
    for newer in ("label_column", "match_classes", "mean", "std", "balance"):
        del values["data"][newer]
    del values["initial"], values["schedule"]["head_factor"]
    values["augment"]["color"] = False  # the first release's word for none
    expected = hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    assert recipe.fingerprint() == expected


def test_a_recipe_without_newer_fields_has_the_fingerprint_of_the_first_release():
    # Recorded with the first release, whose defaults these were.
    recipe = _recipe(
        model=Model(depth=20, num_classes=10, widening="projection"), optimizer=Optimizer(decay_norm_and_bias=True)
    )
    values = recipe.to_dict()
    values["augment"]["color"] = False
    assert Recipe.from_dict(values) == recipe
    assert recipe.fingerprint() == "501dccd95bb5b63be1fde53edfb7fafe1caf00707b3e76d9daaae5c096b3f2f8"


def test_a_file_of_the_first_release_is_read_and_its_newer_fields_are_at_their_defaults():
    values = _recipe().to_dict()
    for newer in ("label_column", "match_classes", "mean", "std", "balance"):
        del values["data"][newer]
    del values["initial"], values["schedule"]["head_factor"]
    assert Recipe.from_dict(values) == _recipe()


def test_the_sha256_of_initial_weights_counts_and_their_address_does_not():
    prints = [
        _recipe(initial=Initial(weights=address, sha256=sha256)).fingerprint()
        for address, sha256 in (("a", "1"), ("b", "1"), ("a", "2"))
    ]
    assert prints[0] == prints[1] != prints[2]
    assert _recipe().fingerprint() not in prints


def test_a_newer_field_counts_once_it_is_set():
    chosen = _recipe(data=Data(train="a", validation="b", label_column="coarse_label"))
    assert chosen.fingerprint() != _recipe().fingerprint()
    assert Recipe.from_dict(json.loads(json.dumps(chosen.to_dict()))) == chosen
    assert chosen.differences(_recipe()) == {"data.label_column": ("coarse_label", None)}
    assert _recipe().differences(chosen) == {"data.label_column": (None, "coarse_label")}


def test_the_fingerprint_does_not_change_when_the_data_moves():
    moved = _recipe(data=Data(train="s3://bucket/train", validation="s3://bucket/validation"))
    assert moved.fingerprint() == _recipe().fingerprint()


def test_the_fingerprint_changes_with_any_number():
    changed = [
        _recipe(seed=1),
        _recipe(epochs=91),
        _recipe(ghost_batch=64),
        _recipe(model=Model(depth=56, num_classes=10)),
        _recipe(data=Data(train="a", validation="b", train_digest="0" * 64)),
        _recipe(optimizer=Optimizer(nesterov=True)),
    ]
    assert len({recipe.fingerprint() for recipe in [_recipe(), *changed]}) == len(changed) + 1


def test_a_whole_number_of_epochs_has_one_fingerprint_however_it_is_written():
    assert _recipe(epochs=90).fingerprint() == _recipe(epochs=90.0).fingerprint()


def test_differences_name_the_fields():
    assert _recipe(seed=3).differences(_recipe()) == {"seed": (3, 0)}


@pytest.mark.parametrize(("old", "new"), [(True, "full"), (False, "none")])
def test_recipes_of_the_first_release_said_of_color_yes_or_no(old, new):
    values = _recipe().to_dict()
    values["augment"]["color"] = old
    assert Recipe.from_dict(values).augment.color == new


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda values: values.update(color=1), "unknown entries ['color']"),
        (lambda values: values.pop("seed"), "lacks the entries ['seed']"),
        (lambda values: values.update(seed="1"), "recipe.seed must be int, got '1'"),
        (lambda values: values.update(seed=True), "recipe.seed must be int, got True"),
        (lambda values: values["model"].update(shortcut="gate"), "recipe.model.shortcut must be"),
        (lambda values: values["schedule"].update(drops=[0.1, "x"]), "recipe.schedule.drops must be float"),
        (lambda values: values.update(data=3), "recipe.data must be an object, got 3"),
    ],
)
def test_reading_a_recipe_is_strict(damage, complaint):
    values = _recipe().to_dict()
    damage(values)
    with pytest.raises(ValueError, match=re.escape(complaint)):
        Recipe.from_dict(values)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: _recipe(global_batch=100), "global_batch 100 is not a multiple of ghost_batch 32"),
        (lambda: _recipe(epochs=0), "epochs must be above 0, got 0"),
        (lambda: _recipe(label_smoothing=1.0), "label_smoothing must be in [0, 1), got 1.0"),
        (lambda: Model(depth=20, num_classes=1), "model.num_classes must be at least 2, got 1"),
        (lambda: Model(depth=20, num_classes=2, shortcut="highway"), "shortcut must be one of identity, constant"),
        (lambda: Model(depth=20, num_classes=2, gate_bias=float("nan")), "model.gate_bias must be a finite number"),
        (lambda: Data(train="", validation="b"), "data.train is empty"),
        (lambda: Data(train="a", validation="b", label_column=""), "data.label_column is empty"),
        (lambda: Data(train="a", validation="b", balance="equal"), "balance must be one of none, square_root, classes"),
        (lambda: Data(train="a", validation="b", mean=(0.5,) * 3), "data.mean is given without data.std"),
        (lambda: Data(train="a", validation="b", mean=(0.5,) * 3, std=(0.5, 0.0, 0.5)), "data.std must be three num"),
        (lambda: Augment(size=300), "augment.shorter_side starts at 256, below the crop of 300 pixels"),
        (lambda: Augment(area=(0.5, 0.2)), "augment.area must be a rising pair"),
        (lambda: Optimizer(momentum=0.0, nesterov=True), "optimizer.nesterov needs a momentum above 0"),
        (lambda: Schedule(drops=(0.5, 0.25)), "schedule.drops must rise within (0, 1)"),
        (lambda: Schedule(learning_rate=0.0), "schedule.learning_rate must be positive"),
        (lambda: Evaluation(crops=(224,), shorter_sides=(256, 320)), "evaluation.shorter_sides needs one entry"),
        (lambda: Evaluation(crops=(320,), shorter_sides=(256,)), "has 256, below its crop of 320 pixels"),
        (
            lambda: Execution(workers=0),
            "execution.workers must be a number of at least 1, or MIN:MAX such as 2:8, got 0",
        ),
        (lambda: Execution(workers="4:2"), "or MIN:MAX such as 2:8, got '4:2'"),
        (lambda: Execution(workers="2:"), "or MIN:MAX such as 2:8, got '2:'"),
        (
            lambda: Execution(recovery=Recovery(hang_timeout_minutes=0)),
            "execution.recovery.hang_timeout_minutes must be above 0, got 0",
        ),
        (lambda: Execution(name="../other"), "execution.name must be the name of one folder"),
        (lambda: Execution(name=".."), "execution.name must be the name of one folder"),
        (lambda: Execution(name=" "), "execution.name must be the name of one folder"),
        (lambda: Execution(name="a\nb"), "and control characters, and must not begin with a dash, got 'a\\nb'"),
        (lambda: Execution(name="-run"), "and must not begin with a dash, got '-run'"),
        (lambda: Execution(name="x" * 300), "execution.name has 300 bytes, more than the 250 allowed: 'xxx"),
        (lambda: Execution(name="\u00e9" * 126), "execution.name has 252 bytes, more than the 250 allowed"),
        (lambda: Execution(name="mlflow.db"), "execution.name mlflow.db is used by MLflow in the storage"),
        (lambda: Execution(precision="fp8"), "precision must be one of fp32, tf32, bf16, fp16; got 'fp8'"),
    ],
)
def test_impossible_values_are_named(make, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        make()


@pytest.mark.parametrize("name", ["my run", "50%", "r\u00e9seau", "a#b?c", "x" * 250, "..x", "\u00e9" * 125])
def test_what_can_be_a_folder_can_be_a_runs_name(name: str):
    assert Execution(name=name).name == name


def test_more_workers_than_ghost_batches_are_refused():
    with pytest.raises(ValueError, match="execution.workers 9 exceeds the 8 ghost batches of a step"):
        check_pair(_recipe(), Execution(workers=9))
    check_pair(_recipe(), Execution(workers=8))


@pytest.mark.parametrize(("workers", "expected"), [(3, (3, 3)), ("3", (3, 3)), ("2:8", (2, 8))])
def test_a_number_of_workers_may_be_a_range(workers, expected):
    execution = Execution(workers=workers)
    assert execution.worker_range == expected
    assert execution.most_workers == expected[1]
