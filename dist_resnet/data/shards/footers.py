"""Reads the footers of Parquet shards, and the labels and image bytes that footers do not describe."""

import functools
import hashlib
import io
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from dist_resnet.data.image.kinds import HEAD_BYTES, kind_of
from dist_resnet.data.shards import byte_offsets
from dist_resnet.data.shards.column_values import (
    LabelError,
    class_of_texts,
    encoded_images,
    image_path,
    label_numbers,
    label_texts,
)
from dist_resnet.data.shards.columns import (
    NO_COLUMNS,
    Columns,
    UnlabeledError,
    find_columns,
    label_statistics,
    may_lack_bytes,
)
from dist_resnet.wording import one_line

_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Head:
    """A shard's footer, and the range of its labels."""

    size: int
    footer: bytes
    rows: tuple[int, ...]
    columns: Columns
    label_range: tuple[int, int] | None
    """Least and greatest label; None if the labels are text, or there are none."""
    names: tuple[str, ...]
    """The labels, sorted, each once, if they are text."""


def read_head(filesystem: pafs.FileSystem, shard: str, *, label_column: str | None, allow_paths: bool) -> Head:
    """Reads and checks one shard's footer; reads labels and images only if the footer does not describe them."""
    try:
        size, footer = _read_footer(filesystem, shard)
        metadata = metadata_of(footer)
        schema = metadata.schema.to_arrow_schema()
        rows = tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
        if not sum(rows):
            return Head(size, footer, rows, NO_COLUMNS, None, ())
        columns = find_columns(shard, schema, label_column)
        if not allow_paths:
            _check_bytes(filesystem, shard, metadata, columns)
        labels = label_statistics(metadata, columns)
        names: tuple[str, ...] = ()
        if labels is None:
            labels, names = _read_labels(filesystem, shard, columns)
    except (OSError, pa.ArrowException) as error:
        todo = "replace it with an intact copy"
        if not shard.endswith(".parquet"):
            todo = (
                f"if it is not a shard, give a glob without it, such as {shard.rpartition('/')[0]}/*.parquet, "
                f"otherwise {todo}"
            )
        raise ValueError(f"{shard} cannot be read as Parquet ({one_line(error)}); {todo}") from error
    return Head(size, footer, rows, columns, labels, names)


def _check_bytes(filesystem: pafs.FileSystem, shard: str, metadata: pq.FileMetaData, columns: Columns) -> None:
    """Raises ValueError, naming file and row, if an image has no bytes, as far as the footer shows."""
    groups = may_lack_bytes(metadata, columns)
    found = find_without_bytes(filesystem, shard, columns, groups) if groups else None
    if found is None:
        return
    row, path = found
    if path is None:
        raise ValueError(f"{shard} row {row} has no image bytes; give shards in which every image has its bytes")
    folder = shlex.quote(shard.rpartition("/")[0])
    raise ValueError(
        f"{shard} row {row} has no image bytes, only the path {path}, and training does not read paths; put the images "
        f"into shards with python jobs/prepare_imagenet.py --source {folder} --target FOLDER"
    )


def find_without_bytes(
    filesystem: pafs.FileSystem, shard: str, columns: Columns, groups: Sequence[int]
) -> tuple[int, str | None] | None:
    """(row, path if it has one) of the first image in these row groups that has no bytes; None if all have bytes.

    A single image of zero bytes is damaged, and reported when it is read; if all have zero bytes, paths are meant.
    """
    wanted = [name for name in (columns.bytes, columns.path) if name is not None]
    with filesystem.open_input_file(shard) as file:
        parquet = pq.ParquetFile(file)
        first_empty, has_some = None, len(groups) < parquet.num_row_groups
        for number in groups:
            column = parquet.read_row_group(number, columns=wanted)[columns.image]
            before = sum(parquet.metadata.row_group(one).num_rows for one in range(number))
            for place, image in enumerate(encoded_images(column)):
                if image is None:
                    return before + place, image_path(column[place])
                has_some = has_some or len(image) > 0
                first_empty = first_empty or (before + place, image_path(column[place]))
    return None if has_some else first_empty


def _read_labels(
    filesystem: pafs.FileSystem, shard: str, columns: Columns
) -> tuple[tuple[int, int] | None, tuple[str, ...]]:
    """(least and greatest label, no names) for numbers; (None, the sorted names) for text."""
    column = read_column(filesystem, shard, columns.label)
    try:
        if columns.text_labels:
            return None, tuple(sorted(label_texts(column).unique().to_pylist()))
        numbers = label_numbers(column)
        return (int(numbers.min()), int(numbers.max())), ()
    except LabelError as error:
        raise UnlabeledError(
            f"{shard} row {error.row} {error.reason} in the column {columns.label}; give shards in which every image "
            "has a label"
        ) from error


