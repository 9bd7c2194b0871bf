"""Parquet shards as downloaded, written out as plain bytes for as long as a set is being prepared.

A picture within compressed Parquet pages has no byte range of its own, and a global shuffle wants single pictures. So
the encoded pictures of each source shard are first put one after the other into a file under the target's
`preparing/`, with an index beside it that is written last and so says that the file is whole.
"""

import contextlib
import hashlib
import json
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from dist_resnet.data.ranges import filesystem_of, one_line
from dist_resnet.data.sources import Container, IndexBuilder, check_no_split, read_index, write_index
from dist_resnet.data.splits import split_of
from dist_resnet.data.store import child_uri, exists, whole_file
from dist_resnet.data.tree import list_files

_NUMBERED = re.compile(r"-(\d{5})-of-(\d{5})\.parquet$")
_ROWS_AT_ONCE = 64
_BEGIN = "spool-"


@dataclass(frozen=True)
class SpoolTask:
    """One source shard to be spooled."""

    source: str
    """An address on the source's file system."""
    shard: str
    image_column: str
    target: str
    """An address on the target's file system."""
    path: str
    """The spool file's path there; its index has `.index` after it."""
    num_classes: int


def find_splits(filesystem: pafs.FileSystem, root: str, uri: str, split: str | None) -> dict[str, str]:
    """The glob of each split's Parquet shards in a folder or its `data/`, by their names, or of all as one `split`.

    Raises ValueError where the names say that some are missing, or say no split, or one for which there is `split` or
    another name.
    """
    folder, shards = root, _list_shards(filesystem, root)
    if not shards:
        folder, uri = f"{root}/data", child_uri(uri, "data")
        shards = _list_shards(filesystem, folder)
    named: dict[str, list[str]] = {}
    for shard in shards:
        begin = shard[: len(shard) - len(shard.lstrip(string.ascii_letters))]
        if found := split_of(begin):
            check_no_split(split, f"{folder}/{shard}", found)
        elif split is None:
            raise ValueError(
                f"{folder}/{shard} is of no split by its name, which should begin with train-, validation- or test-; "
                "give --split for shards of one split"
            )
        named.setdefault("" if split else begin, []).append(shard)
    splits: dict[str, str] = {}
    for begin, names in named.items():
        found = split_of(begin) or str(split)
        if found in splits:
            raise ValueError(
                f"{folder} holds {named[splits[found]][0]} and {names[0]}, which are of one split by their names; keep "
                "one kind in another folder"
            )
        _check_complete(begin or found, names)
        splits[found] = begin
    globs = {begin: f"{begin}[!a-zA-Z]*parquet" if begin else "[!.~]*.parquet" for begin in named}
    return {found: child_uri(uri, globs[begin]) for found, begin in splits.items()}


def _list_shards(filesystem: pafs.FileSystem, folder: str) -> list[str]:
    return [name for name in list_files(filesystem, folder) if name.endswith(".parquet")]


def _check_complete(split: str, shards: list[str]) -> None:
    numbers = [match for shard in shards if (match := _NUMBERED.search(shard))]
    if numbers and (missing := sorted(set(range(int(numbers[0][2]))) - {int(match[1]) for match in numbers})):
        raise ValueError(
            f"{split} has {len(shards)} of {int(numbers[0][2])} shards; the first that is missing is number "
            f"{missing[0]:05d}; download the rest"
        )


def file_name(split: str, num_classes: int, shard: pafs.FileInfo, footer: bytes) -> str:
    """What a shard's spool file is called: unlike for another shard, and for the same one when it has been mended."""
    # A label that was mended may leave size and footer as they are.
    version = [num_classes, shard.base_name, shard.size, shard.mtime_ns, hashlib.sha256(footer).hexdigest()]
    return f"{_BEGIN}{split}-{hashlib.sha256(json.dumps(version).encode()).hexdigest()[:16]}"


def remove_others(filesystem: pafs.FileSystem, folder: str, wanted: set[str]) -> None:
    """Removes the spool files in a folder that have other names than those wanted."""
    entries = filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
    # Each index goes before its file, for it says that the file is whole.
    for entry in sorted(entries, key=lambda one: one.path, reverse=True):
        if entry.base_name.startswith(_BEGIN) and entry.base_name.partition(".")[0] not in wanted:
            with contextlib.suppress(FileNotFoundError):
                filesystem.delete_file(entry.path)


def spool_shard(task: SpoolTask) -> Iterator[int]:
    """Spools one shard, yielding numbers of pictures as they are done.

    Raises ValueError for a shard that cannot be read and for labels beyond the classes. Holds one row group of the
    shard in memory.
    """
    target, _ = filesystem_of(task.target)
    if exists(target, f"{task.path}.index"):
        yield len(read_index(target, f"{task.path}.index", task.target))
        return
    base = task.shard.rpartition("/")[2]
    names: list[str] = []
    sizes: list[int] = []
    labels: list[int] = []
    with whole_file(target, task.path) as stream:
        for batch in _read_batches(task):
            for picture, label in batch:
                _check_row(task, len(names), picture, label)
                stream.write(picture["bytes"])
                names.append(picture["path"] or f"{base} row {len(names)}")
                sizes.append(len(picture["bytes"]))
                labels.append(label)
            yield len(batch)
    builder = IndexBuilder(task.target)
    offsets = np.cumsum(sizes) - sizes
    builder.add(Container(task.path, f"{base}/"), offsets, np.array(sizes), np.array(labels), names)
    with whole_file(target, f"{task.path}.index") as stream:
        write_index(stream, builder.build())


def _read_batches(task: SpoolTask) -> Iterator[list[tuple[Any, Any]]]:
    """(picture, label) of the shard's rows, some at a time. Raises ValueError, naming the shard, where it is torn."""
    source, _ = filesystem_of(task.source)
    columns = [f"{task.image_column}.bytes", f"{task.image_column}.path", "label"]
    try:
        with source.open_input_file(task.shard) as file:
            parquet = pq.ParquetFile(file)
            for group in range(parquet.num_row_groups):
                for batch in parquet.iter_batches(
                    _ROWS_AT_ONCE, row_groups=[group], columns=columns, use_threads=False
                ):
                    yield list(zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(
            f"{task.shard} cannot be read ({one_line(error)}); replace the file by an intact copy"
        ) from error


def _check_row(task: SpoolTask, row: int, picture: dict | None, label: int | None) -> None:
    if picture is None or picture["bytes"] is None:
        raise ValueError(f"{task.shard} row {row} has no picture bytes; give shards with the bytes embedded")
    if label is None or not 0 <= label < task.num_classes:
        raise ValueError(
            f"label {label} in {task.shard} row {row} is outside of the class list, 0 .. {task.num_classes - 1}; mend "
            "the shard's labels or its class names"
        )
