"""Parquet shards in the Hugging Face layout as one indexed split, on local storage, S3 or GCS.

A split is described by plain values (`Split`), so it can be pickled to workers; files are opened where row groups
are read, each by one range of bytes. Pictures are numbered 0 .. num_images - 1 through the shards in listing order.
"""

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from dist_resnet.data import places
from dist_resnet.data.globs import find_shards
from dist_resnet.data.manifest import Found, check_opened
from dist_resnet.data.ranges import Access, RangeReader, filesystem_of, one_line

_IMAGE_COLUMNS = ("image", "img")
_TAIL_BYTES = 1 << 16
_HERE = Access()


@dataclass(frozen=True, eq=False)
class Split:
    """The index of a split: what lies where, without any open handle."""

    uri: str
    """The glob or folder that was opened."""
    shards: tuple[str, ...]
    """Paths of the shards within their file system, sorted."""
    group_shard: np.ndarray
    """int64 [R]: which shard row group r lies in."""
    group_number: np.ndarray
    """int64 [R]: its number within that shard."""
    group_rows: np.ndarray
    """int64 [R]: its pictures."""
    group_first: np.ndarray
    """int64 [R]: the index of its first picture."""
    class_names: tuple[str, ...] | None
    """Names of the files' labels from the schema's `huggingface` metadata; they may hold duplicates."""
    image_column: str
    """`image` or `img`."""
    footers: tuple[bytes, ...]
    """The shards' footers."""
    digest: str
    """sha256 (hex) over the shards' footers in listing order; names and places of files take no part."""
    label_range: tuple[int, int]
    """Least and greatest label, as the files have them."""
    shard_labels: tuple[tuple[int, int], ...]
    """Least and greatest label of each shard, as the files have them."""
    label_map: np.ndarray | None = None
    """int64 [labels]: the model's class for each label of the files, -1 where it has none; None where they are equal.
    Every label that is read has gone through it."""

    @property
    def num_images(self) -> int:
        """Pictures in the split."""
        return int(self.group_rows.sum())

    @property
    def num_row_groups(self) -> int:
        """Row groups in the split."""
        return len(self.group_rows)

    def locate(self, index: int) -> tuple[str, int]:
        """The shard that picture `index` lies in, and its row there. Raises IndexError outside the split."""
        if not 0 <= index < self.num_images:
            raise IndexError(f"picture {index} is outside of 0 .. {self.num_images - 1}")
        shard = int(self.group_shard[np.searchsorted(self.group_first, index, side="right") - 1])
        return self.shards[shard], index - self.first_index(shard)

    def first_index(self, shard: int) -> int:
        """The index of the first picture of a shard."""
        return int(self.group_first[np.searchsorted(self.group_shard, shard)])

    def mapped(self, label_map: np.ndarray | None) -> "Split":
        """The split with what are its labels so far read as the model's classes; `label_map`: int64, as the field."""
        if label_map is not None and self.label_map is not None:
            label_map = _look_up(label_map, self.label_map)
        return self if label_map is None else dataclasses.replace(self, label_map=label_map)

    def classes(self, labels: np.ndarray) -> np.ndarray:
        """The model's classes of labels as the files have them, int64; -1 for a label that the map does not know."""
        return labels if self.label_map is None else _look_up(self.label_map, labels)

    def classes_present(self) -> np.ndarray | None:
        """The model's classes that images have, int64, rising; None where the shards' footers do not list labels."""
        try:
            known = [_picture_places(footer) for footer in self.footers]
        except ValueError:
            return None  # said where the shard is read
        labels = [each[2] for each in known if each is not None]
        return np.unique(self.classes(np.concatenate(labels))) if len(labels) == len(known) else None

    def find_outside(self, num_classes: int) -> tuple[str, int, int] | None:
        """(shard, row, label) of the first image whose class is outside of 0 .. num_classes - 1; None without one."""
        for shard, (least, greatest) in enumerate(self.shard_labels):
            if self._are_classes(least, greatest, num_classes):
                continue
            filesystem, _ = filesystem_of(self.uri)
            labels = _read_labels(filesystem, self.shards[shard])
            rows = np.flatnonzero(_outside(self.classes(labels), num_classes))
            if len(rows):  # else the labels between the least and the greatest are not all there
                return self.shards[shard], int(rows[0]), int(labels[rows[0]])
        return None

    def check_labels(self, num_classes: int) -> None:
        """Raises ValueError, naming file and row, where a label's class is outside of 0 .. num_classes - 1."""
        if found := self.find_outside(num_classes):
            shard, row, label = found
            raise ValueError(
                f"label {label} in {shard} row {row} is outside of 0 .. {num_classes - 1}; "
                f"set --model.num-classes to the data's classes (the labels of the split run from "
                f"{self.label_range[0]} to {self.label_range[1]}) or give other shards"
            )

    def _are_classes(self, least: int, greatest: int, num_classes: int) -> bool:
        """Whether every label from the least to the greatest has a class in 0 .. num_classes - 1."""
        if self.label_map is None:
            return least >= 0 and greatest < num_classes
        of_them = self.label_map[max(least, 0) : greatest + 1]
        return least >= 0 and greatest < len(self.label_map) and not _outside(of_them, num_classes).any()


