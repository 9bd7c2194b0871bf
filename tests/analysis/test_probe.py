"""A probe's directory and its run in MLflow.

Oracles: a training run of the same recipe, what its options promise, MLflow's own client, and PIL.
"""

import csv
import dataclasses
import io
import json
import logging
import math
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from oracle.images import read_row_group
from oracle.sources import rename_classes
from PIL import Image
from registry.conftest import trained

from dist_resnet.analysis import plots, probe
from dist_resnet.analysis.probe import Probe, Subject, prepare_probe
from dist_resnet.analysis.propagation import Propagation, Span
from dist_resnet.data.shards.split import Split, open_split
from dist_resnet.launch import local
from dist_resnet.launch.trained import of_run
from dist_resnet.recipe import Execution, Recipe, Shortcut, Tracking
from dist_resnet.tracking.journal import history, read_journal
from dist_resnet.tracking.run_directory import RunDirectory

BLACK, BLUE, VERMILLION, GREEN = (0, 0, 0), (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)


def subject_of(recipe: Recipe, *, weights: dict[str, torch.Tensor] | None = None, **fields: object) -> Subject:
    model = dataclasses.replace(recipe.model, **fields)  # type: ignore[arg-type]
    label = f"{model.shortcut}_{model.depth}{'_trained' if weights else ''}"
    return Subject(label=label, recipe=dataclasses.replace(recipe, model=model), weights=weights)


def prepared(subjects: list[Subject], execution: Execution, *, batches: int = 1) -> Probe:
    return prepare_probe(subjects, batches, local.settle(execution), job="test")


def rows_of(directory: RunDirectory) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(directory.read("signal_propagation.csv").decode())))


def test_its_loss_is_that_of_the_first_training_step(recipe: Recipe, execution: Execution):
    # All four ghost batches of the first step, with the same weights, crops and flips.
    plan = local.prepare_run(recipe, dataclasses.replace(execution, name="training"), job="test")
    local.run(plan)
    (_, _, loss), *_ = history(read_journal(plan.directory))["train/loss"]
    result = probe.run(prepared([subject_of(recipe)], execution, batches=4))
    assert result["images"] == 32
    assert result["networks"][0]["loss"] == pytest.approx(loss, rel=1e-6)


def test_figure_table_and_result_lie_in_the_directory_and_in_mlflow(
    recipe: Recipe, execution: Execution, tmp_path: Path
):
    subjects = [subject_of(recipe), subject_of(recipe, shortcut="constant_scaling"), subject_of(recipe, depth=14)]
    ready = prepared(subjects, execution)
    result = probe.run(ready)
    assert json.loads(ready.directory.read("signal_propagation.json")) == result
    assert [network["label"] for network in result["networks"]] == ["identity_8", "constant_scaling_8", "identity_14"]
    rows = rows_of(ready.directory)
    assert [row["label"] for row in rows] == ["identity_8"] * 4 + ["constant_scaling_8"] * 4 + ["identity_14"] * 7

    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'dist_resnet'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["model.depth"] == "8"
    for label in ("identity_8", "constant_scaling_8", "identity_14"):
        for name in ("signal", "gradient", "shortcut_gradient"):
            points = client.get_metric_history(run.info.run_id, f"{name}/{label}")
            expected = [(int(row["l"]), float(row[name])) for row in rows if row["label"] == label]
            assert [(point.step, point.value) for point in points] == [
                (step, pytest.approx(value, rel=1e-5)) for step, value in expected
            ]
    kept = {artifact.path: artifact.file_size for artifact in client.list_artifacts(run.info.run_id)}
    for name in ("signal_propagation.png", "signal_propagation.csv", "signal_propagation.json"):
        assert kept[name] == len(ready.directory.read(name))
    (data_set,) = run.inputs.dataset_inputs
    assert data_set.dataset.digest == ready.train.digest[:36]


def test_a_spans_ratios_are_those_of_the_tables_rows(recipe: Recipe, execution: Execution):
    ready = prepared([subject_of(recipe, shortcut="constant_scaling", depth=14, shortcut_scale=0.25)], execution)
    (network,) = probe.run(ready)["networks"]
    rows = rows_of(ready.directory)
    assert [(span["first"], span["last"]) for span in network["spans"]] == [(0, 2), (3, 4), (5, 6)]
    for number, span in enumerate(network["spans"]):
        first, last = rows[span["first"]], rows[span["last"]]
        assert first["span"] == last["span"] == str(number)
        assert span["gradient_growth"] == pytest.approx(float(first["gradient"]) / float(last["gradient"]), rel=1e-4)
        assert span["signal_growth"] == pytest.approx(float(last["signal"]) / float(first["signal"]), rel=1e-4)
        by_formula = 0.25 ** (2 * (span["last"] - span["first"]))
        assert span["shortcut_product_squared_by_formula"] == pytest.approx(by_formula)
        assert span["shortcut_product_squared"] == pytest.approx(by_formula, rel=1e-4)
        assert span["eqn4_error"] is None
    assert rows[0]["eqn4_error"] == ""


