"""A probe: networks measured on the same real images, stored in STORAGE/NAME/ and delivered to MLflow.

The directory holds `signal_propagation.png`, `signal_propagation.csv` with a row for each x_l of each network, and
`signal_propagation.json`, which summarizes each span and is written last.
"""

import csv
import hashlib
import io
import itertools
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import safetensors.torch
import torch

from dist_resnet.analysis import plots
from dist_resnet.analysis.propagation import Batch, Propagation, Span, measure, scale_products
from dist_resnet.data.input.decoders import InputOptions
from dist_resnet.data.input.order import steps_per_epoch
from dist_resnet.data.loader import TrainingImages
from dist_resnet.data.shards import classes
from dist_resnet.data.shards.measured import with_measured
from dist_resnet.data.shards.split import Split, open_split
from dist_resnet.model import build_model
from dist_resnet.model.resnet import ResNet
from dist_resnet.model.shortcuts import SHORTCUTS
from dist_resnet.recipe import Execution, Initial, Recipe
from dist_resnet.storage.uri import absolute_uri, without_credentials
from dist_resnet.tracking import provenance
from dist_resnet.tracking.holding import keeping
from dist_resnet.tracking.journal import Journal, read_journal
from dist_resnet.tracking.mlflow.address import store_of
from dist_resnet.tracking.mlflow.delivery import deliver
from dist_resnet.tracking.mlflow.run_description import DataSet, RunDescription
from dist_resnet.tracking.mlflow.sink import MlflowSink
from dist_resnet.tracking.records import Metrics, Session
from dist_resnet.tracking.run_directory import RECIPE_FILE, RunDirectory
from dist_resnet.train.loop import create_state
from dist_resnet.worker import Worker

logger = logging.getLogger(__name__)

FIGURE_FILE, TABLE_FILE, RESULT_FILE = (f"signal_propagation.{ending}" for ending in ("png", "csv", "json"))


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network to measure."""

    label: str
    """Its name in files and MLflow's keys, such as identity_110."""
    recipe: Recipe
    weights: dict[str, torch.Tensor] | None = None
    """Trained weights and BN statistics by name; None for initial weights, drawn with the recipe's seed."""
    classes: tuple[str, ...] | None = None
    """Class names that the weights were trained on; None for initial weights and if they are unknown."""

    @property
    def scale(self) -> float | None:
        """The factor of each shape-keeping shortcut by formula; None if it was learned."""
        shortcut = SHORTCUTS[self.recipe.model.shortcut]
        trained = self.weights is not None and shortcut.is_learned
        return None if trained else shortcut.gradient_scale(self.recipe.model)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A subject with its measurements."""

    subject: Subject
    found: Propagation

    @property
    def formula_gradient(self) -> tuple[float, ...] | None:
        """`shortcut_gradient` by Eqn. (8) with the scale of the formula; None if there is no formula."""
        if self.subject.scale is None:
            return None
        ends = (self.found.gradient[span.last] for span in self.found.spans for _ in range(span.num_units + 1))
        products = scale_products(self.found.spans, self.subject.scale)
        return tuple(end * product * product for end, product in zip(ends, products, strict=True))


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A probe that has passed every check."""

    subjects: tuple[Subject, ...]
    """At least one; their recipes differ in the model only."""
    num_batches: int
    train: Split
    execution: Execution
    directory: RunDirectory

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the probe's numbers."""
        return _identity(self.subjects, self.num_batches)


