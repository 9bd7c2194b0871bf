"""The driver's part before any worker starts: all checks, and the plan that workers receive."""

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from dist_resnet.data.input import decoders
from dist_resnet.data.input.balance import describe_balance
from dist_resnet.data.input.order import steps_per_epoch
from dist_resnet.data.input.streams import check_some_whole
from dist_resnet.data.shards import classes, duplicates
from dist_resnet.data.shards.classes import Matched
from dist_resnet.data.shards.measured import with_measured
from dist_resnet.data.shards.spelling import describe_alike
from dist_resnet.data.shards.split import Split, open_split
from dist_resnet.data.shards.split_names import check_one_split
from dist_resnet.launch.initial import InitialWeights, check_weights, of_known_run
from dist_resnet.model import build_model
from dist_resnet.recipe import Execution, Model, Recipe, check_pair
from dist_resnet.storage.uri import absolute_uri, check_no_password
from dist_resnet.tracking import journal
from dist_resnet.tracking.mlflow import address
from dist_resnet.tracking.records import Session
from dist_resnet.tracking.run_directory import RECIPE_FILE, SUMMARY_FILE, RunDirectory
from dist_resnet.train import initial
from dist_resnet.train.freeze import check_part
from dist_resnet.train.schedule import num_steps

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that has passed all checks: the recipe with its data digests, the opened splits, the run's directory."""

    recipe: Recipe
    execution: Execution
    train: Split
    validation: Split
    directory: RunDirectory
    classes: tuple[str, ...] | None = None
    """Names of the model's classes; None if the training images have none."""
    notes: tuple[str, ...] = ()
    """Lines to log before the run starts."""
    initial_weights: bytes | None = None
    """The file of initial weights that a new run begins with, on the driver only."""

    def __getstate__(self) -> dict[str, Any]:
        # Workers read it from the run's directory.
        return self.__dict__ | {"initial_weights": None}

    @property
    def name(self) -> str:
        """The run's name."""
        assert self.execution.name is not None
        return self.execution.name

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return num_steps(self.recipe.epochs, steps_per_epoch(self.train.num_images, self.recipe.global_batch))

    def claim(self) -> None:
        """Writes the initial weights and then `recipe.json`, which makes the directory this run's."""
        if self.directory.read_json(RECIPE_FILE) is None:
            if self.initial_weights is not None:
                self.directory.write(initial.FILE, self.initial_weights)
            recipe, label_map = self.recipe, self.validation.label_map
            self.directory.write_json(
                RECIPE_FILE,
                {
                    "fingerprint": recipe.fingerprint(),
                    "recipe": recipe.to_dict(),
                    "classes": {
                        "names": self.classes,
                        "validation_labels": None if label_map is None else label_map.tolist(),
                    },
                },
            )

    def summary(self) -> dict[str, Any] | None:
        """The content of `summary.json` if the run has ended, else None. Raises ValueError if it has no status."""
        summary = self.directory.read_json(SUMMARY_FILE)
        if summary is not None and "status" not in summary:
            raise ValueError(
                f"{self.directory.child(SUMMARY_FILE)} is damaged: it has no status; restore it from a copy"
            )
        return summary


def prepare(recipe: Recipe, execution: Execution, *, job: str) -> Plan:
    """The plan of a run, checked against its data and its storage.

    If no name is given, the run's name starts with `job`. Raises ValueError or FileNotFoundError, in one line that says
    what was given, what is allowed and what to do.
    """
    check_pair(recipe, execution)
    decoders.check(execution.decode_on)
    with torch.device("meta"):
        build_model(dataclasses.replace(recipe.model, num_classes=recipe.model.num_classes or 2))
    check_part(recipe.model, recipe.initial.freeze)
    _check_no_passwords(recipe, execution)
    data = dataclasses.replace(
        recipe.data, train=absolute_uri(recipe.data.train), validation=absolute_uri(recipe.data.validation)
    )
    train, validation = (open_split(uri, label_column=data.label_column) for uri in (data.train, data.validation))
    steps_per_epoch(train.num_images, recipe.global_batch)
    if data.balance != "none":
        train = train.with_labels()
    for split in (train, validation):
        check_some_whole(split, recipe.augment.image_side)
    data = dataclasses.replace(
        with_measured(data, train),
        train_digest=_digest("train", data.train_digest, train),
        validation_digest=_digest("validation", data.validation_digest, validation),
    )
    recipe = dataclasses.replace(recipe, data=data, model=_with_classes(recipe.model, train))
    execution = dataclasses.replace(execution, storage=absolute_uri(execution.storage))
    storage = RunDirectory(execution.storage)
    storage.check_writable()
    weights = _initial_weights(recipe, execution, storage, train)
    recipe = dataclasses.replace(recipe, initial=weights.initial)
    execution = dataclasses.replace(execution, name=execution.name or f"{job}-{recipe.fingerprint()[:8]}")
    directory = RunDirectory(storage.child(execution.name or ""))
    known = _check_unused(directory, recipe, execution)
    if known is None:  # a resumed run keeps the shards that it started with
        for split in (train, validation):
            check_one_split(split.uri, split.shards)
    names, matched = _match_classes(recipe, execution, train, validation, known)
    # A resumed run does not wait for a name server or a disk that is down.
    address.store_of(directory, execution.tracking.uri, resolve=known is None)
    return Plan(
        recipe=recipe,
        execution=execution,
        train=train,
        validation=matched.split,
        directory=directory,
        classes=names,
        initial_weights=weights.content,
        notes=(
            *weights.notes,
            *_notes(recipe, train, validation, names),
            *matched.notes,
            *_said_of_precision(directory, execution),
        ),
    )


