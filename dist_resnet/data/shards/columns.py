"""Which columns of a Parquet shard hold its images and its labels, and their values, whatever types hold them.

What can be read without loss is accepted, fields of a struct are found by their names, and the rest is refused by
column and type. The table in docs/data-format.md lists the forms.
"""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dist_resnet.data.shards import hive

_IMAGE_NAMES = ("image", "img")
_LABEL_NAME = re.compile(
    r"(.*[_ .-])?(labels?|class|classes|category|categories|targets?|cls)([_ .-]?(id|ids|idx|index|names?))?|y"
)
# No encoded image is as small: a GIF of one pixel has 26 bytes, a PNG 67. Less than this a row is soon read, too.
_LEAST_BYTES_A_ROW = 64
_CHOOSE = "--data.label-column, or --label-column of jobs/prepare_imagenet.py and jobs/evaluate.py"


@dataclass(frozen=True)
class Columns:
    """Where a shard has its images and labels; a field of a struct is named as Parquet does, `image.bytes`."""

    image: str
    """The column of images."""
    bytes: str | None
    """Where their encoded bytes are; None if the shard has only paths."""
    path: str | None
    """Where their paths are, if there are any."""
    label: str
    """The column of labels."""
    text_labels: bool
    """Whether the labels are the classes' names and not their numbers."""
    class_names: tuple[str, ...] | None
    """Names of the numbers, from the schema's `huggingface` metadata; they may hold duplicates."""


NO_COLUMNS = Columns("", None, None, "", False, None)
"""Those of a shard without a row, in which nothing has to be found."""


class UnlabeledError(ValueError):
    """A shard or some of its rows have no label."""


class LabelError(ValueError):
    """What a row has in place of a label."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"row {row} {reason}")
        self.row, self.reason = row, reason


def find_columns(shard: str, schema: pa.Schema, label_column: str | None = None) -> Columns:
    """The columns of images and labels by their names and types; `label_column` chooses among several.

    Raises UnlabeledError if no column is named as labels are, ValueError if one is of a type that holds none, or if
    there are several to choose from; both name the shard.
    """
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise ValueError(f"{shard} has two columns named {twice[0]}; rename or remove one")
    features = _features(schema)
    label = _find_label(shard, schema, features, label_column)
    image = _find_image(shard, schema, features, label)
    inside, path = _parts(shard, schema.field(image))
    text = _is_text(schema.field(label).type) or _is_bytes(schema.field(label).type)
    return Columns(image, inside, path, label, text, None if text else _class_names(features, label))


def encoded_images(column: pa.ChunkedArray) -> list[np.ndarray | None]:
    """Each row's encoded image, uint8 [num_bytes], or None if it is missing.

    `column`: as read, a struct with `bytes`, the bytes themselves, or only paths; not copied if it is plain.
    """
    return [image for chunk in column.chunks for image in _views(chunk)]


def image_path(value: pa.Scalar) -> str | None:
    """The path in one value of an image column, if it has one."""
    row = value.as_py()
    path = row.get("path") if isinstance(row, dict) else row
    return path if isinstance(path, str) and path else None


def label_numbers(column: pa.ChunkedArray) -> np.ndarray:
    """The labels of a column of numbers, int64 [N]. Raises LabelError for the first that is missing or not whole."""
    try:
        numbers = column.cast(pa.int64())
    except pa.ArrowInvalid:
        raise _first_not_whole(column) from None
    _check_present(numbers)
    return numbers.to_numpy()


def label_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The labels of a column of text, as large strings. Raises LabelError for the first that is missing."""
    texts = column.cast(pa.large_string())
    _check_present(texts)
    if (row := texts.index("").as_py()) >= 0:
        raise LabelError(row, "has an empty label")
    return texts


def class_of_texts(texts: pa.ChunkedArray, class_names: Sequence[str]) -> np.ndarray:
    """The place in `class_names` of each text, int64 [N]. Raises LabelError for the first that has none."""
    place_of = {name: place for place, name in enumerate(class_names)}
    places = np.array([place_of.get(text, -1) for text in texts.to_pylist()], np.int64)
    if len(unknown := np.flatnonzero(places < 0)):
        row = int(unknown[0])
        raise LabelError(row, f"has the label {texts[row].as_py()!r}, which is none of the classes")
    return places


