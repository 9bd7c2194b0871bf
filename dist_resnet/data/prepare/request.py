"""What is asked of a source: which folder, how to read it, and where to report progress."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow.fs as pafs

from dist_resnet.data.prepare.label_table import Table, TableColumns
from dist_resnet.data.prepare.split_choice import SplitChoice

TaskRunner = Callable[[Callable[[Any], Iterator[Any]], Sequence[Any]], Iterator[Any]]
"""Runs a generator for each task somewhere, and yields what they yield, in any order."""
WORK = "preparing"
"""The folder under the target for files that are needed until the set is finished."""


class PrepareProgress(Protocol):
    """Receives the progress of preparing a set."""

    def begin(self, what: str, total: int | None) -> None:
        """Starts a phase of `total` images; None if their number is unknown."""
        ...

    def advance(self, images: int) -> None:
        """Counts images that are done."""
        ...

    def say(self, line: str) -> None:
        """Shows a line."""
        ...


@dataclass(frozen=True, kw_only=True)
class SourceRequest:
    """A folder to be indexed, and how."""

    uri: str
    """The folder's address."""
    filesystem: pafs.FileSystem
    root: str
    """The folder's path in the file system."""
    split: str | None
    """Its split, if the source does not name its splits."""
    target: str
    """Address of the folder for images that have to be unpacked first."""
    columns: TableColumns
    """The columns of a table; its `label` is also that of Parquet shards and of WebDataset's JSON."""
    choice: SplitChoice
    """The splits whose names in the source are chosen."""
    labels: Table | None
    """The table of classes, if it is given."""
    has_class_map: bool
    """Whether the names of the classes are given."""
    run: TaskRunner
    progress: PrepareProgress

    @property
    def table_options(self) -> str:
        """The given options that only a table of classes has."""
        options = {"--labels": self.labels, "--file-column": self.columns.file, "--split-column": self.columns.split}
        return " and ".join(option for option, value in options.items() if value is not None)