def _read_footer(filesystem: pafs.FileSystem, shard: str) -> tuple[int, bytes]:
    """(size of the file, footer), nearly always with one read."""
    with filesystem.open_input_file(shard) as file:
        size = file.size()
        tail = file.read_at(min(size, _TAIL_BYTES), max(0, size - _TAIL_BYTES))
        if len(tail) < 12 or tail[-4:] != b"PAR1":
            _refuse_other(shard, size, kind_of("", file.read_at(min(size, HEAD_BYTES), 0)))
        length = int.from_bytes(tail[-8:-4], "little")
        if length + 12 > size:
            raise pa.ArrowInvalid(f"a footer of {length} bytes in a file of {size} bytes")
        if length + 8 > len(tail):
            tail = file.read_at(length + 8, size - length - 8)
        return size, tail[-8 - length : -8]


def _refuse_other(shard: str, size: int, kind: str) -> NoReturn:
    """Raises ArrowInvalid for a file without Parquet's end, ValueError if it is a Git LFS pointer."""
    if kind == "Git LFS pointer":
        raise ValueError(f"{shard} is a Git LFS pointer and not the file itself; run git lfs pull")
    if kind == "Parquet":
        raise pa.ArrowInvalid(f"it is cut short: no Parquet footer in its {size} bytes")
    raise pa.ArrowInvalid(f"no Parquet footer in its {size} bytes" + (f", which are {kind}" if size else ""))


def read_column(filesystem: pafs.FileSystem, shard: str, name: str) -> pa.ChunkedArray:
    """One column of a shard."""
    with filesystem.open_input_file(shard) as file:
        return pq.ParquetFile(file).read(columns=[name])[name]


def numbers_of(column: pa.ChunkedArray, columns: Columns, class_names: tuple[str, ...] | None) -> np.ndarray:
    """int64 [N]: labels as numbers, for text the indices in the class names. Raises LabelError."""
    if columns.text_labels:
        return class_of_texts(label_texts(column), class_names or ())
    return label_numbers(column)


class Part(io.RawIOBase):
    """A readable file that has only one part of its content, and its footer."""

    def __init__(self, content: np.ndarray, begin: int, footer: bytes) -> None:
        """`content`: uint8, from byte `begin` of the file on."""
        self._content, self._begin = content, begin
        self._tail = footer + len(footer).to_bytes(4, "little") + b"PAR1"
        self._size = begin + len(content) + len(self._tail)
        self._position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int = -1) -> memoryview | bytes:
        start = self._position - self._begin
        stop = start + (size if size >= 0 else self._size)
        self._position += max(0, min(stop, len(self._content)) - start)
        return self._content.data[max(0, start) : stop]


@functools.cache
def metadata_of(footer: bytes) -> pq.FileMetaData:
    """A footer, parsed."""
    length = len(footer).to_bytes(4, "little")
    return pq.read_metadata(pa.BufferReader(b"PAR1" + footer + length + b"PAR1"))


@functools.cache
def columns_of(footer: bytes, label_column: str) -> Columns:
    """The columns of images and labels in the shard of a footer that was checked before."""
    return find_columns("the shard", metadata_of(footer).schema.to_arrow_schema(), label_column)


@functools.cache
def image_ranges(footer: bytes) -> np.ndarray | None:
    """int64 [3, rows]: each image's offset in the shard, number of bytes and label; None if the footer has no such."""
    return byte_offsets.decode(metadata_of(footer).metadata)


@functools.cache
def version_of(footer: bytes) -> str:
    """An identifier of the content of a footer's file."""
    return hashlib.sha256(footer).hexdigest()


def extent_of(group: pq.RowGroupMetaData, wanted: list[str]) -> tuple[int, int]:
    """The byte range in the file that covers a row group's wanted columns: (first, last + 1)."""
    chunks = [group.column(place) for place in range(group.num_columns)]
    columns = [chunk for chunk in chunks if chunk.path_in_schema in wanted]
    starts = [
        min(column.data_page_offset, column.dictionary_page_offset or column.data_page_offset) for column in columns
    ]
    return min(starts), max(start + column.total_compressed_size for start, column in zip(starts, columns, strict=True))
