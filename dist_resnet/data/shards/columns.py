"""Finds the columns of images and labels of a Parquet shard.

Every type that can be read without loss is accepted, fields of a struct are found by name, and the rest is refused with
column and type. The table in docs/data-format.md lists the accepted forms.
"""

import json
import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from dist_resnet.data.shards import hive
from dist_resnet.data.shards.column_types import field_type, is_bytes, is_number, is_text

_IMAGE_NAMES = ("image", "img")
_LABEL_NAME = re.compile(
    r"(.*[_ .-])?(labels?|class|classes|category|categories|targets?|cls)([_ .-]?(id|ids|idx|index|names?))?|y"
)
# Encoded images are larger: a PNG of one pixel has 67 bytes. Row groups with less per row are quickly read.
_LEAST_BYTES_A_ROW = 64
_CHOOSE = "--data.label-column, or --label-column of jobs/prepare_imagenet.py and jobs/evaluate.py"


@dataclass(frozen=True)
class Columns:
    """The columns of a shard's images and labels; a field of a struct has Parquet's name, `image.bytes`."""

    image: str
    """The column of images."""
    bytes: str | None
    """Their encoded bytes; None if the shard has only paths."""
    path: str | None
    """Their paths, if the shard has any."""
    label: str
    """The column of labels."""
    text_labels: bool
    """Whether the labels are class names and not numbers."""
    class_names: tuple[str, ...] | None
    """Names of the numbered classes, from the schema's `huggingface` metadata; may contain duplicates."""


NO_COLUMNS = Columns("", None, None, "", False, None)
"""The columns of a shard without rows."""


class UnlabeledError(ValueError):
    """A shard or some of its rows have no label."""


def is_label_name(name: str) -> bool:
    """Whether a column of this name usually has labels.

    >>> [is_label_name(name) for name in ("label", "fine_label", "class_id", "Category", "width")]
    [True, True, True, True, False]
    """
    return _LABEL_NAME.fullmatch(name.lower()) is not None


def find_columns(shard: str, schema: pa.Schema, label_column: str | None = None) -> Columns:
    """The columns of images and labels, by names and types; `label_column` chooses among several.

    Raises UnlabeledError if no column has a name for labels, ValueError if a column has an unsupported type or the
    choice is ambiguous; both name the shard.
    """
    _check_names(shard, schema)
    features = _features(schema)
    label = _find_label(shard, schema, features, label_column)
    image = _find_image(shard, schema, features, label)
    inside, path = _parts(shard, schema.field(image))
    text = is_text(schema.field(label).type) or is_bytes(schema.field(label).type)
    return Columns(image, inside, path, label, text, None if text else _class_names(features, label))


def find_image_columns(shard: str, schema: pa.Schema) -> tuple[str, str | None, str | None]:
    """(column of images, of their bytes, of their paths) of a shard that need not have labels.

    Raises ValueError, naming the shard, if no column or several could hold the images, or one has another type.
    """
    _check_names(shard, schema)
    image = _find_image(shard, schema, _features(schema), label=None)
    return image, *_parts(shard, schema.field(image))


def label_statistics(metadata: pq.FileMetaData, columns: Columns) -> tuple[int, int] | None:
    """Least and greatest label from the statistics of the row groups; None if the labels have to be read."""
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
    """The row groups that by their footer hold an image without bytes, or too few bytes for their rows.

    Empty images among large ones are not found: that would need all of them to be read.
    """
    groups = ((number, metadata.row_group(number)) for number in range(metadata.num_row_groups))
    return [
        number
        for number, group in groups
        if group.num_rows and (columns.bytes is None or _may_lack_bytes(_chunk(group, columns.bytes), group.num_rows))
    ]