def _notes(recipe: Recipe, train: Split, validation: Split, names: tuple[str, ...] | None) -> list[str]:
    """What the images have that a user may not have meant."""
    return [
        *classes.describe_absent_classes(train, "training images"),
        *describe_alike(names or (), "training images"),
        *describe_balance(recipe, train),
        *duplicates.describe_copies(train, "training images"),
        *duplicates.describe_copies(validation, "validation images"),
        *duplicates.describe_shared(train, validation),
    ]


def _with_classes(model: Model, train: Split) -> Model:
    """The model with as many outputs as its training images have classes, if the recipe leaves that to them."""
    if model.num_classes is not None:
        return model
    count, least = classes.count_of(train), train.label_range[0]
    if least < 0:
        train.check_labels(max(count, 1))  # raises ValueError for an image without a label
    if count < 2:
        raise ValueError(f"the training images at {train.uri} have one class; give images of two classes or more")
    if train.class_names is None and count > train.num_images:
        raise ValueError(
            f"the labels of the {train.num_images} training images at {train.uri} run to {count - 1}, which are hardly "
            "numbers of classes; choose their column with --data.label-column, or give --model.num-classes"
        )
    return dataclasses.replace(model, num_classes=count)


def _initial_weights(recipe: Recipe, execution: Execution, storage: RunDirectory, train: Split) -> InitialWeights:
    """The recipe's initial weights, checked; those of a run that is there already are not read again."""
    if recipe.initial.weights is None:
        return InitialWeights(initial=recipe.initial, content=None)
    if execution.name is not None:
        known = of_known_run(recipe.initial, RunDirectory(storage.child(execution.name)))
        if known is not None:
            return known
    names = train.class_names and train.class_names[: recipe.model.num_classes]
    return check_weights(recipe, names, tracking_uri=address.store_beside(storage, execution.tracking.uri))


def _check_no_passwords(recipe: Recipe, execution: Execution) -> None:
    """Raises ValueError if an address that will be recorded contains a password."""
    for name, uri in (
        ("data.train", recipe.data.train),
        ("data.validation", recipe.data.validation),
        ("initial.weights", recipe.initial.weights or ""),
        ("execution.storage", execution.storage),
    ):
        check_no_password(name, uri)


def _said_of_precision(directory: RunDirectory, execution: Execution) -> list[str]:
    """A line if a run resumes at another precision than it started with."""
    first = journal.first_record(directory)
    started = first.precision if isinstance(first, Session) else None
    if started in (None, execution.precision):
        return []
    return [
        f"the run started with --execution.precision {started} and resumes with {execution.precision}, which changes "
        f"its numbers by more than rounding; to avoid this, stop it and give --execution.precision {started}"
    ]


def _match_classes(
    recipe: Recipe, execution: Execution, train: Split, validation: Split, known: dict[str, Any] | None
) -> tuple[tuple[str, ...] | None, Matched]:
    """The names of the model's classes, and the validation images with labels of these classes.

    A resumed run keeps the classes that it started with. Raises ValueError if the classes of a new run do not match.
    """
    outputs = recipe.model.num_outputs
    if known is not None and "classes" in known:
        train.check_labels(outputs)
        names = classes.recorded(known, recipe)
        return names, classes.as_recorded(validation, known, outputs)
    names = classes.of_training(train, outputs, spare_outputs=execution.spare_outputs or known is not None)
    try:
        return names, classes.match(validation, names, outputs, by=recipe.data.match_classes)
    except ValueError as error:
        if known is None:
            raise
        validation.check_labels(outputs)
        # It started with a version that did not compare classes: refusing it now would lose its work.
        note = f"the run keeps the validation images' labels that it started with, although {error}"
        return names, Matched(split=validation, notes=(note,))


def _digest(split: str, required: str | None, found: Split) -> str:
    if required is not None and required != found.digest:
        raise ValueError(
            f"data.{split}_digest must match: {required[:12]}... was given, but the shards at {found.uri} have "
            f"{found.digest[:12]}...; give the shards with that digest, or leave the digest out"
        )
    return found.digest


def _check_unused(directory: RunDirectory, recipe: Recipe, execution: Execution) -> dict[str, Any] | None:
    """The content of the run's `recipe.json`; None if the run is new.

    Raises ValueError if the directory holds a run with another recipe, or something other than a run.
    """
    try:
        known = directory.read_json(RECIPE_FILE)
        earlier = None if known is None else Recipe.from_dict(known["recipe"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{directory.child(RECIPE_FILE)} cannot be read ({error}); use another --execution.name"
        ) from error
    directory.check_kind("run")
    if earlier is not None and earlier.fingerprint() != recipe.fingerprint():
        differences = earlier.differences(recipe)
        if changed := [split for split in ("train", "validation") if f"data.{split}_digest" in differences]:
            _refuse_other_data(changed[0], differences, recipe, execution)
        fields = ", ".join(f"{key} (was {old}, now {new})" for key, (old, new) in differences.items())
        raise ValueError(
            f"the name {execution.name} under {execution.storage} is used by a run with another recipe: {fields}; "
            "use another --execution.name, or the same recipe to continue that run"
        )
    return known


def _refuse_other_data(
    split: str, differences: dict[str, tuple[Any, Any]], recipe: Recipe, execution: Execution
) -> NoReturn:
    """Raises the ValueError for a run whose shards are not those that it started with."""
    was, now = differences[f"data.{split}_digest"]
    others = [key for key in differences if not key.endswith("_digest")]
    raise ValueError(
        f"the {split} shards at {getattr(recipe.data, split)} are not those that the run {execution.name} under "
        f"{execution.storage} started with: their digest was {str(was)[:12]}..., now it is {str(now)[:12]}..."
        + (f", and {', '.join(others)} changed too" if others else "")
        + "; restore the shards to continue that run, or use another --execution.name"
    )
