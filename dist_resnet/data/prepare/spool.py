"""Parquet shards as downloaded, unpacked as plain bytes while a set is being prepared.

A global shuffle reads single images, but an image in compressed Parquet pages has no byte range. So the encoded images
of each source shard are first written to a spool file under the target's `preparing/`. Its index is written last: a
spool file that has an index is complete.
"""

import contextlib
import glob
import hashlib
import json
import posixpath
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from dist_resnet.data.prepare.index import Container, IndexBuilder, check_no_split, read_index, write_index
from dist_resnet.data.prepare.left_out import LeftOut
from dist_resnet.data.prepare.split_choice import SplitChoice
from dist_resnet.data.prepare.tree import list_files, list_folder
from dist_resnet.data.shards.column_values import LabelError, encoded_images, image_path
from dist_resnet.data.shards.columns import Columns, may_lack_bytes
from dist_resnet.data.shards.footers import columns_of, find_without_bytes, metadata_of, numbers_of
from dist_resnet.data.shards.split import Split
from dist_resnet.storage.files import exists, whole_file
from dist_resnet.storage.uri import child_uri, open_uri
from dist_resnet.wording import one_line

_NUMBERED = re.compile(r"-(\d{5})-of-(\d{5})\.parquet$")
_ROWS_AT_ONCE = 64
_BEGIN = "spool-"


@dataclass(frozen=True)
class SpoolTask:
    """One source shard to be spooled."""

    source: str
    """An address on the source's file system."""
    shard: str
    columns: Columns
    target: str
    """An address on the target's file system."""
    path: str
    """The spool file's path there; its index's path has `.index` appended."""
    class_names: tuple[str, ...]


def find_globs(
    filesystem: pafs.FileSystem, root: str, uri: str, split: str | None, choice: SplitChoice
) -> dict[str, str]:
    """The glob of each split's Parquet shards in a folder, in its split folders or in its `data/`, by their names.

    If no name says which split it is, all are of `split`. Raises ValueError if the names show that shards are missing,
    if they name no split, or if two kinds of names, or a name and `split`, stand for one split.
    """
    folder, shards = root, _list_shards(filesystem, root)
    if not shards and (in_folders := _in_folders(filesystem, root, uri, split, choice)):
        return in_folders
    if not shards:
        folder, uri = f"{root}/data", child_uri(uri, "data")
        shards = _list_shards(filesystem, folder)
    named: dict[str, list[str]] = {}
    for shard in shards:
        begin = shard[: len(shard) - len(shard.lstrip(string.ascii_letters))]
        if found := choice.split_of(begin):
            check_no_split(split, f"{folder}/{shard}", found)
        elif choice.is_replaced(begin):
            continue
        elif split is None:
            raise ValueError(
                f"{folder}/{shard} does not name its split; begin the name with train-, validation- or test-, or give "
                "--split for shards of one split"
            )
        named.setdefault("" if split else begin, []).append(shard)
    splits: dict[str, str] = {}
    for begin, names in named.items():
        found = choice.split_of(begin) or str(split)
        if found in splits:
            raise ValueError(
                f"{folder} holds {named[splits[found]][0]} and {names[0]}, both by their names the split {found}; move "
                "one kind to another folder"
            )
        _check_complete(begin or found, names)
        splits[found] = begin
    globs = {begin: f"{begin}[!a-zA-Z]*parquet" if begin else "[!.~]*.parquet" for begin in named}
    return {found: child_uri(uri, globs[begin]) for found, begin in splits.items()}


def _in_folders(
    filesystem: pafs.FileSystem, root: str, uri: str, split: str | None, choice: SplitChoice
) -> dict[str, str]:
    """The glob of the Parquet shards in each split's folder, called `train` or `split=train`, if there are any."""
    folders = list_folder(filesystem, root, LeftOut())[0]
    named = {name: found for name in folders if (found := choice.split_of(name.removeprefix("split=")))}
    shards = {name: _list_shards(filesystem, f"{root}/{name}") for name in named}
    splits: dict[str, str] = {}
    for name, found in named.items() if any(shards.values()) else ():
        check_no_split(split, f"{root}/{name}", found)
        if found in splits:
            raise ValueError(f"{root} holds two folders of the split {found}, one is {name}; move one elsewhere")
        if shards[name]:
            _check_complete(name, shards[name])
            splits[found] = child_uri(uri, f"{glob.escape(name)}/[!.~]*.parquet")
        elif found != "test":
            raise ValueError(
                f"{root}/{name} holds no Parquet shards, but the folders of other splits do; give all of one kind"
            )
    return splits


def _list_shards(filesystem: pafs.FileSystem, folder: str) -> list[str]:
    return [name for name in list_files(filesystem, folder) if name.endswith(".parquet")]


def _check_complete(split: str, shards: list[str]) -> None:
    numbers = [match for shard in shards if (match := _NUMBERED.search(shard))]
    if numbers and (missing := sorted(set(range(int(numbers[0][2]))) - {int(match[1]) for match in numbers})):
        raise ValueError(
            f"{split} has {len(shards)} of {int(numbers[0][2])} shards, the first missing one is number "
            f"{missing[0]:05d}; download the rest"
        )


def check_paths(split: Split) -> Iterator[str]:
    """Yields a line for each shard with images that have paths instead of bytes.

    Raises ValueError, naming shard and row, if the first such image of a shard cannot be read or has no path.
    """
    filesystem, _ = open_uri(split.uri)
    for shard, footer in zip(split.shards, split.footers, strict=True):
        columns = columns_of(footer, split.label_column)
        groups = may_lack_bytes(metadata_of(footer), columns)
        found = find_without_bytes(filesystem, shard, columns, groups) if groups else None
        if found is not None:
            row, path = found
            _read_path(filesystem, shard, row, path)
            yield f"{shard} has images without bytes, which are read from their paths, such as {path}"