def _may_lack_bytes(chunk: pq.ColumnChunkMetaData, rows: int) -> bool:
    """Whether a row of a column chunk may have no bytes; if so, reading the chunk is cheap or certain to find one."""
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
    """Each column's entry in the `huggingface` metadata; empty if that cannot be read."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _class_names(features: dict[str, dict], label: str) -> tuple[str, ...] | None:
    names = features.get(label, {}).get("names")
    if isinstance(names, dict):  # from older writers
        names = [names.get(str(number)) for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int) for name in names):
        return None  # if one class has no name, the others are not reliable
    return tuple(str(name) for name in names)


def _marked(features: dict[str, dict], schema: pa.Schema, kind: str) -> list[str]:
    return [name for name in schema.names if features.get(name, {}).get("_type") == kind]


def _find_label(shard: str, schema: pa.Schema, features: dict[str, dict], wanted: str | None) -> str:
    name = wanted or _only_label(shard, schema, features)
    if name not in schema.names:
        raise ValueError(f"{shard} has no column {name}, it has {_listed(schema)}; choose one of them with {_CHOOSE}")
    kind = schema.field(name).type
    if not (is_number(kind) or is_text(kind) or is_bytes(kind)):
        raise ValueError(
            f"{shard} has the column {name} of type {kind}, which cannot be labels: these are numbers or text, one "
            f"for each image; convert it, or choose another column with {_CHOOSE}"
        )
    return name


def _only_label(shard: str, schema: pa.Schema, features: dict[str, dict]) -> str:
    """`label`, or the only column that is marked as labels or has a name for labels."""
    if "label" in schema.names:
        return "label"
    named = [name for name in schema.names if is_label_name(name) and name not in _IMAGE_NAMES]
    found = [name for name in schema.names if name in {*named, *_marked(features, schema, "ClassLabel")}]
    if len(found) > 1:
        raise ValueError(f"{shard} has several columns of labels, {', '.join(found)}; choose one with {_CHOOSE}")
    if not found:
        way_out = hive.conversion(shard.rpartition("/")[0])
        raise UnlabeledError(
            f"{shard} has no column with a name for labels, such as label, it has {_listed(schema)}; "
            + (way_out or f"if one of them holds the labels, choose it with {_CHOOSE}")
        )
    return found[0]


def _check_names(shard: str, schema: pa.Schema) -> None:
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise ValueError(f"{shard} has two columns named {twice[0]}; rename or remove one")


def _find_image(shard: str, schema: pa.Schema, features: dict[str, dict], label: str | None) -> str:
    """`image` or `img`, or the only column that is marked as images or holds bytes."""
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
            f"{shard} has no column of images, it has {_listed(schema)}; images are a column image of binary or of a "
            "struct with a field bytes of binary; write the shards with jobs/prepare_imagenet.py or "
            "jobs/prepare_cifar.py"
        )
    return found[0]


def _may_hold_images(kind: pa.DataType) -> bool:
    return is_bytes(kind) or (pa.types.is_struct(kind) and field_type(kind, "bytes") is not None)


def _parts(shard: str, field: pa.Field) -> tuple[str | None, str | None]:
    """The Parquet names of an image column's bytes and paths. Raises ValueError if its type has neither."""
    kind, name = field.type, field.name
    if is_bytes(kind):
        return name, None
    if is_text(kind):
        return None, name
    inside, path = (field_type(kind, part) for part in ("bytes", "path")) if pa.types.is_struct(kind) else (None, None)
    has_bytes, has_path = inside is not None and is_bytes(inside), path is not None and is_text(path)
    other = inside is not None and not has_bytes and not pa.types.is_null(inside)
    if other or not (has_bytes or has_path):
        raise ValueError(
            f"{shard} has the column {name} of type {kind}, which cannot be encoded images; images are binary, or a "
            "struct with a field bytes of binary; write the shards with jobs/prepare_imagenet.py"
        )
    return f"{name}.bytes" if has_bytes else None, f"{name}.path" if has_path else None


def _listed(schema: pa.Schema) -> str:
    return "the columns " + ", ".join(f"{field.name}: {field.type}" for field in schema)
