"""Reads images and labels from the columns of a shard, for every supported type."""

import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from dist_resnet.data.shards.column_types import field_type, is_text


class LabelError(ValueError):
    """A row has no usable label; `reason` says what it has instead."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"row {row} {reason}")
        self.row, self.reason = row, reason


def encoded_images(column: pa.ChunkedArray) -> list[np.ndarray | None]:
    """Each row's encoded image, uint8 [num_bytes], or None if it is missing.

    `column`: a struct with `bytes`, the bytes themselves, or only paths; plain bytes are not copied.
    """
    return [image for chunk in column.chunks for image in _views(chunk)]


def image_path(value: pa.Scalar) -> str | None:
    """The path in one value of an image column, if it has one."""
    row = value.as_py()
    path = row.get("path") if isinstance(row, dict) else row
    return path if isinstance(path, str) and path else None


def label_numbers(column: pa.ChunkedArray) -> np.ndarray:
    """The labels of a column of numbers, int64 [N]. Raises LabelError for the first that is missing or no integer."""
    if pa.types.is_decimal(column.type):  # pyarrow refuses whole numbers of the narrow decimal types
        column = column.cast(pa.decimal256(76, column.type.scale))
    try:
        numbers = column.cast(pa.int64())
    except pa.ArrowInvalid:
        raise _first_not_whole(column) from None
    _check_present(numbers)
    return numbers.to_numpy()


def label_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The labels of a column of text, as large strings. Raises LabelError for the first that is missing or no UTF-8."""
    try:
        texts = column.cast(pa.large_string())
    except pa.ArrowInvalid:
        raise _first_not_text(column) from None
    _check_present(texts)
    if (row := texts.index("").as_py()) >= 0:
        raise LabelError(row, "has an empty label")
    return texts


def class_of_texts(texts: pa.ChunkedArray, class_names: Sequence[str]) -> np.ndarray:
    """The index in `class_names` of each text, int64 [N]. Raises LabelError for the first that is not among them."""
    number_of = {name: number for number, name in enumerate(class_names)}
    numbers = np.array([number_of.get(text, -1) for text in texts.to_pylist()], np.int64)
    if len(unknown := np.flatnonzero(numbers < 0)):
        row = int(unknown[0])
        raise LabelError(row, f"has the label {texts[row].as_py()!r}, which is not one of the classes")
    return numbers


def _check_present(labels: pa.ChunkedArray) -> None:
    if labels.null_count:
        raise LabelError(int(np.flatnonzero(labels.is_null().to_numpy())[0]), "has no label")


def _first_not_whole(column: pa.ChunkedArray) -> LabelError:
    """The error for the first label that is not an int64."""
    for row, value in enumerate(column.to_pylist()):
        if value is None:
            return LabelError(row, "has no label")
        if value != value or value % 1 or not -(1 << 63) <= value < 1 << 63:
            return LabelError(row, f"has the label {value}, which is not a 64-bit integer")
    raise AssertionError("every label is an integer")


def _first_not_text(column: pa.ChunkedArray) -> LabelError:
    """The error for the first label whose bytes are not text."""
    for row, value in enumerate(column.to_pylist()):
        try:
            bytes(value or b"").decode()
        except UnicodeDecodeError:
            return LabelError(row, f"has the label {value[:16]!r}, which is not text in UTF-8")
    raise AssertionError("every label is text")


def _views(chunk: pa.Array) -> list[np.ndarray | None]:
    """The bytes of each row as uint8 views of the array."""
    values = chunk
    if pa.types.is_struct(chunk.type):
        values = chunk.field("bytes") if field_type(chunk.type, "bytes") is not None else pa.nulls(len(chunk))
    elif is_text(chunk.type):
        values = pa.nulls(len(chunk))
    if values.type not in (pa.binary(), pa.large_binary()):
        values = values.cast(pa.large_binary())
    if not len(values):
        return []
    _, offsets_buffer, data_buffer = values.buffers()
    width = np.dtype(np.int32 if values.type == pa.binary() else np.int64)
    offsets = np.frombuffer(offsets_buffer, width, len(values) + 1, values.offset * width.itemsize).tolist()
    data = np.empty(0, np.uint8) if data_buffer is None else np.frombuffer(data_buffer, np.uint8)
    views: list[np.ndarray | None] = [data[low:high] for low, high in itertools.pairwise(offsets)]
    if chunk.null_count or values.null_count:
        valid = chunk.is_valid().to_numpy(False) & values.is_valid().to_numpy(False)
        views = [view if ok else None for view, ok in zip(views, valid, strict=True)]
    return views