def label_statistics(metadata: pq.FileMetaData, columns: Columns) -> tuple[int, int] | None:
    """Least and greatest label by the statistics of the row groups; None if only the labels themselves can tell."""
    if not pa.types.is_integer(metadata.schema.to_arrow_schema().field(columns.label).type):
        return None
    bounds: list[tuple[int, int]] = []
    for group in _filled_groups(metadata):
        statistics = _chunk(group, columns.label).statistics
        if statistics is None or not statistics.has_min_max or not statistics.has_null_count or statistics.null_count:
            return None
        bounds.append((statistics.min, statistics.max))
    least, greatest = (min(low for low, _ in bounds), max(high for _, high in bounds)) if bounds else (0, 0)
    return (least, greatest) if greatest < 1 << 63 else None


def may_lack_bytes(metadata: pq.FileMetaData, columns: Columns) -> list[int]:
    """The row groups with an image that has no bytes, or too small for so many images, by what the footer says.

    Images of no bytes among large ones are not found: only reading all of them would tell.
    """
    groups = ((number, metadata.row_group(number)) for number in range(metadata.num_row_groups))
    return [
        number
        for number, group in groups
        if group.num_rows and (columns.bytes is None or _may_lack_bytes(_chunk(group, columns.bytes), group.num_rows))
    ]


def _may_lack_bytes(chunk: pq.ColumnChunkMetaData, rows: int) -> bool:
    """Whether a row of a column chunk may have no bytes; reading the chunk costs little, or surely finds one."""
    statistics = chunk.statistics
    if statistics is not None and statistics.has_null_count and statistics.null_count:
        return True
    if statistics is not None and statistics.has_null_count and statistics.has_min_max:
        return statistics.min == b""
    return chunk.total_uncompressed_size <= _LEAST_BYTES_A_ROW * rows


def _filled_groups(metadata: pq.FileMetaData) -> list[pq.RowGroupMetaData]:
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    return [group for group in groups if group.num_rows]


def _chunk(group: pq.RowGroupMetaData, path: str) -> pq.ColumnChunkMetaData:
    chunks = (group.column(place) for place in range(group.num_columns))
    return next(chunk for chunk in chunks if chunk.path_in_schema == path)


