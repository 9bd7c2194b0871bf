"""Trained weights as files of other programs: torchvision, timm, ONNX, or one safetensors file."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch

from dist_resnet.data.datasets import normalization_of
from dist_resnet.data.shards import classes
from dist_resnet.launch.onnx import write_onnx
from dist_resnet.launch.trained import Trained, Weights, open_trained
from dist_resnet.model import build_model
from dist_resnet.storage import files
from dist_resnet.storage.uri import absolute_uri, open_uri
from dist_resnet.weights.convert import describe_model, to_theirs
from dist_resnet.weights.files import CLASSES, MODEL
from dist_resnet.weights.formats import FORMATS

Kind = Literal["safetensors", "torchvision", "timm", "onnx"]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A written file."""

    uri: str
    size_bytes: int
    about: dict[str, Any]
    """What a user of the file needs to know: network, classes, crop, mean and standard deviation."""
    checked: str
    """What the file was compared with."""


def export(source: str, target: str, kind: Kind, *, tracking_uri: str | None = None) -> Exported:
    """Writes the weights of a run, one of its checkpoints or a registered model to a file, once it is checked.

    `kind`: `torchvision` and `timm` give their names to the weights, in a file .pth or .safetensors; `safetensors`
    keeps this project's names; `onnx` holds the network with a dynamic number of images. Raises ValueError if the
    target exists or has another ending, or if the other program has no such network, and as `open_trained` does.
    """
    uri = absolute_uri(target)
    filesystem, path = open_uri(uri)
    _check_ending(path, kind)
    if files.exists(filesystem, path):
        raise ValueError(f"{uri} exists already; give a --target that does not exist")
    with open_trained(source, tracking_uri=tracking_uri) as trained:
        weights, about = trained.read_weights(), _about(trained)
        with files.staged(filesystem, path) as staged:
            checked = _WRITERS[kind](staged, path, trained, weights, about)
            size = staged.stat().st_size
    return Exported(uri=uri, size_bytes=size, about=about, checked=checked)


def _check_ending(path: str, kind: Kind) -> None:
    endings = _ENDINGS[kind]
    if not path.endswith(endings):
        raise ValueError(f"the file of --format {kind} ends in {' or '.join(endings)}, got {path}")


def _about(trained: Trained) -> dict[str, Any]:
    recipe = trained.recipe
    constants = normalization_of(recipe.data)
    names = trained.classes_beside(None)
    return {
        "classes": None if names is None else classes.for_outputs(names, recipe.model.num_outputs),
        "crop": recipe.evaluation.crops[0],
        "shorter_side": recipe.evaluation.shorter_sides[0],
        "mean": constants.mean,
        "std": constants.std,
    }


def _write_ours(staged: Path, path: str, trained: Trained, weights: Weights, about: dict[str, Any]) -> str:
    """A file that --initial.weights reads, with the network and its classes in its metadata."""
    metadata = {MODEL: json.dumps(describe_model(trained.recipe.model))}
    if about["classes"] is not None:
        metadata[CLASSES] = json.dumps(about["classes"])
    safetensors.torch.save_file(weights, staged, metadata=metadata)
    return _same(safetensors.torch.load_file(staged), weights)


def _write_theirs(name: str) -> Callable[[Path, str, Trained, Weights, dict[str, Any]], str]:
    def write(staged: Path, path: str, trained: Trained, weights: Weights, about: dict[str, Any]) -> str:
        state = to_theirs(weights, FORMATS[name], trained.recipe.model)
        if path.endswith(".safetensors"):
            safetensors.torch.save_file(state, staged, metadata={"format": "pt"})
            return _same(safetensors.torch.load_file(staged), state)
        torch.save(state, staged)
        return _same(torch.load(staged, weights_only=True), state)

    return write


def _write_onnx(staged: Path, path: str, trained: Trained, weights: Weights, about: dict[str, Any]) -> str:
    network = build_model(trained.recipe.model).eval()
    network.load_state_dict(weights)
    return write_onnx(network, staged, size=about["crop"], about=about)


def _same(read: Weights, written: Weights) -> str:
    """Raises OSError if a file does not hold what was written to it."""
    if read.keys() != written.keys() or not all(torch.equal(read[name], tensor) for name, tensor in written.items()):
        raise OSError("the file does not hold the weights that were written to it; run the same command again")
    return f"{len(written)} tensors, read back bit for bit"


_WRITERS: dict[Kind, Callable[[Path, str, Trained, Weights, dict[str, Any]], str]] = {
    "safetensors": _write_ours,
    "torchvision": _write_theirs("torchvision"),
    "timm": _write_theirs("timm"),
    "onnx": _write_onnx,
}
_ENDINGS: dict[Kind, tuple[str, ...]] = {
    "safetensors": (".safetensors",),
    "torchvision": (".pth", ".safetensors"),
    "timm": (".safetensors", ".pth"),
    "onnx": (".onnx",),
}
