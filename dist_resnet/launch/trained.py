"""Trained weights with their recipe and classes, from a run, one of its checkpoints or a registered model."""

import contextlib
import functools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from dist_resnet.data.shards import classes
from dist_resnet.recipe import Recipe
from dist_resnet.storage.uri import absolute_uri, name_of, parent_uri
from dist_resnet.tracking.run_directory import RunDirectory
from dist_resnet.train import checkpoint

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A recipe, its trained weights and its classes; each worker reads the weights itself."""

    recipe: Recipe
    read_weights: Callable[[], Weights]
    classes: tuple[str, ...] | None = None
    """Names in the order of the outputs; None if unknown."""
    may_be_numbers: bool = False
    """Whether names that count from 0 may be numbers in place of unknown names."""
    version: str | None = None
    """models:/NAME/VERSION of a registered model; its alias may move meanwhile."""

    def classes_beside(self, others: Sequence[str] | None) -> tuple[str, ...] | None:
        """The classes' names, for a comparison with `others`; None if they are numbers in place of names."""
        if self.classes is None or not self.may_be_numbers or set(self.classes) & set(others or ()):
            return self.classes
        return None if list(self.classes) == classes.numbers(len(self.classes)) else self.classes


@contextlib.contextmanager
def open_trained(source: str, *, tracking_uri: str | None = None) -> Iterator[Trained]:
    """The trained weights of `models:/NAME/VERSION`, `models:/NAME@ALIAS`, a run's directory or one of its checkpoints.

    A registered model is downloaded, verified and deleted at the end of the block; `tracking_uri` as for
    `registry.pull`. Raises FileNotFoundError if there is no run or no checkpoint, ValueError if it is damaged or the
    registry has no such model, OSError if a storage or the registry fails.
    """
    if not source.startswith("models:/"):
        yield of_run(source)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield _of_model(source, Path(folder, "package"), tracking_uri)


def of_run(source: str) -> Trained:
    """The trained weights of a run's newest checkpoint, given its directory STORAGE/NAME, or of a checkpoint's folder.

    Raises as `open_trained` does.
    """
    uri = absolute_uri(source).rstrip("/")
    within, step = name_of(parent_uri(uri)) == checkpoint.FOLDER, name_of(uri)
    directory = RunDirectory(parent_uri(parent_uri(uri)) if within else uri)
    known = directory.read_run()
    folder = f"{checkpoint.FOLDER}/{step}"
    found = checkpoint.read(directory, folder) if within else checkpoint.latest(directory)
    if found is None:
        missing = f"no checkpoint {step}" if within else "no checkpoint yet; train it further first"
        raise FileNotFoundError(f"the run at {directory.uri} has {missing}")
    recipe = Recipe.from_dict(known["recipe"])
    return Trained(
        recipe=recipe,
        read_weights=functools.partial(_weights_of_run, directory, found.folder),
        classes=classes.recorded(known, recipe),
    )


def _of_model(model: str, target: Path, tracking_uri: str | None) -> Trained:
    # Imported late: workers that read a run's weights do not need MLflow.
    from dist_resnet.registry import package, predictor
    from dist_resnet.registry.pull import download

    pulled = download(model, target, tracking_uri=tracking_uri)
    data = pulled.folder / package.DATA
    return Trained(
        recipe=Recipe.from_dict(json.loads((data / predictor.RECIPE).read_text())),
        read_weights=functools.partial(safetensors.torch.load_file, data / predictor.WEIGHTS),
        classes=classes.of_outputs(json.loads((data / predictor.CLASSES).read_text())),
        may_be_numbers=pulled.may_be_numbers,
        version=f"models:/{pulled.version.name}/{pulled.version.version}",
    )


def _weights_of_run(directory: RunDirectory, folder: str) -> Weights:
    found = checkpoint.read(directory, folder)
    if found is None:
        raise FileNotFoundError(f"{directory.child(folder)} is gone; evaluate again")
    return found.weights
