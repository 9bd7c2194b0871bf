"""The index of a source: for each encoded image its file, byte range, label and name."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from dist_resnet.terminal import not_text
from dist_resnet.wording import some

_SCHEMA = pa.schema(
    {
        "container": pa.int32(),
        "offset": pa.int64(),
        "size": pa.int64(),
        "label": pa.int64(),
        "name": pa.string(),
    }
)


@dataclass(frozen=True)
class Container:
    """A file that holds images, or a folder whose files are images."""

    path: str
    """Its path in the file system; a folder's ends in /."""
    origin: str
    """The prefix of its images' names in messages."""


@dataclass(frozen=True, eq=False)
class Index:
    """Where the N images of a split are stored."""

    uri: str
    """An address on the file system that holds the containers."""
    containers: tuple[Container, ...]
    container: np.ndarray
    """int32 [N]"""
    offset: np.ndarray
    """int64 [N]: the first byte in the container; 0 if that is a folder."""
    size: np.ndarray
    """int64 [N]: bytes."""
    label: np.ndarray
    """int64 [N]"""
    name: pa.StringArray
    """The images' names, unique within a class."""

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: np.ndarray) -> "Index":
        """The images of the given rows, in that order."""
        return Index(
            uri=self.uri,
            containers=self.containers,
            container=self.container[rows],
            offset=self.offset[rows],
            size=self.size[rows],
            label=self.label[rows],
            name=self.name.take(pa.array(rows)),
        )

    def describe(self, row: int) -> str:
        """The name of an image in messages, such as `train/n01440764/n01440764_10026.JPEG`."""
        return self.containers[self.container[row]].origin + self.name[row].as_py()

    @property
    def num_bytes(self) -> int:
        """Bytes of all images."""
        return int(self.size.sum())


@dataclass(frozen=True, eq=False)
class Source:
    """An indexed source."""

    kind: str
    """`folder`, `table`, `tar`, `webdataset` or `parquet`."""
    class_names: tuple[str, ...]
    splits: dict[str, Index]
    notes: tuple[str, ...]
    """What was left out, one line each."""
    listed: bool = False
    """Whether the classes come from a list or are numbers, so that some may have no image."""