@dataclass(frozen=True, eq=False)
class RowGroup:
    """One row group in memory."""

    first_index: int
    """Index in the split of its first picture."""
    images: list[np.ndarray]
    """Encoded pictures, each uint8 [num_bytes]: views of the column that was read."""
    labels: np.ndarray
    """int64 [rows]: the model's classes."""


@dataclass(frozen=True)
class _Shard:
    """What a shard's footer says."""

    size: int
    footer: bytes
    rows: tuple[int, ...]
    image_column: str
    class_names: tuple[str, ...] | None
    labels: tuple[int, int]


def open_split(uri: str) -> Split:
    """Reads every footer of the shards under `uri`, a glob or a folder (all of its *.parquet, sorted).

    Raises FileNotFoundError where nothing matches, ValueError where a shard cannot be read or has other columns or
    class names, where a prepared set is not as its manifest says, and where the split holds no picture.
    """
    filesystem, path = filesystem_of(uri)
    shards, names = find_shards(filesystem, path, uri)
    with ThreadPoolExecutor(min(32, len(shards))) as pool:
        heads = list(pool.map(functools.partial(_read_head, filesystem), shards))
    _check_alike(shards, heads)
    _check_manifest(filesystem, names, shards, heads)
    places = [(s, g, n) for s, head in enumerate(heads) for g, n in enumerate(head.rows) if n]
    if not places:
        raise ValueError(f"the {len(shards)} Parquet shards under {uri} hold no picture; give other shards")
    shard_of, number, rows = np.array(places, dtype=np.int64).T
    digest = hashlib.sha256()
    for head in heads:
        digest.update(len(head.footer).to_bytes(8, "little") + head.footer)
    filled = [head.labels for head in heads if sum(head.rows)]
    return Split(
        uri=uri,
        shards=tuple(shards),
        group_shard=shard_of,
        group_number=number,
        group_rows=rows,
        group_first=np.cumsum(rows) - rows,
        class_names=heads[0].class_names,
        image_column=heads[0].image_column,
        footers=tuple(head.footer for head in heads),
        digest=digest.hexdigest(),
        label_range=(min(low for low, _ in filled), max(high for _, high in filled)),
        shard_labels=tuple(head.labels for head in heads),
    )