def prepare_probe(subjects: Sequence[Subject], num_batches: int, execution: Execution, *, job: str) -> Probe:
    """The probe of subjects whose recipes differ in the model only, checked.

    `execution` is settled for one worker of this machine; `job` begins the probe's name if none is given. Raises
    ValueError or FileNotFoundError, before anything is measured, with one line that says what to do.
    """
    if num_batches < 1:
        raise ValueError(f"batches must be at least 1, got {num_batches}")
    recipe = subjects[0].recipe
    for subject in subjects:
        with torch.device("meta"):
            build_model(subject.recipe.model)
    train = _open(subjects)
    known = recipe.data.train_digest
    if known is not None and known != train.digest:
        raise ValueError(
            f"the recipe's images have the digest {known[:12]}..., the shards at {train.uri} have "
            f"{train.digest[:12]}...; give the recipe's shards, or choose others with --data.train"
        )
    most = steps_per_epoch(train.num_images, recipe.global_batch) * recipe.num_ghost_batches
    if num_batches > most:
        raise ValueError(f"an epoch has only {most} ghost batches, got --batches {num_batches}; lower it")
    subjects = tuple(_with_images(subject, train) for subject in subjects)
    name = execution.name or f"{job}-{_digest(_identity(subjects, num_batches))[:8]}"
    storage = RunDirectory(execution.storage)
    storage.check_writable()
    probe = Probe(
        subjects=subjects,
        num_batches=num_batches,
        train=train,
        execution=execution,
        directory=RunDirectory(storage.child(name)),
    )
    _check_unused(probe)
    store_of(probe.directory, execution.tracking.uri)
    return probe


def run(probe: Probe, *, wait_seconds: float = 60.0) -> dict[str, Any]:
    """Measures, stores and delivers the results; returns the content of `signal_propagation.json`.

    Waits up to `wait_seconds` for MLflow. A finished probe is not measured again; only what MLflow lacks is delivered.
    """
    uri = store_of(probe.directory, probe.execution.tracking.uri, resolve=False)
    known = probe.directory.read_json(RESULT_FILE)
    if known is not None:
        logger.info("the probe at %s is finished already", probe.directory.uri)
        _deliver_the_rest(probe, uri, wait_seconds)
        return known
    with keeping(probe.directory):
        return _run(probe, uri, wait_seconds)


def _run(probe: Probe, uri: str, wait_seconds: float) -> dict[str, Any]:
    measured = _measure(probe)
    recipe = probe.subjects[0].recipe
    claim = {"fingerprint": recipe.fingerprint(), "recipe": recipe.to_dict(), "probe": probe.identity}
    probe.directory.write_json(RECIPE_FILE, claim)
    result = {
        "images": probe.num_batches * recipe.ghost_batch,
        "ghost_batch": recipe.ghost_batch,
        "train_digest": probe.train.digest,
        "networks": [_summary(each) for each in measured],
    }
    files = {
        FIGURE_FILE: plots.propagation(_panels(measured), _title(probe)),
        TABLE_FILE: _table(measured).encode(),
        RESULT_FILE: (json.dumps(result, indent=2, allow_nan=False) + "\n").encode(),
    }
    _record(probe, measured)
    sink = MlflowSink(uri, probe.directory, _card(probe), records=read_journal(probe.directory))
    sink.close("FINISHED", files, wait_seconds=wait_seconds)
    for name, content in files.items():
        probe.directory.write(name, content)
    logger.info("the figure is %s, tracked at %s", probe.directory.child(FIGURE_FILE), without_credentials(uri))
    return result


def _deliver_the_rest(probe: Probe, uri: str, wait_seconds: float) -> None:
    """Delivers to MLflow what it lacks of a finished probe, if MLflow accepts it."""
    try:
        deliver(probe.directory, uri, wait_seconds=wait_seconds)
    except OSError as error:
        logger.warning("cannot deliver the probe to MLflow: %s", error)


def _measure(probe: Probe) -> list[Measured]:
    worker = Worker(rank=0, world_size=1, device=torch.device("cuda" if probe.execution.device == "gpu" else "cpu"))
    batches = _images(probe, worker)
    measured = []
    for subject in probe.subjects:
        # Frozen layers would have no gradients.
        state = create_state(replace(subject.recipe, initial=Initial()), probe.execution, worker)
        if subject.weights is not None:
            state.load(subject.weights, {}, {"step": 0, "scaler": {}})
        assert isinstance(state.model, ResNet)
        # Otherwise cuDNN's convolutions round to TF32's ten bits.
        with torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):
            found = measure(
                state.model, batches, label_smoothing=subject.recipe.label_smoothing, seed=subject.recipe.seed
            )
        measured.append(Measured(subject=subject, found=found))
        logger.info("%s: %s", subject.label, _line(found))
    return measured


