"""The initial weights of a run, read and checked on the driver before anything starts."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch

from dist_resnet.data.shards.spelling import key
from dist_resnet.launch.trained import Weights, open_trained
from dist_resnet.recipe import Head, Initial, Model, Recipe
from dist_resnet.storage.uri import absolute_uri, without_credentials
from dist_resnet.tracking.run_directory import RECIPE_FILE, RunDirectory
from dist_resnet.weights import files
from dist_resnet.weights.convert import describe_model, from_theirs
from dist_resnet.weights.formats import CLASSIFIER, recognize
from dist_resnet.wording import some


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """What a recipe's initial weights are, once they are read."""

    initial: Initial
    """The recipe's, with their sha256 and with a head that is kept or new."""
    content: bytes | None
    """The safetensors file for the run's directory; None if the run has it, or draws its weights."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Weights by our names, which may lack a classifier."""

    weights: Weights
    classes: tuple[str, ...] | None
    """Names of the outputs' classes; None if unknown."""


def check_weights(recipe: Recipe, class_names: Sequence[str] | None, *, tracking_uri: str | None) -> InitialWeights:
    """The initial weights of a new run whose training images have these classes.

    `tracking_uri` is that of the registry, for models:/ addresses. Raises ValueError or OSError, in one line, if they
    cannot be read, are of another network or not the required ones, or if a head to keep has other classes.
    """
    initial = recipe.initial
    if initial.weights is None:
        return InitialWeights(initial=initial, content=None)
    address = _absolute(initial.weights)
    source = _read(address, recipe.model, class_names, tracking_uri)
    own = _file(source.weights)
    head, rows, note = _head(initial, recipe.model, class_names, source)
    content = own if rows is None else _file(_with_rows(source.weights, rows))
    found = hashlib.sha256(content).hexdigest()
    if initial.sha256 not in (None, found, hashlib.sha256(own).hexdigest()):
        raise ValueError(
            f"initial.sha256 must match: {str(initial.sha256)[:12]}... was given, but the weights at "
            f"{without_credentials(address)} have {hashlib.sha256(own).hexdigest()[:12]}...; give the weights with "
            "that sha256, or leave it out"
        )
    return InitialWeights(
        initial=dataclasses.replace(initial, weights=address, sha256=found, head=head),
        content=content,
        notes=(f"training starts from {without_credentials(address)} (sha256 {found[:12]}...), {note}",),
    )


def of_known_run(initial: Initial, directory: RunDirectory) -> InitialWeights | None:
    """The initial weights of a run that already has them, by the address that it was started with.

    A resumed run keeps its weights, whatever the address has by now. None if it is a new run or the option is another.
    """
    try:
        recorded = Recipe.from_dict((directory.read_json(RECIPE_FILE) or {})["recipe"]).initial
    except (ValueError, KeyError, TypeError):
        return None  # a new run, or a damaged one, which is refused later
    if recorded.weights is None or initial.weights is None:
        return None
    address = _absolute(initial.weights)
    asked = dataclasses.replace(recorded, freeze=initial.freeze)
    same = (
        address == recorded.weights
        and initial.sha256 in (None, recorded.sha256)
        and initial.head in ("auto", recorded.head)
    )
    return InitialWeights(initial=asked, content=None) if same else None


def _absolute(address: str) -> str:
    return address if is_registered(address) else absolute_uri(address)


def is_registered(address: str) -> bool:
    """Whether an address is that of a registered model."""
    return address.startswith("models:/")


def _read(address: str, model: Model, class_names: Sequence[str] | None, tracking_uri: str | None) -> _Source:
    shown = without_credentials(address)
    if not is_registered(address) and files.is_file(address):
        found = files.read(address)
        return _Source(weights=_converted(shown, found.tensors, model, found.model), classes=found.classes)
    with open_trained(address, tracking_uri=tracking_uri) as trained:
        weights = _converted(shown, trained.read_weights(), model, describe_model(trained.recipe.model))
        return _Source(weights=weights, classes=trained.classes_beside(class_names))


def _converted(shown: str, state: Weights, model: Model, known: dict[str, Any]) -> Weights:
    try:
        found = recognize(state)
        weights = from_theirs(state, found, model, known)
        found.check(weights)
    except (ValueError, TypeError) as error:  # a file may describe its network in any words
        raise ValueError(f"the initial weights at {shown} cannot be used: {error}") from error
    return weights


def _head(
    initial: Initial, model: Model, ours: Sequence[str] | None, source: _Source
) -> tuple[Head, list[int] | None, str]:
    """Whether the head is kept or new, the rows to keep if they are in another order, and a phrase that says so.

    Raises ValueError if a head that must be kept has other classes.
    """
    reason, rows = _why_not(model, ours, source)
    if initial.head == "new":
        return "new", None, "with a new head"
    if reason is None and (initial.head == "keep" or (ours is not None and source.classes is not None)):
        moved = rows is not None and rows != list(range(len(rows)))
        by = "by name" if rows is not None else "by number, as one side has no class names"
        return "keep", rows if moved else None, f"with their head: the {model.num_classes} classes agree {by}"
    if initial.head == "keep":
        raise ValueError(
            f"initial.head keep: {reason}; give images of the same classes, or --initial.head new for a new classifier"
        )
    return "new", None, f"with a new head: {reason or 'no class names to compare; --initial.head keep keeps theirs'}"


def _why_not(model: Model, ours: Sequence[str] | None, source: _Source) -> tuple[str | None, list[int] | None]:
    """Why the weights' head cannot be kept, if it cannot, and its row for each output, if names tell."""
    theirs, weight = source.classes, source.weights.get(f"{CLASSIFIER}weight")
    if weight is None or f"{CLASSIFIER}bias" not in source.weights:
        return "the weights have no classifier", None
    if len(weight) != model.num_classes:
        return f"the weights have {len(weight)} outputs, the model has {model.num_classes}", None
    if ours is None or theirs is None:
        return None, None
    mine, yours = [key(name) for name in ours[: model.num_classes]], [key(name) for name in theirs]
    if others := sorted({*mine} ^ {*yours}):
        return (
            f"{len(others)} classes are not in both, the images and the weights: {some(list(map(repr, others)))}",
            None,
        )
    if len({*mine}) < len(mine) or len(mine) != len(yours):
        return "class names that several classes have cannot be matched", None
    return None, [*(yours.index(name) for name in mine), *range(len(mine), model.num_outputs)]


def _with_rows(weights: Weights, rows: list[int]) -> Weights:
    order = torch.tensor(rows)
    return {name: tensor[order] if name.startswith(CLASSIFIER) else tensor for name, tensor in weights.items()}


def _file(weights: Weights) -> bytes:
    """The weights as the file of a checkpoint has them."""
    return safetensors.torch.save(weights)
