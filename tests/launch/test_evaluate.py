"""Evaluation on images with other class numbers or fewer classes.

Oracle: the evaluation of the same images as the model numbers them, and of each class alone.
"""

import dataclasses
import json
from pathlib import Path

import pytest
from jobs.inside import run_inside
from oracle.images import jpeg, smooth, write_rows
from oracle.sources import rename_classes
from registry.conftest import trained

from dist_resnet.launch import local
from dist_resnet.launch.evaluate import Evaluated, evaluate_trained
from dist_resnet.launch.plan import prepare
from dist_resnet.launch.trained import of_run
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.train import checkpoint
from dist_resnet.train.checkpoint import Snapshot

NAMES = ["horizontal stripes", "vertical stripes", "diagonal stripes", "checkerboard"]


@pytest.fixture
def run(recipe: Recipe, execution: Execution) -> str:
    """A run's directory with random weights, whose error differs between classes."""
    plan = prepare(recipe, execution, job="test")
    plan.claim()
    checkpoint.save(plan.directory, Snapshot.of(trained(recipe, execution)))
    return plan.directory.uri


def _evaluate(run: str, execution: Execution, validation: str | None = None, **options) -> Evaluated:
    alone = Execution(device=execution.device, precision="fp32", cpus_per_worker=1)
    return evaluate_trained(of_run(run), local.settle(alone), validation=validation, **options)


def test_an_evaluation_has_the_settings_of_training(run, execution, monkeypatch):
    used = []
    monkeypatch.setattr("dist_resnet.train.loop.configure_backend", used.append)
    _evaluate(run, execution)
    assert [(one.precision, one.performance.deterministic) for one in used] == [("fp32", True)]


@pytest.mark.parametrize("order", [[3, 1, 0, 2], [1, 2, 3, 0]])
def test_the_same_images_with_other_class_numbers_have_the_same_errors(run, recipe, execution, tmp_path, order, caplog):
    caplog.set_level("INFO")
    own = _evaluate(run, execution)
    names = [NAMES[order.index(label)] for label in range(4)]
    other = rename_classes(recipe.data.validation, tmp_path / "other", names, order)
    found = _evaluate(run, execution, other)
    assert found.metrics == own.metrics
    assert 0 < own.metrics["val/top1_error"] < 1
    assert found.lacking == ()
    assert sum("have their classes in another order" in line for line in caplog.messages) == 1
    by_number = _evaluate(run, execution, other, match_classes="numbers")
    assert by_number.metrics["val/loss"] != own.metrics["val/loss"]


def test_a_subset_of_the_classes_is_evaluated_on_its_own_classes(run, recipe, execution, tmp_path):
    own, errors, images = _evaluate(run, execution), 0.0, 0
    for pair in ([2, 0], [1, 3]):
        uri = rename_classes(
            recipe.data.validation,
            tmp_path / str(pair[0]),
            [NAMES[label] for label in pair],
            [pair.index(label) if label in pair else None for label in range(4)],
        )
        found = _evaluate(run, execution, uri)
        assert set(found.lacking) == set(NAMES) - {NAMES[label] for label in pair}
        assert found.num_classes == 4
        errors += 20 * found.metrics["val/top1_error"]
        images += 20
    assert errors / images == pytest.approx(own.metrics["val/top1_error"])


def test_a_subset_is_reported_by_the_job(run, recipe, tmp_path):
    uri = rename_classes(recipe.data.validation, tmp_path / "few", [NAMES[3]], [None, None, None, 0])
    done = run_inside("evaluate", "--run", run, "--validation", uri, "--device", "cpu")
    assert done.returncode == 0
    assert json.loads(done.stdout)["classes_without_images"] == NAMES[:3]
    assert "have 1 of the model's 4 classes; without images: 'horizontal stripes'" in done.stderr


@pytest.mark.parametrize("size", [(48, 48), (32, 40), (20, 32)])
def test_images_of_another_size_than_pad_needs_end_the_job_with_one_line(run, tmp_path, size):
    write_rows(tmp_path / "other" / "a.parquet", [jpeg(smooth(*size, number)) for number in range(8)], [0, 1, 2, 3] * 2)
    done = run_inside(
        "evaluate",
        "--run",
        run,
        "--validation",
        str(tmp_path / "other"),
        "--match-classes",
        "numbers",
        "--device",
        "cpu",
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"a.parquet row 0 has {size[1]} x {size[0]}; give images of that size" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_images_of_unknown_classes_end_the_job_with_one_line(run, recipe, tmp_path):
    uri = rename_classes(recipe.data.validation, tmp_path / "other", ["a", "b", "c", "d"], [0, 1, 2, 3])
    options = ["--run", run, "--validation", uri, "--device", "cpu"]
    done = run_inside("evaluate", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "is not one of the model's 4 classes, 'horizontal stripes'" in done.stderr
    assert "or --match-classes numbers if" in done.stderr
    assert run_inside("evaluate", *options, "--match-classes", "numbers").returncode == 0


def test_a_run_that_matched_by_number_is_evaluated_by_number(recipe: Recipe, execution: Execution, tmp_path: Path):
    uri = rename_classes(recipe.data.validation, tmp_path / "other", ["a", "b", "c", "d"], [0, 1, 2, 3])
    data = dataclasses.replace(recipe.data, validation=uri, match_classes="numbers")
    plan = prepare(dataclasses.replace(recipe, data=data), execution, job="test")
    plan.claim()
    checkpoint.save(plan.directory, Snapshot.of(trained(recipe, execution)))
    assert _evaluate(plan.directory.uri, execution).lacking == ()
    with pytest.raises(ValueError, match="is not one of the model's 4 classes"):
        _evaluate(plan.directory.uri, execution, uri)


def test_an_older_run_is_evaluated_by_the_names_of_its_training_shards(run, recipe, execution, tmp_path):
    file = Path(run, "recipe.json")
    record = json.loads(file.read_text())
    del record["classes"], record["recipe"]["data"]["match_classes"]
    file.write_text(json.dumps(record))
    order = [3, 1, 0, 2]
    names = [NAMES[order.index(label)] for label in range(4)]
    other = rename_classes(recipe.data.validation, tmp_path / "other", names, order)
    assert _evaluate(run, execution, other).metrics == _evaluate(run, execution).metrics
