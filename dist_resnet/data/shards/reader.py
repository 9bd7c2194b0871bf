"""Reads row groups of a split, each with one byte range of its shard."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dist_resnet.data.shards.column_values import encoded_images
from dist_resnet.data.shards.footers import (
    Part,
    columns_of,
    extent_of,
    image_ranges,
    metadata_of,
    numbers_of,
    version_of,
)
from dist_resnet.data.shards.split import Split
from dist_resnet.storage.ranges import Access, RangeReader
from dist_resnet.wording import one_line

_HERE = Access()
_NO_BYTES = np.empty(0, np.uint8)


@dataclass(frozen=True, eq=False)
class RowGroup:
    """One row group in memory."""

    first_index: int
    """Index of its first image in the split."""
    images: list[np.ndarray]
    """Encoded images, each uint8 [num_bytes]: views of one buffer."""
    labels: np.ndarray
    """int64 [rows]: the model's classes."""


class ShardReader:
    """Reads row groups of a split, each with one range of its shard; used by many threads at once."""

    def __init__(self, split: Split, access: Access = _HERE) -> None:
        """`access`: how remote shards are read."""
        self.split = split
        self._ranges = RangeReader(split.uri, access)

    def read(self, number: int) -> RowGroup:
        """Row group `number` of the split. Raises ValueError, naming the file, if it cannot be read.

        If the footer has the byte range of each image, the images are views of the file itself; otherwise they are
        copied from Parquet's pages.
        """
        split = self.split
        shard, first = int(split.group_shard[number]), int(split.group_first[number])
        footer, path = split.footers[shard], split.shards[shard]
        try:
            known = image_ranges(footer)
            if known is None:
                images, labels = self._from_pages(shard, int(split.group_number[number]))
            else:
                row = first - split.first_index(shard)
                images, labels = self._from_ranges(shard, known[:, row : row + int(split.group_rows[number])])
            classes = self._classes(labels)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ValueError(
                f"row group {split.group_number[number]} of {path} cannot be read ({one_line(error)}); "
                "replace the file with an intact copy"
            ) from error
        return RowGroup(first, images, classes)

    def _classes(self, labels: np.ndarray) -> np.ndarray:
        classes = self.split.classes(labels)
        if self.split.label_map is not None and classes.min(initial=0) < 0:
            raise ValueError(f"label {labels[int(classes.argmin())]} is not one of the model's classes")
        return classes

    def _from_ranges(self, shard: int, rows: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Images and labels of rows; `rows`: int64 [3, rows], their offsets, lengths and labels."""
        starts, lengths, labels = rows
        begin, end = int(starts[0]), int(starts[-1] + lengths[-1])
        content = self._read(shard, begin, end - begin)
        if len(content) != end - begin:
            raise OSError(f"the file ends before byte {end}")
        bounds = zip((starts - begin).tolist(), (starts - begin + lengths).tolist(), strict=True)
        return [content[low:high] for low, high in bounds], labels.copy()

    def _from_pages(self, shard: int, group: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Images and labels of a row group, decoded from Parquet's pages."""
        split = self.split
        metadata = metadata_of(split.footers[shard])
        columns = columns_of(split.footers[shard], split.label_column)
        if columns.bytes is None:
            raise ValueError(f"its column {columns.image} has paths and no bytes")
        wanted = [columns.bytes, columns.label]
        begin, end = extent_of(metadata.row_group(group), wanted)
        part = Part(self._read(shard, begin, end - begin), begin, split.footers[shard])
        table = pq.ParquetFile(pa.PythonFile(part, mode="r"), metadata=metadata).read_row_group(
            group, columns=wanted, use_threads=False
        )
        images = [_NO_BYTES if image is None else image for image in encoded_images(table[columns.image])]
        return images, numbers_of(table[columns.label], columns, split.class_names)

    def _read(self, shard: int, start: int, length: int) -> np.ndarray:
        split = self.split
        return self._ranges.read(split.shards[shard], start, length, version=version_of(split.footers[shard]))
