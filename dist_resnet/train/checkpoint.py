"""Checkpoints: complete or invisible, hashed, and free of pickle.

`checkpoints/step_00000040/` holds `model.safetensors`, `optimizer.safetensors`, `state.json` and, written last,
`manifest.json` with the size and sha256 of each. A folder without a manifest is not a checkpoint; one whose files
disagree with the manifest is damaged and the one before it is used.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch

from dist_resnet.tracking.storage import RunDirectory
from dist_resnet.train.state import TrainState

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
WEIGHTS, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read and verified: tensors on the CPU by name, and the counters."""

    folder: str
    weights: dict[str, torch.Tensor]
    momenta: dict[str, torch.Tensor]
    counters: dict[str, Any]
    weights_sha256: str


def save(directory: RunDirectory, state: TrainState, *, keep: int) -> None:
    """Writes a checkpoint of the state, then deletes all but the newest `keep`."""
    folder = f"{FOLDER}/step_{state.step:08d}"
    files = {
        WEIGHTS: safetensors.torch.save(state.weights()),
        OPTIMIZER: safetensors.torch.save(state.momenta()),
        STATE: json.dumps(state.counters()).encode(),
    }
    manifest = {}
    for name, content in files.items():
        directory.write(f"{folder}/{name}", content)
        manifest[name] = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    directory.write_json(f"{folder}/{MANIFEST}", manifest)
    complete = [name for name in _folders(directory) if directory.read_json(f"{FOLDER}/{name}/{MANIFEST}") is not None]
    for name in complete[:-keep]:
        directory.delete(f"{FOLDER}/{name}")


def latest(directory: RunDirectory) -> Checkpoint | None:
    """The newest undamaged checkpoint of a run, or None where none was completed.

    Raises ValueError where there are checkpoints and all are damaged.
    """
    damaged = []
    for name in reversed(_folders(directory)):
        try:
            found = read(directory, f"{FOLDER}/{name}")
        except ValueError as error:
            logger.warning("checkpoint %s is damaged and passed over: %s", directory.child(f"{FOLDER}/{name}"), error)
            damaged.append(name)
            continue
        if found is not None:
            return found
    if damaged:
        raise ValueError(
            f"all checkpoints under {directory.child(FOLDER)} are damaged ({', '.join(damaged)}); "
            "restore one from a copy, or start anew under another --execution.name"
        )
    return None


def read(directory: RunDirectory, folder: str) -> Checkpoint | None:
    """The checkpoint in a folder, or None where it was never completed. Raises ValueError where it is damaged."""
    try:
        manifest = directory.read_json(f"{folder}/{MANIFEST}")
    except ValueError as error:
        raise ValueError(f"{MANIFEST} is not JSON") from error
    if manifest is None:
        return None
    files = {name: _verified(directory, folder, name, manifest) for name in (WEIGHTS, OPTIMIZER, STATE)}
    return Checkpoint(
        folder=folder,
        weights=safetensors.torch.load(files[WEIGHTS]),
        momenta=safetensors.torch.load(files[OPTIMIZER]),
        counters=json.loads(files[STATE]),
        weights_sha256=manifest[WEIGHTS]["sha256"],
    )


def _verified(directory: RunDirectory, folder: str, name: str, manifest: dict[str, Any]) -> bytes:
    try:
        content = directory.read(f"{folder}/{name}")
    except FileNotFoundError as error:
        raise ValueError(f"{name} is missing") from error
    if hashlib.sha256(content).hexdigest() != manifest.get(name, {}).get("sha256"):
        raise ValueError(f"{name} does not have the sha256 that {MANIFEST} records")
    return content


def _folders(directory: RunDirectory) -> list[str]:
    return [name for name, _ in directory.list(FOLDER) if name.startswith("step_")]