def _images(probe: Probe, worker: Worker) -> list[Batch]:
    """The first ghost batches of the first epoch, the same as in a run of the recipe."""
    recipe = probe.subjects[0].recipe
    images = TrainingImages(recipe, probe.train, worker, InputOptions.of(probe.execution))
    try:
        ghosts = itertools.islice(images.epoch(0), probe.num_batches)
        return [(batch.images, batch.labels) for batch in ghosts]
    finally:
        images.close()


def _line(found: Propagation) -> str:
    line = (
        f"mean square of dE/dx_0 over that of dE/dx_L {_ratio(found.gradient[0], found.gradient[-1]):.2g}, "
        f"of x_L over that of x_0 {_ratio(found.signal[-1], found.signal[0]):.2g}"
    )
    if found.sums_hold is not None:
        line += f"; Eqn. (4) {'holds to rounding' if found.sums_hold else 'does not hold'}"
    return line


def _summary(measured: Measured) -> dict[str, Any]:
    """A network's entry in the result: its spans, each as ratios of mean squares."""
    subject, found = measured.subject, measured.found
    return {
        "label": subject.label,
        "weights": "fresh" if subject.weights is None else "trained",
        "model": asdict(subject.recipe.model),
        "fingerprint": subject.recipe.fingerprint(),
        "loss": _spelled(found.loss),
        "signal_growth": _spelled(_ratio(found.signal[-1], found.signal[0])),
        "gradient_growth": _spelled(_ratio(found.gradient[0], found.gradient[-1])),
        "eqn4_holds": found.sums_hold,
        "spans": [_span_summary(measured, span) for span in found.spans],
    }


def _span_summary(measured: Measured, span: Span) -> dict[str, Any]:
    found, first, last = measured.found, span.first, span.last
    formula = measured.formula_gradient
    values: dict[str, float | None] = {
        "signal_growth": _ratio(found.signal[last], found.signal[first]),
        "gradient_growth": _ratio(found.gradient[first], found.gradient[last]),
        "shortcut_product_squared": _ratio(found.shortcut_gradient[first], found.gradient[last]),
        "shortcut_product_squared_by_formula": _ratio(formula[first], found.gradient[last]) if formula else None,
        "eqn4_error": found.sum_error[last] if found.sum_error else None,
        "eqn4_rounding": found.sum_rounding[last] if found.sum_rounding else None,
    }
    return asdict(span) | {name: _spelled(value) for name, value in values.items()}


def _table(measured: Sequence[Measured]) -> str:
    """The CSV: a row for each x_l of each network."""
    table = io.StringIO()
    writer = csv.writer(table)
    head = ("label", "shortcut", "placement", "depth", "span", "l", "signal", "gradient", "shortcut_gradient")
    writer.writerow((*head, "shortcut_gradient_by_formula", "eqn4_error", "eqn4_rounding"))
    for each in measured:
        model, found = each.subject.recipe.model, each.found
        span_of = {
            place: number for number, span in enumerate(found.spans) for place in range(span.first, span.last + 1)
        }
        columns = (found.signal, found.gradient, found.shortcut_gradient)
        optional = (each.formula_gradient, found.sum_error, found.sum_rounding)
        for place in range(len(found.signal)):
            numbers = [column[place] for column in columns] + [column[place] if column else "" for column in optional]
            row = [f"{number:.6g}" if number != "" else "" for number in numbers]
            writer.writerow(
                (each.subject.label, model.shortcut, model.placement, model.depth, span_of[place], place, *row)
            )
    return table.getvalue()


def _record(probe: Probe, measured: Sequence[Measured]) -> None:
    """Writes the metrics to the journal, with the index l of x_l as the step."""
    journal = Journal(probe.directory)
    journal.append(Session(start_step=0))
    for place in range(max(len(each.found.signal) for each in measured)):
        values: dict[str, float] = {}
        for each in measured:
            label, found = each.subject.label, each.found
            if place < len(found.signal):
                values[f"signal/{label}"] = found.signal[place]
                values[f"gradient/{label}"] = found.gradient[place]
                values[f"shortcut_gradient/{label}"] = found.shortcut_gradient[place]
                if found.sum_error is not None:
                    values[f"eqn4_error/{label}"] = found.sum_error[place]
        journal.append(Metrics(step=place, values=values))
    journal.commit()


