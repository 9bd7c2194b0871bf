"""The records of a run's journal, one class per kind, and their JSON.

A field that older journals lack defaults to None, which is not stored. Journals of a newer version can be read: records
of an unknown kind are kept unchanged, unknown fields are dropped.
"""

import dataclasses
import math
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class Record:
    """Something that happened to a run."""

    kind: ClassVar[str]
    """Its name in the journal."""
    time: float = field(default_factory=time.time)
    """When it was made, in seconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class Session(Record):
    """The training loop starts or resumes; points of earlier sessions after `start_step` no longer count."""

    kind = "session"
    start_step: int
    """Optimizer steps done before."""
    total_steps: int | None = None
    """Optimizer steps of the whole run."""
    steps_per_epoch: int | None = None
    global_batch: int | None = None
    """Images per step, on all workers together."""
    world_size: int | None = None
    """Workers."""
    begun: float | None = None
    """When the loop was entered, before a checkpoint was read, in seconds since 1970."""
    precision: str | None = None
    """As in `recipe.Execution`."""
    commit: str | None = None
    """The commit of the code."""
    device: str | None = None
    """What each worker trains on, in words."""
    machines: list[str] | None = None
    """The name of each rank's machine."""


@dataclass(frozen=True, kw_only=True)
class Metrics(Record):
    """Metrics after a step."""

    kind = "metrics"
    step: int
    """Optimizer steps done."""
    values: dict[str, float]
    """By key, such as `train/loss`; errors are fractions, times seconds."""

    @property
    def is_step(self) -> bool:
        """Whether they come from an optimizer step."""
        return "train/loss" in self.values

    @property
    def is_evaluation(self) -> bool:
        """Whether they come from an evaluation."""
        return "val/loss" in self.values


@dataclass(frozen=True, kw_only=True)
class Evaluating(Record):
    """Progress of a long evaluation."""

    kind = "evaluating"
    step: int
    """Optimizer steps done."""
    crop: int
    """Pixels per side."""
    images: int
    """Images that rank 0 has evaluated at this crop."""
    share: int
    """Images that rank 0 evaluates in total."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Record):
    """A checkpoint is committed."""

    kind = "checkpoint"
    step: int
    """Optimizer steps in it."""
    seconds: float
    """Seconds spent writing it."""


@dataclass(frozen=True, kw_only=True)
class Damaged(Record):
    """An image cannot be decoded; recorded once per image."""

    kind = "damaged"
    split: str
    """`train` or `validation`."""
    index: int
    """In the split."""
    file: str
    row: int
    """In the file."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class WorkerSeconds(Record):
    """Where each worker's time went in some steps; the lists have an entry for each rank, in seconds.

    Logging, checkpoints and evaluations are not in them.
    """

    kind = "worker_seconds"
    step: int
    """Optimizer steps done."""
    steps: int
    """The number of steps that the seconds are the sums of."""
    data_seconds: list[float]
    """Waiting for images; on a GPU, only while it had nothing else to do."""
    compute_seconds: list[float]
    reduce_seconds: list[float]
    """Waiting for the sum of all workers' gradients, once its own are computed."""


@dataclass(frozen=True, kw_only=True)
class Straggler(Record):
    """A worker holds the run back, because all others wait for it in every step."""

    kind = "straggler"
    step: int
    """Optimizer steps done."""
    rank: int
    machine: str
    fraction: float | None = None
    """The part of the run's time that it costs; None once it no longer holds the run back."""
    reason: str | None = None
    """What takes it longer than the others: `images`, for which it waits, or `computing`."""
    seconds_per_step: float | None = None
    """What that takes it."""
    others_seconds_per_step: float | None = None
    """What as much of that takes the others, in the median."""

    def __str__(self) -> str:
        who = f"rank {self.rank} on {self.machine}"
        if self.fraction is None:
            return f"{who} no longer holds the run back"
        does = "waits for images" if self.reason == "images" else "computes"
        return (
            f"{who} holds the run back by {self.fraction:.0%}: it {does} for {self.seconds_per_step:.3g} s a step, "
            f"the others for {self.others_seconds_per_step:.3g} s"
        )


@dataclass(frozen=True, kw_only=True)
class Finished(Record):
    """All steps are done; empty on ranks without a journal."""

    kind = "finished"
    steps: int | None = None
    """Optimizer steps done."""
    epochs: float | None = None
    top1_error: float | None = None
    """Of the last evaluation, a fraction."""
    top5_error: float | None = None
    """Likewise."""
    images_per_second: float | None = None
    """Of the steps of the last session."""
    model: str | None = None
    """The weights' file in the run's directory."""
    weights_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Diverged(Record):
    """The training loss is no longer finite."""

    kind = "diverged"
    step: int
    """Optimizer steps done."""


@dataclass(frozen=True, kw_only=True)
class TooDamaged(Record):
    """More images are damaged than the execution allows; the same command resumes once they are repaired."""

    kind = "too_damaged"
    step: int
    """Optimizer steps done."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Stopped(Record):
    """The run stopped on request, with a checkpoint; the same command resumes."""

    kind = "stopped"
    step: int
    """Optimizer steps done."""


@dataclass(frozen=True, kw_only=True)
class Tracking(Record):
    """How far MLflow is behind; sent to observers, never in a journal."""

    kind = "tracking"
    waiting_points: int
    """Points of the journal that MLflow has not received."""


@dataclass(frozen=True, kw_only=True)
class Unknown(Record):
    """A record of a kind that only a newer version knows."""

    kind = "unknown"
    stored: dict[str, Any]
    """All of it."""


Ending = Finished | Diverged | TooDamaged | Stopped
ENDINGS = (Finished, Diverged, TooDamaged, Stopped)
"""How a session ends: a journal's last record, unless another session follows or the run was cut off."""
FINAL_ENDINGS = (Finished, Diverged)
"""Endings after which a run cannot resume."""
_STORED: tuple[type[Record], ...] = (
    Session,
    Metrics,
    Evaluating,
    Checkpoint,
    Damaged,
    WorkerSeconds,
    Straggler,
    *ENDINGS,
)
_KINDS = {kind.kind: kind for kind in _STORED}
_FIELDS = {kind: tuple(each.name for each in dataclasses.fields(kind)) for kind in _STORED}

# Metric keys in journals of earlier versions.
_RENAMED = {"data/damaged_pictures": "data/damaged_images"}


def from_stored(stored: dict[str, Any]) -> Record:
    """The record stored as these JSON values. Raises ValueError if they are not a record."""
    try:
        kind = _KINDS.get(stored["kind"])
        if kind is None:
            return Unknown(time=stored["time"], stored=stored)
        fields = {"time": stored["time"]} | {name: stored[name] for name in _FIELDS[kind] if name in stored}
        if kind is Metrics:
            fields["values"] = {_RENAMED.get(key, key): _number(value) for key, value in stored["values"].items()}
        return kind(**fields)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def to_stored(record: Record) -> dict[str, Any]:
    """The JSON values of a record, in the order they are written."""
    if isinstance(record, Unknown):
        return record.stored
    fields = {name: getattr(record, name) for name in _FIELDS[type(record)]}
    stored = {name: _spell_nonfinite(value) for name, value in fields.items() if value is not None}
    return {"kind": record.kind} | stored


def _number(value: Any) -> float:
    return value if isinstance(value, float | int) else float(value)


def _spell_nonfinite(value: Any) -> Any:
    """The value with NaN and infinities, which JSON lacks, as the strings "nan", "inf" and "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _spell_nonfinite(entry) for key, entry in value.items()}
    return value