def _features(schema: pa.Schema) -> dict[str, dict]:
    """What the `huggingface` metadata says of each column; nothing if it cannot be read."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _class_names(features: dict[str, dict], label: str) -> tuple[str, ...] | None:
    names = features.get(label, {}).get("names")
    if isinstance(names, dict):  # older writers number the names
        names = [names.get(str(number)) for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int) for name in names):
        return None  # of a class without a name, none of the others is certain
    return tuple(str(name) for name in names)


def _marked(features: dict[str, dict], schema: pa.Schema, kind: str) -> list[str]:
    return [name for name in schema.names if features.get(name, {}).get("_type") == kind]


def _find_label(shard: str, schema: pa.Schema, features: dict[str, dict], wanted: str | None) -> str:
    name = wanted or _only_label(shard, schema, features)
    if name not in schema.names:
        raise ValueError(f"{shard} has no column {name}, it has {_listed(schema)}; choose one of them by {_CHOOSE}")
    kind = schema.field(name).type
    if not (_is_number(kind) or _is_text(kind) or _is_bytes(kind)):
        raise ValueError(
            f"{shard} has the column {name} of type {kind}, which holds no labels; needed are numbers or text, one for "
            f"each image; convert it, or choose another column by {_CHOOSE}"
        )
    return name


def _only_label(shard: str, schema: pa.Schema, features: dict[str, dict]) -> str:
    """`label`, or the one column that is marked or named as labels are."""
    if "label" in schema.names:
        return "label"
    named = [name for name in schema.names if _LABEL_NAME.fullmatch(name.lower()) and name not in _IMAGE_NAMES]
    found = [name for name in schema.names if name in {*named, *_marked(features, schema, "ClassLabel")}]
    if len(found) > 1:
        raise ValueError(f"{shard} has several columns of labels, {', '.join(found)}; choose one by {_CHOOSE}")
    if not found:
        way_out = hive.conversion(shard.rpartition("/")[0])
        raise UnlabeledError(
            f"{shard} has no column that is named as labels are, such as label, it has {_listed(schema)}; "
            + (way_out or f"if one of them holds the labels, choose it by {_CHOOSE}")
        )
    return found[0]


def _find_image(shard: str, schema: pa.Schema, features: dict[str, dict], label: str) -> str:
    """`image` or `img`, or the one column that is marked as images or holds bytes."""
    others = [name for name in schema.names if name != label]
    for name in _IMAGE_NAMES:
        if name in others:
            return name
    marked = [name for name in _marked(features, schema, "Image") if name in others]
    found = marked or [name for name in others if _may_hold_images(schema.field(name).type)]
    if len(found) > 1:
        raise ValueError(
            f"{shard} has several columns that may hold the images, {', '.join(found)}; rename the right one to image"
        )
    if not found:
        raise ValueError(
            f"{shard} has no column of images, it has {_listed(schema)}; needed is image, of binary or a struct with "
            "binary bytes; write the shards with jobs/prepare_imagenet.py or jobs/prepare_cifar.py"
        )
    return found[0]


def _may_hold_images(kind: pa.DataType) -> bool:
    return _is_bytes(kind) or (pa.types.is_struct(kind) and _field_type(kind, "bytes") is not None)


def _parts(shard: str, field: pa.Field) -> tuple[str | None, str | None]:
    """Where an image column has bytes and paths. Raises ValueError if its type holds neither."""
    kind, name = field.type, field.name
    if _is_bytes(kind):
        return name, None
    if _is_text(kind):
        return None, name
    inside, path = (_field_type(kind, part) for part in ("bytes", "path")) if pa.types.is_struct(kind) else (None, None)
    has_bytes, has_path = inside is not None and _is_bytes(inside), path is not None and _is_text(path)
    other = inside is not None and not has_bytes and not pa.types.is_null(inside)
    if other or not (has_bytes or has_path):
        raise ValueError(
            f"{shard} has the column {name} of type {kind}, which holds no encoded images; needed is binary, or a "
            "struct with a field bytes of binary; write the shards with jobs/prepare_imagenet.py"
        )
    return f"{name}.bytes" if has_bytes else None, f"{name}.path" if has_path else None


def _field_type(kind: pa.StructType, name: str) -> pa.DataType | None:
    place = kind.get_field_index(name)
    return None if place < 0 else kind.field(place).type


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of a dictionary's values, or the type itself."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_bytes(kind: pa.DataType) -> bool:
    kind, types = _plain(kind), pa.types
    return any(one(kind) for one in (types.is_binary, types.is_large_binary, types.is_binary_view)) or (
        types.is_fixed_size_binary(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    kind, types = _plain(kind), pa.types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_number(kind: pa.DataType) -> bool:
    kind, types = _plain(kind), pa.types
    numbers = (types.is_integer, types.is_boolean, types.is_floating, types.is_decimal)
    return any(one(kind) for one in numbers) or types.is_null(kind)  # of type null are labels that are all missing


def _listed(schema: pa.Schema) -> str:
    return "the columns " + ", ".join(f"{field.name}: {field.type}" for field in schema)


def _check_present(labels: pa.ChunkedArray) -> None:
    if labels.null_count:
        raise LabelError(int(np.flatnonzero(labels.is_null().to_numpy())[0]), "has no label")


def _first_not_whole(column: pa.ChunkedArray) -> LabelError:
    """The error for the first label that is no int64."""
    for row, value in enumerate(column.to_pylist()):
        if value is None:
            return LabelError(row, "has no label")
        if value != value or value % 1 or not -(1 << 63) <= value < 1 << 63:
            return LabelError(row, f"has the label {value}, which is no whole number of 64 bits")
    raise AssertionError("every label is a whole number")


def _views(chunk: pa.Array) -> list[np.ndarray | None]:
    """The bytes of each row as uint8 views of the array."""
    values = chunk
    if pa.types.is_struct(chunk.type):
        values = chunk.field("bytes") if _field_type(chunk.type, "bytes") is not None else pa.nulls(len(chunk))
    elif _is_text(chunk.type):
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
