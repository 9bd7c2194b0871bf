"""The description of a run in MLflow, saved in the run's directory so that a later delivery can send it."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set that a run reads."""

    name: str
    digest: str
    context: str
    """`training` or `validation`."""
    source: str
    images: int
    classes: int


@dataclass(frozen=True, kw_only=True)
class RunDescription:
    """An MLflow run at its start: name, parameters, tags, data sets, and text artifacts by file name."""

    experiment: str
    name: str
    params: dict[str, Any]
    tags: dict[str, str]
    texts: dict[str, str] = field(default_factory=dict)
    data_sets: tuple[DataSet, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The description as JSON values."""
        return dataclasses.asdict(self) | {"params": {key: str(value) for key, value in self.params.items()}}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunDescription":
        """The description that `to_dict` wrote."""
        return cls(**values | {"data_sets": tuple(DataSet(**entry) for entry in values["data_sets"])})


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How an MLflow run ends: FINISHED, FAILED or KILLED, with files to attach and tags to set."""

    status: str
    files: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