def test_trained_weights_are_measured_as_they_are_and_have_no_formula_where_scales_were_learned(
    recipe: Recipe, execution: Execution
):
    recipe = subject_of(recipe, shortcut="shortcut_only_gating").recipe
    plan = local.prepare_run(recipe, dataclasses.replace(execution, name="training"), job="test")
    local.run(plan)
    trained = of_run(plan.directory.uri)
    subjects = [subject_of(trained.recipe), subject_of(trained.recipe, weights=trained.read_weights())]
    fresh, after = probe.run(prepared(subjects, execution, batches=4))["networks"]
    assert (fresh["weights"], after["weights"]) == ("fresh", "trained")
    assert after["loss"] < fresh["loss"]
    assert fresh["spans"][0]["shortcut_product_squared_by_formula"] == pytest.approx((1 / (1 + math.exp(-6))) ** 2)
    assert after["spans"][0]["shortcut_product_squared_by_formula"] is None


def test_trained_weights_see_the_labels_that_they_were_trained_on(recipe: Recipe, execution: Execution, tmp_path: Path):
    names, order = ("horizontal stripes", "vertical stripes", "diagonal stripes", "checkerboard"), [3, 1, 0, 2]
    turned = rename_classes(
        recipe.data.train, tmp_path / "turned", [names[order.index(label)] for label in range(4)], order
    )
    other = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, train=turned))
    weights = trained(recipe, execution).weights()

    def first(split: Split) -> list[int]:
        return read_row_group(split, 0).labels.tolist()[:32]

    def labels(classes: tuple[str, ...] | None) -> list[int]:
        subject = dataclasses.replace(subject_of(other, weights=weights), classes=classes)
        return first(prepared([subject], execution).train)

    assert labels(names) == first(open_split(recipe.data.train))
    assert labels(None) == first(open_split(turned)) != labels(names)
    with pytest.raises(ValueError, match=r"of the training images .* is not one of the model's 4 classes"):
        labels(("a", "b", "c", "d"))


def test_weights_of_another_network_are_refused(recipe: Recipe, execution: Execution):
    weights = {"stem.conv.weight": torch.zeros(16, 3, 3, 3)}
    with pytest.raises(ValueError, match="the checkpoint is of another model"):
        probe.run(prepared([subject_of(recipe, weights=weights)], execution))