class IndexBuilder:
    """Collects the parts of a split's index."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._containers: list[Container] = []
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, pa.Array]] = []

    def add(
        self, container: Container, offsets: np.ndarray | None, sizes: np.ndarray, labels: Any, names: Sequence[str]
    ) -> None:
        """Adds the images of one container; `labels` is one for all, or int64 [N]."""
        sizes = np.asarray(sizes, np.int64)
        number = np.full(len(sizes), len(self._containers), np.int32)
        offsets = np.zeros(len(sizes), np.int64) if offsets is None else np.asarray(offsets, np.int64)
        labels = np.broadcast_to(np.asarray(labels, np.int64), sizes.shape)
        self._containers.append(container)
        self._parts.append((number, offsets, sizes, labels, _texts(names, container)))

    def build(self) -> Index:
        """The index of all that was added."""
        container, offset, size, label, name = list(zip(*self._parts, strict=True)) or [()] * 5
        return Index(
            uri=self._uri,
            containers=tuple(self._containers),
            container=_concatenate(container).astype(np.int32),
            offset=_concatenate(offset),
            size=_concatenate(size),
            label=_concatenate(label),
            name=pa.concat_arrays([pa.array([], pa.string()), *name]),
        )


def _texts(names: Sequence[str], container: Container) -> pa.Array:
    """The names of images. Raises ValueError for the first that is not UTF-8."""
    try:
        return pa.array(names, pa.string())
    except UnicodeEncodeError as error:
        raise ValueError(
            not_text(f"{container.path}{'' if container.path.endswith('/') else ': '}{error.object}")
        ) from error


def _concatenate(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)


def check_index(index: Index, split: str, class_names: Sequence[str], *, every_class: bool) -> None:
    """Raises ValueError for labels outside the class list, two images with one name, or an empty class."""
    if not len(index):
        raise ValueError(f"the source holds no {split} image; give another --source")
    beyond = np.flatnonzero((index.label < 0) | (index.label >= len(class_names)))
    if len(beyond):
        row = int(beyond[0])
        raise ValueError(
            f"{index.describe(row)} has label {index.label[row]}, which is not one of the {len(class_names)} classes "
            f"0 .. {len(class_names) - 1}; fix the source's labels or its class names"
        )
    empty = np.flatnonzero(np.bincount(index.label, minlength=len(class_names)) == 0)
    if every_class and len(empty):
        classes = some([class_names[int(label)] for label in empty], most=1)
        raise ValueError(
            f"class {classes} has no {split} image; complete the source, remove the class, or list the "
            "classes with --class-map to keep it empty"
        )
    _check_names(index, class_names)


def named_apart(index: Index) -> Index:
    """The index with the container before each name that an earlier image of the class has; in Parquet, the shard."""
    known: set[tuple[int, str]] = set()
    pairs = {(pair["label"], pair["name"]) for pair in _named_alike(index).to_pylist()}
    names = index.name.to_pylist() if pairs else []
    for row, pair in enumerate(zip(index.label.tolist(), names, strict=True) if pairs else ()):
        if pair in known:
            names[row] = index.describe(row)
        elif pair in pairs:
            known.add(pair)
    return dataclasses.replace(index, name=pa.array(names, pa.string())) if pairs else index


def _named_alike(index: Index) -> pa.Table:
    """Each label and name that several images have."""
    table = pa.table({"label": index.label, "name": index.name})
    return table.group_by(["label", "name"]).aggregate([([], "count_all")]).filter(pc.field("count_all") > 1)


def _check_names(index: Index, class_names: Sequence[str]) -> None:
    twice = _named_alike(index)
    if not len(twice):
        return
    label, name = twice["label"][0].as_py(), twice["name"][0].as_py()
    rows = [row for row in np.flatnonzero(index.label == label).tolist() if index.name[row].as_py() == name]
    first, second = (index.containers[index.container[row]].origin for row in rows[:2])
    raise ValueError(
        f"two images of class {class_names[label]} are named {name}, in {first.rstrip('/')} and "
        f"{second.rstrip('/')}; give them different names, or remove one"
    )


def check_no_split(split: str | None, path: str, named: str) -> None:
    """Raises ValueError if --split is given although the name of `path` says that it is the split `named`."""
    if split is not None:
        raise ValueError(f"{path} is by its name the split {named}; leave out --split {split}, or give another source")


def write_index(stream: Any, index: Index) -> None:
    """Writes an index as Parquet."""
    names = [index.container, index.offset, index.size, index.label, index.name]
    containers = json.dumps([[one.path, one.origin] for one in index.containers])
    table = pa.table(
        [pa.array(column, kind) for column, kind in zip(names, _SCHEMA.types, strict=True)], schema=_SCHEMA
    )
    pq.write_table(table.replace_schema_metadata({"containers": containers}), stream, compression="zstd")


def read_index(filesystem: pafs.FileSystem, path: str, uri: str) -> Index:
    """Reads what `write_index` wrote; the containers are on the file system of `uri`."""
    with filesystem.open_input_file(path) as file:
        table = pq.read_table(file)
    containers = tuple(Container(*pair) for pair in json.loads(table.schema.metadata[b"containers"]))
    numbers = {name: table[name].to_numpy() for name in _SCHEMA.names[:4]}
    return Index(uri=uri, containers=containers, name=table["name"].combine_chunks(), **numbers)


def join(parts: Sequence[Index]) -> Index:
    """Joins indexes on the same file system."""
    firsts = np.cumsum([0, *(len(part.containers) for part in parts[:-1])])
    return Index(
        uri=parts[0].uri,
        containers=tuple(container for part in parts for container in part.containers),
        container=_concatenate([part.container + first for part, first in zip(parts, firsts, strict=True)]).astype(
            np.int32
        ),
        offset=_concatenate([part.offset for part in parts]),
        size=_concatenate([part.size for part in parts]),
        label=_concatenate([part.label for part in parts]),
        name=pa.concat_arrays([part.name for part in parts]),
    )