class ShardReader:
    """Reads row groups of a split, each with one range of its shard; used by many threads at once."""

    def __init__(self, split: Split, access: Access = _HERE) -> None:
        """`access`: how what lies on an object store is read."""
        self.split = split
        self._ranges = RangeReader(split.uri, access)

    def read(self, number: int) -> RowGroup:
        """Row group `number` of the split. Raises ValueError, naming the file, where it cannot be read.

        The pictures of shards that say in their footer where each lies are views of the file itself; others are
        copied out of Parquet's pages.
        """
        split = self.split
        shard, first = int(split.group_shard[number]), int(split.group_first[number])
        footer, path = split.footers[shard], split.shards[shard]
        try:
            known = _picture_places(footer)
            if known is None:
                images, labels = self._from_pages(shard, int(split.group_number[number]))
            else:
                row = first - split.first_index(shard)
                images, labels = self._from_places(shard, known[:, row : row + int(split.group_rows[number])])
            classes = self._classes(labels)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ValueError(
                f"row group {split.group_number[number]} of {path} cannot be read ({one_line(error)}); "
                "replace the file by an intact copy"
            ) from error
        return RowGroup(first, images, classes)

    def _classes(self, labels: np.ndarray) -> np.ndarray:
        classes = self.split.classes(labels)
        if self.split.label_map is not None and classes.min(initial=0) < 0:
            raise ValueError(f"label {labels[int(classes.argmin())]} is none of the model's classes")
        return classes

    def _from_places(self, shard: int, rows: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Pictures and labels of the rows whose places in the file these are: int64 [3, rows]."""
        starts, lengths, labels = rows
        begin, end = int(starts[0]), int(starts[-1] + lengths[-1])
        content = self._read(shard, begin, end - begin)
        if len(content) != end - begin:
            raise OSError(f"the file ends before byte {end}")
        bounds = zip((starts - begin).tolist(), (starts - begin + lengths).tolist(), strict=True)
        return [content[low:high] for low, high in bounds], labels.copy()

    def _from_pages(self, shard: int, group: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Pictures and labels of a row group, as Parquet has encoded them."""
        split = self.split
        metadata = _metadata(split.footers[shard])
        begin, end = _extent(metadata.row_group(group))
        part = _Part(self._read(shard, begin, end - begin), begin, split.footers[shard])
        table = pq.ParquetFile(pa.PythonFile(part, mode="r"), metadata=metadata).read_row_group(
            group, columns=[f"{split.image_column}.bytes", "label"], use_threads=False
        )
        images = [view for chunk in table.column(0).chunks for view in _views(chunk)]
        labels = table.column(1)
        if labels.null_count:
            raise pa.ArrowInvalid("it has rows without a label")
        return images, labels.to_numpy().astype(np.int64, copy=False)

    def _read(self, shard: int, start: int, length: int) -> np.ndarray:
        split = self.split
        return self._ranges.read(split.shards[shard], start, length, version=_version(split.footers[shard]))


def read_row_group(split: Split, number: int) -> RowGroup:
    """Reads row group `number` of the split alone, as `ShardReader` does."""
    return ShardReader(split).read(number)


def _check_alike(shards: list[str], heads: list[_Shard]) -> None:
    """Raises ValueError where a shard has another image column or other class names than the first."""
    for shard, head in zip(shards, heads, strict=True):
        if head.image_column != heads[0].image_column:
            raise ValueError(
                f"{shard} has the column {head.image_column}, {shards[0]} has {heads[0].image_column}; "
                "the shards of a split need the same columns"
            )
        # A shard without names beside one that has them is refused too: nothing tells that its labels mean the same.
        if head.class_names != heads[0].class_names:
            theirs, ours = _differing(head.class_names, heads[0].class_names)
            raise ValueError(
                f"{shard} has {theirs}, {shards[0]} has {ours}; the shards of a split need the same class names in the "
                "same order, or none at all"
            )


def _differing(*both: tuple[str, ...] | None) -> list[str]:
    """What of two differing lists of class names differs, in words for each."""
    one, other = both
    if one is None or other is None or len(one) != len(other):
        return ["no class names" if names is None else f"{len(names)} class names" for names in both]
    label = next(place for place, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
    return [f"the name {one[label]!r} for label {label}", repr(other[label])]


def _check_manifest(filesystem: pafs.FileSystem, names: str, shards: list[str], heads: list[_Shard]) -> None:
    found = [
        Found(
            path=shard,
            bytes=head.size,
            pictures=sum(head.rows),
            footer_sha256=hashlib.sha256(head.footer).hexdigest(),
        )
        for shard, head in zip(shards, heads, strict=True)
    ]
    try:
        check_opened(filesystem, names, found)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"the folder of {shards[0]} cannot be read ({one_line(error)}); check the access") from error


def _read_head(filesystem: pafs.FileSystem, shard: str) -> _Shard:
    """Reads and checks one shard's footer."""
    try:
        size, footer = _read_footer(filesystem, shard)  # one read of the tail is enough, on S3 too
        metadata = _metadata(footer)
        schema = metadata.schema.to_arrow_schema()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{shard} cannot be read as Parquet ({one_line(error)}); replace it by an intact copy"
        ) from error
    column = _check_schema(shard, schema)
    rows = tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
    labels = _label_statistics(metadata)
    if labels is None:
        values = _read_labels(filesystem, shard)
        labels = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    return _Shard(size, footer, rows, column, _class_names(schema), labels)


def _read_footer(filesystem: pafs.FileSystem, shard: str) -> tuple[int, bytes]:
    """(size of the file, footer)"""
    with filesystem.open_input_file(shard) as file:
        size = file.size()
        tail = file.read_at(min(size, _TAIL_BYTES), max(0, size - _TAIL_BYTES))
        if len(tail) < 12 or tail[-4:] != b"PAR1":
            raise pa.ArrowInvalid(f"no Parquet footer in its {size} bytes")
        length = int.from_bytes(tail[-8:-4], "little")
        if length + 12 > size:
            raise pa.ArrowInvalid(f"a footer of {length} bytes in a file of {size} bytes")
        if length + 8 > len(tail):
            tail = file.read_at(length + 8, size - length - 8)
        return size, tail[-8 - length : -8]