def file_name(split: str, class_names: Sequence[str], shard: pafs.FileInfo, footer: bytes) -> str:
    """The name of a shard's spool file, unique for each shard and for each version of it."""
    # A repaired label may leave size and footer as they are.
    version = [class_names, shard.base_name, shard.size, shard.mtime_ns, hashlib.sha256(footer).hexdigest()]
    return f"{_BEGIN}{split}-{hashlib.sha256(json.dumps(version).encode()).hexdigest()[:16]}"


def remove_others(filesystem: pafs.FileSystem, folder: str, wanted: set[str]) -> None:
    """Removes the spool files in a folder that are not wanted."""
    entries = filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
    # Each index before its file: an index means that the file is complete.
    for entry in sorted(entries, key=lambda one: one.path, reverse=True):
        if entry.base_name.startswith(_BEGIN) and entry.base_name.partition(".")[0] not in wanted:
            with contextlib.suppress(FileNotFoundError):
                filesystem.delete_file(entry.path)


def spool_shard(task: SpoolTask) -> Iterator[int]:
    """Spools one shard, yielding numbers of images as they are done; holds one row group in memory.

    Raises ValueError for a shard that cannot be read, labels outside the classes and images without bytes.
    """
    target, _ = open_uri(task.target)
    if exists(target, f"{task.path}.index"):
        yield len(read_index(target, f"{task.path}.index", task.target))
        return
    base = task.shard.rpartition("/")[2]
    names: dict[str, None] = {}
    sizes: list[int] = []
    labels: list[int] = []
    with whole_file(target, task.path) as stream:
        for images, paths, found in _read_batches(task):
            for image, path, label in zip(images, paths, found.tolist(), strict=True):
                encoded = _encoded(task, len(names), image, path)
                stream.write(encoded)
                # Some writers name all images alike, or restart their numbers in each shard.
                names[path if path and path not in names else f"{base} row {len(names)}"] = None
                sizes.append(len(encoded))
                labels.append(label)
            yield len(images)
    builder = IndexBuilder(task.target)
    offsets = np.cumsum(sizes) - sizes
    builder.add(Container(task.path, f"{base}/"), offsets, np.array(sizes), np.array(labels), list(names))
    with whole_file(target, f"{task.path}.index") as stream:
        write_index(stream, builder.build())


def _read_batches(task: SpoolTask) -> Iterator[tuple[list[np.ndarray | None], list[str | None], np.ndarray]]:
    """(encoded images, paths, labels int64) of the shard's rows, some at a time.

    Raises ValueError, naming the shard, if it is torn, and the row, if a label is none of the classes.
    """
    source, _ = open_uri(task.source)
    columns = task.columns
    wanted = [name for name in (columns.bytes, columns.path, columns.label) if name is not None]
    row = 0
    try:
        with source.open_input_file(task.shard) as file:
            parquet = pq.ParquetFile(file)
            for group in range(parquet.num_row_groups):
                for batch in parquet.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=wanted, use_threads=False):
                    table = pa.Table.from_batches([batch])
                    images = table[columns.image]
                    yield encoded_images(images), [image_path(one) for one in images], _labels(task, table, row)
                    row += len(table)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{task.shard} cannot be read ({one_line(error)}); replace the file with an intact copy"
        ) from error


def _labels(task: SpoolTask, table: pa.Table, first_row: int) -> np.ndarray:
    """The classes of some rows, int64. Raises ValueError, naming shard and row, for a label that is not a class."""
    try:
        labels = numbers_of(table[task.columns.label], task.columns, task.class_names)
    except LabelError as error:
        raise ValueError(f"{task.shard} row {first_row + error.row} {error.reason}; fix the shard's labels") from error
    beyond = np.flatnonzero((labels < 0) | (labels >= len(task.class_names)))
    if len(beyond):
        label, row = labels[beyond[0]], first_row + beyond[0]
        if label < 0:
            raise ValueError(f"label {label} in {task.shard} row {row} means no label; give every image a label")
        raise ValueError(
            f"label {label} in {task.shard} row {row} is not in the class list, 0 .. {len(task.class_names) - 1}; "
            "fix the shard's labels or its class names"
        )
    return labels


def _encoded(task: SpoolTask, row: int, image: np.ndarray | None, path: str | None) -> np.ndarray | bytes:
    """An image's bytes, as stored or from its path. Raises ValueError, naming shard and row, if it has neither."""
    if image is not None and (len(image) or path is None):
        return image  # an empty one is damaged and will be listed
    source, _ = open_uri(task.source)
    return _read_path(source, task.shard, row, path)


def _read_path(source: pafs.FileSystem, shard: str, row: int, path: str | None) -> bytes:
    """The image at a path on the shard's file system, absolute or relative to the shard's folder.

    Raises ValueError, naming shard and row, if there is no path or it cannot be read.
    """
    if path is None:
        raise ValueError(f"{shard} row {row} has no image bytes and no path; give shards with the bytes embedded")
    try:
        with source.open_input_file(posixpath.join(posixpath.dirname(shard), path)) as file:
            return file.read()
    except (OSError, ValueError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({one_line(error)})"
        raise ValueError(
            f"{shard} row {row} has no image bytes, only the path {path}, which {reason}; give shards with the bytes "
            "embedded, or store the images where every node can read them"
        ) from error