def test_a_finished_probe_is_not_measured_again(
    recipe: Recipe, execution: Execution, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    ready = prepared([subject_of(recipe)], execution)
    first = probe.run(ready)
    monkeypatch.setattr(probe, "measure", None)
    with caplog.at_level(logging.INFO):
        assert probe.run(prepared([subject_of(recipe)], execution)) == first
    assert f"the probe at {ready.directory.uri} is finished already" in caplog.text


def test_what_decides_the_numbers_names_the_probe(recipe: Recipe, execution: Execution):
    unnamed = dataclasses.replace(execution, name=None)
    subjects = [subject_of(recipe)]
    names = {
        prepared(chosen, unnamed, batches=batches).directory.uri
        for chosen, batches in (
            (subjects, 1),
            (subjects, 2),
            ([subject_of(recipe, depth=14)], 1),
            ([subject_of(dataclasses.replace(recipe, seed=1))], 1),
            ([subject_of(recipe, weights={"a": torch.zeros(1)})], 1),
            ([subject_of(recipe, weights={"a": torch.ones(1)})], 1),
        )
    }
    assert len(names) == 6
    assert prepared(subjects, unnamed).directory.uri in names


def test_numbers_that_are_not_finite_are_told_and_spelled(recipe: Recipe, execution: Execution):
    ready = prepared([subject_of(recipe, shortcut="constant_scaling", depth=14, shortcut_scale=1e30)], execution)
    (network,) = probe.run(ready)["networks"]
    assert network["signal_growth"] in ("nan", "inf")
    assert rows_of(ready.directory)[-1]["signal"] in ("nan", "inf")
    assert Image.open(io.BytesIO(ready.directory.read("signal_propagation.png"))).size[0] > 400


def test_mlflow_that_is_away_costs_one_warning(recipe: Recipe, execution: Execution, caplog: pytest.LogCaptureFixture):
    ready = prepared(
        [subject_of(recipe)],
        dataclasses.replace(execution, tracking=Tracking(uri="http://127.0.0.1:1")),
    )
    probe.run(ready, wait_seconds=0.5)
    assert "jobs/deliver_tracking.py --run" in caplog.text
    assert ready.directory.exists("signal_propagation.png")


@pytest.mark.parametrize(
    ("changes", "batches", "complaint"),
    [
        ({}, 0, "batches must be at least 1, got 0"),
        # Three whole steps of four ghost batches in 96 images.
        ({}, 13, "an epoch has only 12 ghost batches, got --batches 13"),
        ({"train_digest": "0" * 64}, 1, "the recipe's images have the digest 000000000000"),
        ({"train": "/nowhere/*.parquet"}, 1, "no Parquet shards"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(
    recipe: Recipe, execution: Execution, changes: dict, batches: int, complaint: str
):
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, **changes))
    with pytest.raises((ValueError, FileNotFoundError), match=complaint):
        prepared([subject_of(recipe)], execution, batches=batches)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [({"depth": 21}, "no network has 21 layers"), ({"num_classes": 3}, "is not in 0 .. 2")],
)
def test_networks_that_cannot_be_are_refused(recipe: Recipe, execution: Execution, fields: dict, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        prepared([subject_of(recipe, **fields)], execution)


def test_the_directory_of_a_run_or_of_another_probe_is_refused(recipe: Recipe, execution: Execution):
    plan = local.prepare_run(recipe, dataclasses.replace(execution, name="training"), job="test")
    plan.claim()
    with pytest.raises(ValueError, match="is the directory of a run; use another --execution.name for a probe"):
        prepared([subject_of(recipe)], dataclasses.replace(execution, name="training"))
    probe.run(prepared([subject_of(recipe)], execution))
    with pytest.raises(ValueError, match="holds a probe of other networks or images"):
        prepared([subject_of(recipe)], execution, batches=2)


def found_of(gradient: tuple[float, ...]) -> Propagation:
    spans = (Span(first=0, last=1), Span(first=2, last=3))
    return Propagation(
        spans=spans,
        loss=2.0,
        signal=(1.0, 2.0, 3.0, 4.0),
        gradient=gradient,
        shortcut_gradient=gradient,
        sum_error=None,
        sum_rounding=None,
    )


def image_of(image: bytes) -> Image.Image:
    return Image.open(io.BytesIO(image)).convert("RGB")


def colors_of(image: bytes) -> set[tuple[int, int, int]]:
    return {color for _, color in image_of(image).getcolors(maxcolors=1 << 20)}


def panel_of(shortcut: Shortcut, gradient: tuple[float, ...], *, formula: bool) -> plots.Panel:
    found = found_of(gradient)
    # Apart from the gradient itself, so that neither curve hides the other.
    return plots.Panel(title=shortcut, found=found, formula_gradient=(50.0,) * 4 if formula else None)


def test_the_figure_shows_signal_gradient_shortcuts_and_formula():
    gradient = (4.0, 3.0, 2.0, 1.0)
    with_formula = plots.propagation([[panel_of("identity", gradient, formula=True)]], "title")
    without = plots.propagation([[panel_of("identity", gradient, formula=False)]], "title")
    assert {BLACK, BLUE, VERMILLION, GREEN} <= colors_of(with_formula)
    # The key has all four in any case.
    greens = [
        sum(number for number, color in image_of(image).getcolors(maxcolors=1 << 20) if color == GREEN)
        for image in (with_formula, without)
    ]
    assert greens[0] > greens[1] > 0


def test_there_is_a_row_of_panels_for_each_shortcut():
    one = panel_of("identity", (4.0, 3.0, 2.0, 1.0), formula=True)
    small = image_of(plots.propagation([[one, one]], "title")).size
    large = image_of(plots.propagation([[one, one, one], [one], [one]], "title")).size
    assert large[0] > small[0]
    assert large[1] > 2 * small[1]


@pytest.mark.parametrize("gradient", [(1e300, 1e20, 1e-200, 1.0), (math.nan, math.inf, 1.0, 1.0), (1.0, 1.0, 1.0, 0.0)])
def test_curves_that_leave_the_panel_or_end_are_drawn_too(gradient: tuple[float, ...]):
    image = plots.propagation([[panel_of("dropout", gradient, formula=False)]], "title")
    assert BLUE in colors_of(image)