def _check_schema(shard: str, schema: pa.Schema) -> str:
    """The name of the image column. Raises ValueError where the columns are not those of the layout."""
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    for name in _IMAGE_COLUMNS:
        if name in schema.names and schema.field(name).type == image:
            if "label" in schema.names and schema.field("label").type == pa.int64():
                return name
            break
    found = ", ".join(f"{field.name}: {field.type}" for field in schema)
    raise ValueError(
        f"{shard} has the columns ({found}); needed are image or img: {image} and label: int64; "
        "write the shards with jobs/prepare_imagenet.py or jobs/prepare_cifar.py"
    )


def _label_statistics(metadata: pq.FileMetaData) -> tuple[int, int] | None:
    """Least and greatest label by the statistics of the row groups, or None where one has none."""
    bounds: list[tuple[int, int]] = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if not group.num_rows:
            continue
        columns = (group.column(place) for place in range(group.num_columns))
        statistics = next(column.statistics for column in columns if column.path_in_schema == "label")
        if statistics is None or not statistics.has_min_max:
            return None
        bounds.append((statistics.min, statistics.max))
    return (min(low for low, _ in bounds), max(high for _, high in bounds)) if bounds else (0, 0)


def _look_up(label_map: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What the map has for each label, int64; -1 for labels outside of it."""
    known = (labels >= 0) & (labels < len(label_map))
    found = np.full(len(labels), -1, np.int64)
    found[known] = label_map[labels[known]]
    return found


def _outside(classes: np.ndarray, num_classes: int) -> np.ndarray:
    return (classes < 0) | (classes >= num_classes)


def _read_labels(filesystem: pafs.FileSystem, shard: str) -> np.ndarray:
    with filesystem.open_input_file(shard) as file:
        return pq.ParquetFile(file).read(columns=["label"]).column(0).to_numpy()


def _class_names(schema: pa.Schema) -> tuple[str, ...] | None:
    """Class names of the `huggingface` metadata, or None where it has none that can be read."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    if isinstance(names, dict):  # older writers number the names
        names = [names[key] for key in sorted(names, key=int)]
    return tuple(str(name) for name in names)


class _Part(io.RawIOBase):
    """A file of which only one part is at hand, and its footer."""

    def __init__(self, content: np.ndarray, begin: int, footer: bytes) -> None:
        """`content`: uint8, from byte `begin` of the file on."""
        self._content, self._begin = content, begin
        self._tail = footer + len(footer).to_bytes(4, "little") + b"PAR1"
        self._size = begin + len(content) + len(self._tail)
        self._place = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        return self._place

    def read(self, size: int = -1) -> memoryview | bytes:
        start = self._place - self._begin
        stop = start + (size if size >= 0 else self._size)
        self._place += max(0, min(stop, len(self._content)) - start)
        return self._content.data[max(0, start) : stop]


@functools.cache
def _metadata(footer: bytes) -> pq.FileMetaData:
    """What a footer says. It alone makes a valid empty file."""
    length = len(footer).to_bytes(4, "little")
    return pq.read_metadata(pa.BufferReader(b"PAR1" + footer + length + b"PAR1"))


@functools.cache
def _picture_places(footer: bytes) -> np.ndarray | None:
    """int64 [3, rows]: each picture's offset in the shard, its bytes and its label, where the footer tells them."""
    return places.decode(_metadata(footer).metadata)


@functools.cache
def _version(footer: bytes) -> str:
    return hashlib.sha256(footer).hexdigest()


def _extent(group: pq.RowGroupMetaData) -> tuple[int, int]:
    """The bytes of a row group in its file: first, last + 1."""
    columns = [group.column(place) for place in range(group.num_columns)]
    starts = [
        min(column.data_page_offset, column.dictionary_page_offset or column.data_page_offset) for column in columns
    ]
    return min(starts), max(start + column.total_compressed_size for start, column in zip(starts, columns, strict=True))


def _views(chunk: pa.StructArray) -> list[np.ndarray]:
    """The values of the struct's `bytes` as uint8 views without a copy; of no bytes where a value is missing."""
    values = chunk.field(0)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    _, offsets_buffer, data_buffer = values.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[values.offset : values.offset + len(values) + 1].tolist()
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.empty(0, np.uint8)
    views = [data[a:b] for a, b in itertools.pairwise(offsets)]
    if chunk.null_count or values.null_count:
        valid = chunk.is_valid().to_numpy(False) & values.is_valid().to_numpy(False)
        views = [view if ok else view[:0] for view, ok in zip(views, valid, strict=True)]
    return views
