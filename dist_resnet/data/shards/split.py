"""Parquet shards of encoded images and labels as one indexed split, on a disk or an object store.

`Split` has plain values only, so it can be pickled to workers. Images are numbered 0 .. num_images - 1 through the
shards in listing order.
"""

import dataclasses
import functools
import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from dist_resnet.data.shards.columns import Columns
from dist_resnet.data.shards.footers import (
    Head,
    columns_of,
    image_ranges,
    numbers_of,
    read_column,
    read_head,
)
from dist_resnet.data.shards.globs import find_shards
from dist_resnet.data.shards.manifest import Found, check_opened
from dist_resnet.storage.uri import open_uri
from dist_resnet.wording import one_line

logger = logging.getLogger(__name__)

_READERS = 32


@dataclass(frozen=True, eq=False)
class Split:
    """The index of a split, without open files."""

    uri: str
    """The glob or folder that was opened."""
    shards: tuple[str, ...]
    """Paths of the shards in their file system, sorted; shards without rows are left out."""
    group_shard: np.ndarray
    """int64 [R]: the shard of row group r."""
    group_number: np.ndarray
    """int64 [R]: its number within that shard."""
    group_rows: np.ndarray
    """int64 [R]: its images."""
    group_first: np.ndarray
    """int64 [R]: the index of its first image."""
    class_names: tuple[str, ...] | None
    """Names of the files' labels, in their order, from the schema's `huggingface` metadata, with possible duplicates;
    for text labels the sorted labels."""
    label_column: str
    """The shards' column of labels."""
    footers: tuple[bytes, ...]
    """The shards' footers."""
    digest: str
    """sha256 (hex) over all shards' footers in listing order; independent of file names and folders."""
    label_range: tuple[int, int]
    """Least and greatest label, as the files have them; for text, the index in the class names."""
    shard_labels: tuple[tuple[int, int], ...]
    """Least and greatest label of each shard, as the files have them."""
    label_map: np.ndarray | None = None
    """int64 [labels]: the model's class for each label of the files, -1 if it has none; None if they are equal. It is
    applied to every label that is read."""
    labels: np.ndarray | None = None
    """int32 [num_images]: the model's class of each image; None until `with_labels` reads them."""

    @property
    def num_images(self) -> int:
        """Images in the split."""
        return int(self.group_rows.sum())

    @property
    def num_row_groups(self) -> int:
        """Row groups in the split."""
        return len(self.group_rows)

    def locate(self, index: int) -> tuple[str, int]:
        """The shard of image `index`, and its row there. Raises IndexError outside the split."""
        if not 0 <= index < self.num_images:
            raise IndexError(f"image {index} is not in 0 .. {self.num_images - 1}")
        shard = int(self.group_shard[np.searchsorted(self.group_first, index, side="right") - 1])
        return self.shards[shard], index - self.first_index(shard)

    def first_index(self, shard: int) -> int:
        """The index of the first image of a shard."""
        return int(self.group_first[np.searchsorted(self.group_shard, shard)])

    def mapped(self, label_map: np.ndarray | None) -> "Split":
        """The split with its present labels mapped to the model's classes; `label_map`: int64, as the field."""
        if label_map is not None and self.label_map is not None:
            label_map = _look_up(label_map, self.label_map)
        return self if label_map is None else dataclasses.replace(self, label_map=label_map, labels=None)

    def with_labels(self) -> "Split":
        """The split with its `labels`: from the footers of prepared shards, otherwise from the shards' column.

        Raises ValueError, naming the file, if a column cannot be read.
        """
        if self.labels is not None:
            return self
        with ThreadPoolExecutor(min(_READERS, len(self.shards))) as pool:
            found = np.concatenate(list(pool.map(self._read_labels, range(len(self.shards)))))
        return dataclasses.replace(self, labels=self.classes(found).astype(np.int32))

    def classes(self, labels: np.ndarray) -> np.ndarray:
        """The model's classes of the files' labels, int64; -1 for a label that the map does not have."""
        return labels if self.label_map is None else _look_up(self.label_map, labels)

    def classes_present(self) -> np.ndarray | None:
        """The model's classes that images have, int64, ascending; None if the shards' footers do not list labels."""
        try:
            known = [image_ranges(footer) for footer in self.footers]
        except ValueError:
            return None  # reading the shard reports it
        labels = [each[2] for each in known if each is not None]
        return np.unique(self.classes(np.concatenate(labels))) if len(labels) == len(known) else None

    def find_outside(self, num_classes: int) -> tuple[str, int, int] | None:
        """(shard, row, label) of the first image whose class is not in 0 .. num_classes - 1; None without one."""
        for shard, (least, greatest) in enumerate(self.shard_labels):
            if self._are_classes(least, greatest, num_classes):
                continue
            labels = self._read_labels(shard)
            rows = np.flatnonzero(_outside(self.classes(labels), num_classes))
            if len(rows):  # otherwise no image has a label that is outside
                return self.shards[shard], int(rows[0]), int(labels[rows[0]])
        return None

    def check_labels(self, num_classes: int) -> None:
        """Raises ValueError, naming file and row, if a label's class is not in 0 .. num_classes - 1."""
        if found := self.find_outside(num_classes):
            shard, row, label = found
            outside = f"label {label} in {shard} row {row} is not in 0 .. {num_classes - 1}; "
            if label < 0:
                raise ValueError(f"{outside}a label below 0 means no label; give every image a label")
            if self.label_range == (1, num_classes):
                raise ValueError(f"{outside}labels must start at 0, these start at 1: subtract 1 from every label")
            raise ValueError(
                f"{outside}set --model.num-classes to the number of classes (the labels of the split run from "
                f"{self.label_range[0]} to {self.label_range[1]}) or give other shards"
            )

    def _read_labels(self, shard: int) -> np.ndarray:
        """int64 [rows]: the labels of a shard, as the files have them."""
        known = image_ranges(self.footers[shard])
        if known is not None:
            return known[2]
        filesystem, _ = open_uri(self.uri)
        try:
            column = read_column(filesystem, self.shards[shard], self.label_column)
            return numbers_of(column, columns_of(self.footers[shard], self.label_column), self.class_names)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(
                f"the labels of {self.shards[shard]} cannot be read ({one_line(error)}); replace it with an intact copy"
            ) from error

    def _are_classes(self, least: int, greatest: int, num_classes: int) -> bool:
        """Whether every label from the least to the greatest has a class in 0 .. num_classes - 1."""
        if self.label_map is None:
            return least >= 0 and greatest < num_classes
        of_them = self.label_map[max(least, 0) : greatest + 1]
        return least >= 0 and greatest < len(self.label_map) and not _outside(of_them, num_classes).any()


