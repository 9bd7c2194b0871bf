"""Files of weights: safetensors, and PyTorch's own, of which tensors are read and no code is run."""

import io
import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch

from dist_resnet.storage.files import read_bytes
from dist_resnet.storage.uri import open_uri
from dist_resnet.wording import one_line

# Under these names, training scripts of torchvision, timm and others keep the state dict within a checkpoint.
_WITHIN = ("state_dict", "model", "model_state_dict")
_PARALLEL = "module."
_OTHERS = (".t7", ".h5", ".keras", ".npz", ".onnx", ".ckpt", ".pb", ".pt2", ".msgpack")
# Entries of a safetensors file's own description.
MODEL, CLASSES = "dist_resnet.model", "dist_resnet.classes"


@dataclass(frozen=True, kw_only=True)
class StateDict:
    """A file's tensors by its own names."""

    tensors: dict[str, torch.Tensor]
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of the recipe's model, if the file names them."""
    classes: tuple[str, ...] | None = None
    """The classes' names in the order of the outputs, if the file has them."""


def is_file(address: str) -> bool:
    """Whether an address is that of a file of weights, by the end of its name.

    Raises ValueError for the files of other programs, which must be converted.
    """
    name = _name(address)
    if name.endswith(_OTHERS):
        raise ValueError(
            f"{address} is not read: give a file {', '.join(_READERS)}; docs/initial-weights.md says how to convert it"
        )
    return name.endswith(tuple(_READERS))


def read(address: str) -> StateDict:
    """The tensors in a file, at a local path or a URI of an object store.

    Raises ValueError if the file is damaged or holds anything but tensors, FileNotFoundError if there is none.
    """
    filesystem, path = open_uri(address)
    content = read_bytes(filesystem, path)
    reader = next(reader for end, reader in _READERS.items() if _name(address).endswith(end))
    try:
        return reader(content)
    except ValueError as error:
        raise ValueError(f"{address} {error}") from error


def _name(address: str) -> str:
    return address.partition("?")[0].lower()


def _read_safetensors(content: bytes) -> StateDict:
    try:
        tensors = safetensors.torch.load(content)
        length = int.from_bytes(content[:8], "little")
        about = json.loads(content[8 : 8 + length]).get("__metadata__", {})
        return StateDict(
            tensors=tensors,
            model=dict(json.loads(about.get(MODEL, "{}"))),
            classes=tuple(json.loads(about[CLASSES])) if CLASSES in about else None,
        )
    except (safetensors.SafetensorError, ValueError, TypeError) as error:
        raise ValueError(f"is damaged or not a safetensors file ({one_line(error)}); download it again") from error


def _read_pickled(content: bytes) -> StateDict:
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error).lower() and "Unsupported" not in str(error):
            raise ValueError(f"is damaged or not a file of PyTorch ({one_line(error, most=120)})") from error
        raise ValueError(
            "holds more than tensors, and reading it could run code, so it is refused; save its state dict alone: "
            'torch.save(model.state_dict(), "weights.pth")'
        ) from error
    except Exception as error:  # whatever bytes that are not a file of PyTorch make it raise
        raise ValueError(
            f"is damaged or not a file of PyTorch ({one_line(error, most=120)}); download it again"
        ) from error
    return StateDict(tensors=_state_dict(loaded))


def _state_dict(loaded: Any) -> dict[str, torch.Tensor]:
    """The state dict in what was loaded. Raises ValueError if there is none."""
    if isinstance(loaded, Mapping):
        loaded = next((loaded[key] for key in _WITHIN if isinstance(loaded.get(key), Mapping)), loaded)
    if not isinstance(loaded, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in loaded.values()):
        raise ValueError(f"holds no state dict, which is a dictionary of tensors, but {_described(loaded)}")
    prefix = _PARALLEL if loaded and all(name.startswith(_PARALLEL) for name in loaded) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in loaded.items()}


def _described(loaded: Any) -> str:
    return (
        f"a dictionary with {', '.join(map(str, list(loaded)[:3]))}"
        if isinstance(loaded, Mapping)
        else type(loaded).__name__
    )


_READERS: dict[str, Callable[[bytes], StateDict]] = {
    ".safetensors": _read_safetensors,
    ".pth": _read_pickled,
    ".pt": _read_pickled,
    ".bin": _read_pickled,
    ".pth.tar": _read_pickled,
}