def _card(probe: Probe) -> RunDescription:
    recipe, directory = probe.subjects[0].recipe, without_credentials(probe.directory.uri)
    return RunDescription(
        experiment=probe.execution.tracking.experiment,
        name=probe.directory.name,
        params=recipe.flat() | {"networks": len(probe.subjects), "batches": probe.num_batches},
        tags=provenance.collect()
        | {
            "probe_directory": directory,
            "mlflow.note.content": "Mean squares of x_l (signal), of dE/dx_l (gradient) and of its part that comes by "
            "the shortcuts alone; the step is l. The parameters are the first network's.",
        },
        texts={RECIPE_FILE: without_credentials(probe.directory.read(RECIPE_FILE).decode())},
        data_sets=(
            DataSet(
                name=f"{recipe.data.dataset} training",
                digest=probe.train.digest,
                context="training",
                source=without_credentials(probe.train.uri),
                images=probe.train.num_images,
                classes=recipe.model.num_outputs,
            ),
        ),
    )


def _panels(measured: Sequence[Measured]) -> list[list[plots.Panel]]:
    """A row for each shortcut, with a panel for each of its networks."""
    rows: dict[str, list[plots.Panel]] = {}
    for each in measured:
        model = each.subject.recipe.model
        title = f"{model.shortcut}, ResNet-{model.depth}{', trained' if each.subject.weights is not None else ''}"
        panel = plots.Panel(title=title, found=each.found, formula_gradient=each.formula_gradient)
        rows.setdefault(model.shortcut, []).append(panel)
    return list(rows.values())


def _title(probe: Probe) -> str:
    recipe = probe.subjects[0].recipe
    number = probe.num_batches * recipe.ghost_batch
    return f"{recipe.model.placement}, {number} images of {recipe.data.dataset} (ghost batches of {recipe.ghost_batch})"


def _identity(subjects: Sequence[Subject], num_batches: int) -> dict[str, Any]:
    networks = {
        subject.label: [subject.recipe.fingerprint(), subject.weights and _weights_digest(subject.weights)]
        for subject in subjects
    }
    return {"networks": networks, "batches": num_batches}


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _weights_digest(weights: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(safetensors.torch.save(weights)).hexdigest()


def _open(subjects: Sequence[Subject]) -> Split:
    """The training images, with the labels on which the subjects' trained weights were trained."""
    recipe = subjects[0].recipe
    train = open_split(absolute_uri(recipe.data.train), label_column=recipe.data.label_column)
    if all(subject.weights is None for subject in subjects):
        train.check_labels(recipe.model.num_outputs)
        return train
    names = next((subject.classes for subject in subjects if subject.classes is not None), None)
    matched = classes.match(
        train, names, recipe.model.num_outputs, by=recipe.data.match_classes, option=None, what="training images"
    )
    for note in matched.notes:
        logger.info("%s", note)
    return matched.split


def _with_images(subject: Subject, train: Split) -> Subject:
    data = replace(with_measured(subject.recipe.data, train), train=train.uri, train_digest=train.digest)
    return replace(subject, recipe=replace(subject.recipe, data=data))


def _check_unused(probe: Probe) -> None:
    """Raises ValueError if the directory holds another probe or something else."""
    probe.directory.check_kind("probe")
    known = probe.directory.read_json(RECIPE_FILE)
    if known is not None and known.get("probe") != probe.identity:
        raise ValueError(
            f"{probe.directory.uri} holds a probe of other networks or images; use another --execution.name"
        )


def _ratio(over: float, under: float) -> float:
    return over / under if under else math.nan


def _spelled(value: float | None) -> float | str | None:
    return str(value) if value is not None and not math.isfinite(value) else value