def open_split(uri: str, *, label_column: str | None = None, allow_paths: bool = False) -> Split:
    """The split of the shards under `uri`, a glob or a folder (all of its *.parquet, sorted); reads every footer.

    `label_column` chooses among several columns of labels; `allow_paths` accepts images that have only paths. Raises
    FileNotFoundError if nothing matches; UnlabeledError, naming file and row, if a label is missing; ValueError if an
    image has no bytes, a shard cannot be read or has other columns or class names than the first, a prepared set
    differs from its manifest, or the split has no image.
    """
    filesystem, path = open_uri(uri)
    shards, names = find_shards(filesystem, path, uri)
    read = functools.partial(read_head, filesystem, label_column=label_column, allow_paths=allow_paths)
    with ThreadPoolExecutor(min(_READERS, len(shards))) as pool:
        heads = list(pool.map(read, shards))
    _check_manifest(filesystem, names, shards, heads)
    digest = hashlib.sha256()
    for head in heads:
        digest.update(len(head.footer).to_bytes(8, "little") + head.footer)
    # Shards without rows, which Spark writes for empty partitions, may have any columns.
    filled = [(shard, head) for shard, head in zip(shards, heads, strict=True) if sum(head.rows)]
    if not filled:
        raise ValueError(f"the {len(shards)} Parquet shards under {uri} have no rows; give other shards")
    shards, heads = map(list, zip(*filled, strict=True))
    _check_alike(shards, heads)
    groups = [(s, g, n) for s, head in enumerate(heads) for g, n in enumerate(head.rows) if n]
    shard_of, number, rows = np.array(groups, dtype=np.int64).T
    columns, class_names = heads[0].columns, _class_names(heads)
    ranges = [_label_range(head, class_names) for head in heads]
    _log_labels(uri, columns, class_names)
    return Split(
        uri=uri,
        shards=tuple(shards),
        group_shard=shard_of,
        group_number=number,
        group_rows=rows,
        group_first=np.cumsum(rows) - rows,
        class_names=class_names,
        label_column=columns.label,
        footers=tuple(head.footer for head in heads),
        digest=digest.hexdigest(),
        label_range=(min(low for low, _ in ranges), max(high for _, high in ranges)),
        shard_labels=tuple(ranges),
    )


