"""What a run's journal tells, a class for each kind of record, and how each is stored.

A field that older journals lack has a default, None, which is not stored. Kinds and fields of a newer version are no
error: a record of an unknown kind is kept as it is, and a field that is not known is left out.
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
    """What it is called in the journal."""
    time: float = field(default_factory=time.time)
    """When it was made, in seconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class Session(Record):
    """The training loop starts, or goes on from a checkpoint; points of earlier sessions past it count no more."""

    kind = "session"
    start_step: int
    """Optimizer steps done by then."""
    total_steps: int | None = None
    """Optimizer steps of the whole run."""
    steps_per_epoch: int | None = None
    global_batch: int | None = None
    """Images of a step, on all workers together."""
    world_size: int | None = None
    """Workers."""
    begun: float | None = None
    """When the loop was entered, before a checkpoint was read, in seconds since 1970."""
    precision: str | None = None
    """As `recipe.Execution` has it."""
    commit: str | None = None
    """The code that runs."""
    device: str | None = None
    """What each worker trains on, in words."""


@dataclass(frozen=True, kw_only=True)
class Metrics(Record):
    """Numbers as they stand after a step, some of the kinds that there are."""

    kind = "metrics"
    step: int
    """Optimizer steps done."""
    values: dict[str, float]
    """By key, such as `train/loss`; errors are fractions, times seconds."""

    @property
    def is_step(self) -> bool:
        """Whether they are those of an optimizer step."""
        return "train/loss" in self.values

    @property
    def is_evaluation(self) -> bool:
        """Whether they are those of an evaluation."""
        return "val/loss" in self.values


@dataclass(frozen=True, kw_only=True)
class Evaluating(Record):
    """A long evaluation goes on."""

    kind = "evaluating"
    step: int
    """Optimizer steps done."""
    crop: int
    """Pixels a side."""
    images: int
    """That rank 0 has evaluated at this crop."""
    share: int
    """Images that rank 0 evaluates."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Record):
    """A checkpoint is committed."""

    kind = "checkpoint"
    step: int
    """Optimizer steps in it."""
    seconds: float
    """That writing took."""


@dataclass(frozen=True, kw_only=True)
class Damaged(Record):
    """An image cannot be decoded; each is told once."""

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
class Finished(Record):
    """All steps are taken; empty on ranks that have no journal."""

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
    """More images are damaged than the execution allows; the same command may go on once they are mended."""

    kind = "too_damaged"
    step: int
    """Optimizer steps done."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Stopped(Record):
    """The run was asked to stop, and did with a checkpoint; the same command goes on."""

    kind = "stopped"
    step: int
    """Optimizer steps done."""


@dataclass(frozen=True, kw_only=True)
class Tracking(Record):
    """How far MLflow is behind: told to observers, and never in a journal."""

    kind = "tracking"
    waiting_points: int
    """Points of the journal that MLflow has not taken."""


@dataclass(frozen=True, kw_only=True)
class Unknown(Record):
    """A record of a kind that only a newer version knows."""

    kind = "unknown"
    stored: dict[str, Any]
    """All of it."""


Ending = Finished | Diverged | TooDamaged | Stopped
ENDINGS = (Finished, Diverged, TooDamaged, Stopped)
"""How a session ends: a journal's last record, unless another session goes on or the run was cut off."""
FINAL_ENDINGS = (Finished, Diverged)
"""Those after which nothing is left to do."""
_STORED: tuple[type[Record], ...] = (Session, Metrics, Evaluating, Checkpoint, Damaged, *ENDINGS)
_KINDS = {kind.kind: kind for kind in _STORED}
_FIELDS = {kind: tuple(each.name for each in dataclasses.fields(kind)) for kind in _STORED}

# Keys of metrics in journals that earlier versions wrote.
_RENAMED = {"data/damaged_pictures": "data/damaged_images"}


def from_stored(stored: dict[str, Any]) -> Record:
    """The record that JSON values tell. Raises ValueError where they are no record."""
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
    """The JSON values of a record, in the order in which they are written."""
    if isinstance(record, Unknown):
        return record.stored
    fields = {name: getattr(record, name) for name in _FIELDS[type(record)]}
    stored = {name: _spell_nonfinite(value) for name, value in fields.items() if value is not None}
    return {"kind": record.kind} | stored


def _number(value: Any) -> float:
    return value if isinstance(value, float | int) else float(value)


def _spell_nonfinite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are written as the strings "nan", "inf" and "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _spell_nonfinite(entry) for key, entry in value.items()}
    return value
