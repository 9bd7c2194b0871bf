"""What Arrow types can hold: bytes, text or numbers."""

import pyarrow as pa


def field_type(kind: pa.StructType, name: str) -> pa.DataType | None:
    """The type of a struct's field, or None if it has no such field."""
    number = kind.get_field_index(name)
    return None if number < 0 else kind.field(number).type


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of a dictionary's values, or the type itself."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a type is one of the binary types, dictionary-encoded or not."""
    kind, types = _plain(kind), pa.types
    return any(one(kind) for one in (types.is_binary, types.is_large_binary, types.is_binary_view)) or (
        types.is_fixed_size_binary(kind)
    )


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is one of the string types, dictionary-encoded or not."""
    kind, types = _plain(kind), pa.types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def is_number(kind: pa.DataType) -> bool:
    """Whether a type is a number, bool or null, dictionary-encoded or not."""
    kind, types = _plain(kind), pa.types
    numbers = (types.is_integer, types.is_boolean, types.is_floating, types.is_decimal)
    return any(one(kind) for one in numbers) or types.is_null(kind)  # null: all labels are missing