def _class_names(heads: list[Head]) -> tuple[str, ...] | None:
    """The class names of a split: those of the metadata, or for text labels the sorted labels of all shards."""
    if not heads[0].columns.text_labels:
        return heads[0].columns.class_names
    return tuple(sorted({name for head in heads for name in head.names}))


def _label_range(head: Head, class_names: tuple[str, ...] | None) -> tuple[int, int]:
    if head.names and class_names is not None:
        return class_names.index(head.names[0]), class_names.index(head.names[-1])
    return head.label_range or (0, 0)


def _log_labels(uri: str, columns: Columns, class_names: tuple[str, ...] | None) -> None:
    """Logs what was chosen automatically: a label column with another name, or the order of text labels."""
    if columns.text_labels and class_names is not None:
        some = ", ".join(class_names[:3]) + (", ..." if len(class_names) > 3 else "")
        logger.info(
            "the labels of %s are text in the column %s: %d classes, numbered by sorted name, %s",
            uri,
            columns.label,
            len(class_names),
            some,
        )
    elif columns.label != "label":
        logger.info("the labels of %s are taken from the column %s", uri, columns.label)


def _check_alike(shards: list[str], heads: list[Head]) -> None:
    """Raises ValueError if a shard has other columns or class names than the first; widths of types may differ."""
    first = heads[0].columns
    for shard, head in zip(shards, heads, strict=True):
        for ours, theirs in ((first.image, head.columns.image), (first.label, head.columns.label)):
            if theirs != ours:
                raise ValueError(
                    f"{shard} has the column {theirs}, {shards[0]} has {ours}; "
                    "the shards of a split need the same columns"
                )
        if head.columns.text_labels != first.text_labels:
            theirs, ours = ("text" if one.text_labels else "numbers" for one in (head.columns, first))
            raise ValueError(
                f"{shard} has {theirs} in the column {first.label}, {shards[0]} has {ours}; the labels of a split must "
                "be all numbers or all text"
            )
        # Also if only one of them has names: the labels may then mean different classes.
        if head.columns.class_names != first.class_names:
            theirs, ours = _differing(head.columns.class_names, first.class_names)
            raise ValueError(
                f"{shard} has {theirs}, {shards[0]} has {ours}; the shards of a split need the same class names in the "
                "same order, or none at all"
            )


def _differing(*both: tuple[str, ...] | None) -> list[str]:
    """The difference between two lists of class names, in words for each."""
    one, other = both
    if one is None or other is None or len(one) != len(other):
        return ["no class names" if names is None else f"{len(names)} class names" for names in both]
    label = next(number for number, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
    return [f"the name {one[label]!r} for label {label}", repr(other[label])]


def _check_manifest(filesystem: pafs.FileSystem, names: str, shards: list[str], heads: list[Head]) -> None:
    found = [
        Found(
            path=shard,
            bytes=head.size,
            images=sum(head.rows),
            footer_sha256=hashlib.sha256(head.footer).hexdigest(),
        )
        for shard, head in zip(shards, heads, strict=True)
    ]
    try:
        check_opened(filesystem, names, found)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"the folder of {shards[0]} cannot be read ({one_line(error)}); check the access") from error


def _look_up(label_map: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The map's entry for each label, int64; -1 for labels that it does not have."""
    known = (labels >= 0) & (labels < len(label_map))
    found = np.full(len(labels), -1, np.int64)
    found[known] = label_map[labels[known]]
    return found


def _outside(classes: np.ndarray, num_classes: int) -> np.ndarray:
    return (classes < 0) | (classes >= num_classes)
