"""Checkpoints: complete or invisible, hashed, and free of pickle.

`checkpoints/step_00000040/` holds `model.safetensors`, `optimizer.safetensors`, `state.json` and, written last,
`manifest.json` with the size and sha256 of each. A folder without a manifest is not a checkpoint. If a file does not
match the manifest, the checkpoint is damaged and the one before it is used. Only the storage decides which checkpoints
exist.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch

from dist_resnet.tracking.run_directory import RunDirectory
from dist_resnet.train.host_copy import HostCopy
from dist_resnet.train.state import TrainState

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
WEIGHTS, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: the weights and the optimizer's slots by name, on the CPU, and the counters."""

    folder: str
    weights: dict[str, torch.Tensor]
    slots: dict[str, torch.Tensor]
    counters: dict[str, Any]
    weights_sha256: str

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.counters["step"]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A copy of the training state after a step, on the CPU, to be written while training continues.

    Its tensors have no meaning before `wait` has returned.
    """

    step: int
    weights: dict[str, torch.Tensor]
    slots: dict[str, torch.Tensor]
    counters: dict[str, Any]
    wait: Callable[[], None]

    @classmethod
    def of(cls, state: TrainState) -> "Snapshot":
        """A copy of the state as it is now."""
        weights, slots = state.live_weights(), state.live_slots()
        copy = HostCopy([*weights.values(), *slots.values()])
        return cls(
            step=state.step,
            weights=dict(zip(weights, copy.tensors[: len(weights)], strict=True)),
            slots=dict(zip(slots, copy.tensors[len(weights) :], strict=True)),
            counters=state.counters(),
            wait=copy.wait,
        )


def folder_of(step: int) -> str:
    """The folder of the checkpoint after `step` steps, within the run's directory."""
    return f"{FOLDER}/step_{step:08d}"


def save(directory: RunDirectory, snapshot: Snapshot) -> None:
    """Writes a checkpoint, which exists once its manifest, written last, is on the storage.

    Raises OSError if the storage fails; the files written so far are then not a checkpoint.
    """
    snapshot.wait()
    folder = folder_of(snapshot.step)
    # If a damaged checkpoint is rewritten, its old manifest must not cover a mixture of files.
    directory.delete(f"{folder}/{MANIFEST}")
    state = json.dumps(snapshot.counters).encode()
    manifest = {
        WEIGHTS: _write_tensors(directory, f"{folder}/{WEIGHTS}", snapshot.weights),
        OPTIMIZER: _write_tensors(directory, f"{folder}/{OPTIMIZER}", snapshot.slots),
        STATE: {"size_bytes": len(state), "sha256": hashlib.sha256(state).hexdigest()},
    }
    directory.write(f"{folder}/{STATE}", state)
    directory.write_json(f"{folder}/{MANIFEST}", manifest)


def _write_tensors(directory: RunDirectory, name: str, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Writes tensors directly to a file; returns its size and sha256.

    A copy as bytes would block Python, and with it the training loop.
    """
    with directory.staged(name) as path:
        try:
            safetensors.torch.save_file(tensors, path)
        except safetensors.SafetensorError as error:
            raise OSError(f"{directory.child(name)} cannot be written: {error}") from error
        with path.open("rb") as file:
            return {"size_bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def newest_step(directory: RunDirectory) -> int | None:
    """The step of the newest committed checkpoint, damaged or not; None if there is none."""
    complete = _complete(directory)
    return _step_of(complete[-1]) if complete else None


def prune(directory: RunDirectory, *, newest: int, keep: int, errors: Mapping[int, float]) -> None:
    """Deletes checkpoints older than the one of step `newest`, except the newest `keep` and the best.

    The best has the lowest validation error in `errors`, by step. Checkpoints newer than `newest` stay: they are
    damaged, or training would have resumed from them.
    """
    complete = [name for name in _complete(directory) if _step_of(name) <= newest]
    evaluated = [name for name in complete if _step_of(name) in errors]
    kept = {*complete[-keep:], *sorted(evaluated, key=lambda name: (errors[_step_of(name)], name))[:1]}
    for name in _folders(directory):
        if _step_of(name) < newest and name not in kept:
            # The manifest first, so that a half-deleted folder is not a checkpoint.
            directory.delete(f"{FOLDER}/{name}/{MANIFEST}")
            directory.delete(f"{FOLDER}/{name}")


def latest(directory: RunDirectory) -> Checkpoint | None:
    """The newest undamaged checkpoint of a run; None if none was completed.

    Raises ValueError if there are checkpoints and all are damaged.
    """
    damaged = []
    for name in reversed(_folders(directory)):
        try:
            found = read(directory, f"{FOLDER}/{name}")
        except ValueError as error:
            logger.warning("checkpoint %s is damaged and skipped: %s", directory.child(f"{FOLDER}/{name}"), error)
            damaged.append(name)
            continue
        if found is not None:
            return found
    if damaged:
        raise ValueError(
            f"all checkpoints under {directory.child(FOLDER)} are damaged ({', '.join(damaged)}); "
            "restore one from a copy, or start a new run under another --execution.name"
        )
    return None


def read(directory: RunDirectory, folder: str) -> Checkpoint | None:
    """The checkpoint in a folder; None if it was never completed. Raises ValueError if it is damaged."""
    manifest = directory.read_json(f"{folder}/{MANIFEST}")
    if manifest is None:
        return None
    files = {name: _verified(directory, folder, name, manifest) for name in (WEIGHTS, OPTIMIZER, STATE)}
    return Checkpoint(
        folder=folder,
        weights=safetensors.torch.load(files[WEIGHTS]),
        slots=safetensors.torch.load(files[OPTIMIZER]),
        counters=json.loads(files[STATE]),
        weights_sha256=manifest[WEIGHTS]["sha256"],
    )


def _verified(directory: RunDirectory, folder: str, name: str, manifest: dict[str, Any]) -> bytes:
    try:
        content = directory.read(f"{folder}/{name}")
    except FileNotFoundError as error:
        directory.check_present()
        raise ValueError(f"{name} is missing") from error
    recorded = manifest.get(name)
    if not isinstance(recorded, dict) or hashlib.sha256(content).hexdigest() != recorded.get("sha256"):
        raise ValueError(f"{name} does not have the sha256 that {MANIFEST} records")
    return content


def _folders(directory: RunDirectory) -> list[str]:
    return [name for name, _ in directory.list(FOLDER) if re.fullmatch(r"step_\d+", name)]


def _complete(directory: RunDirectory) -> list[str]:
    return [name for name in _folders(directory) if directory.exists(f"{FOLDER}/{name}/{MANIFEST}")]


def _step_of(name: str) -> int:
    return int(name.removeprefix("step_"))
