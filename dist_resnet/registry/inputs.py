"""The images of a request: files, base64 in its common forms, or pixels; alone, in lists, tables or dictionaries.

A copy of this file is in every package.
"""

import base64
import binascii
import re
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image

from dist_resnet.data.image.pixels import decode

COLUMN = "image"
_DATA_URL = re.compile(r"data:[^,]*,", re.IGNORECASE)
# Keys that TensorFlow Serving's clients and Hugging Face's `datasets` put an image under.
_KEYS = ("b64", "bytes")


def images_of(model_input: Any) -> list[Any]:
    """The images of a request, one by one. Raises ValueError if a table or dictionary has no column `image`."""
    if hasattr(model_input, "columns") or (isinstance(model_input, dict) and model_input.keys().isdisjoint(_KEYS)):
        columns = list(model_input.columns) if hasattr(model_input, "columns") else list(model_input)
        if COLUMN not in columns:
            raise ValueError(f"the images must be in a column {COLUMN}, got {columns}")
        model_input = model_input[COLUMN]
    rows = list(model_input) if _is_many(model_input) else [model_input]
    # MLflow turns a list of texts into one row.
    return list(rows[0]) if len(rows) == 1 and _is_list_of_texts(rows[0]) else rows


def open_image(value: Any, *, upright: bool) -> Image.Image:
    """An image as RGB; with `upright`, a file is rotated according to its EXIF data. Raises ValueError."""
    value = _unwrapped(value)
    if isinstance(value, str):
        return decode(from_text(value), upright=upright)
    if isinstance(value, bytes | bytearray | memoryview):
        content = bytes(value)
        return decode(_from_ascii(content) or content, upright=upright)
    return Image.fromarray(_pixels(value))


def from_text(text: str) -> bytes:
    """The bytes of base64 text: standard or URL-safe, padded or not, with line breaks, quoted, or as a data URL.

    Raises ValueError, quoting the text, if it is not base64.
    """
    found = text.strip().lstrip("\ufeff")
    if quoted := re.fullmatch(r"""b?(["'])(.*)\1""", found, flags=re.DOTALL):
        found = quoted[2].strip()
    if header := _DATA_URL.match(found):
        found = found[header.end() :]
        if ";base64" not in header[0].lower():
            return unquote_to_bytes(found)
    if "%" in found:
        found = unquote_to_bytes(found).decode("latin1")
    plain = "".join(found.split()).translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"text must be base64, got {_short(text)} ({error})") from error


def _from_ascii(content: bytes) -> bytes | None:
    """The bytes of base64 text given as bytes; None if it is not base64."""
    # PNM and XBM files, which Pillow reads, can be all ASCII and start with these characters.
    if not content.isascii() or content[:1] in (b"P", b"#") or not content:
        return None
    try:
        return from_text(content.decode("ascii"))
    except ValueError:
        return None


def _unwrapped(value: Any) -> Any:
    """The value in a row, dictionary or array with one entry."""
    if isinstance(value, dict):
        key = next((key for key in (COLUMN, *_KEYS) if key in value), None)
        if key is None:
            raise ValueError(f"a dictionary must have one of {', '.join((COLUMN, *_KEYS))}, got {list(value)}")
        return _unwrapped(value[key])
    if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "OSU":
        return _unwrapped(value.item())
    if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], str | bytes | dict):
        return _unwrapped(value[0])
    return value


def _pixels(value: Any) -> np.ndarray:
    """An array as uint8 [H, W, 3]. Raises ValueError."""
    try:
        pixels = np.asarray(value)
    except ValueError as error:
        raise ValueError("the rows of an array must have the same length") from error
    if pixels.dtype.kind in "iu" and pixels.size and 0 <= pixels.min() <= pixels.max() < 256:
        pixels = pixels.astype(np.uint8)  # JSON has no uint8.
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        found = repr(value) if pixels.ndim == 0 else f"{pixels.dtype} {list(pixels.shape)}"
        raise ValueError(f"an array must be uint8 [H, W, 3], got {found}{_advice(pixels)}")
    return np.ascontiguousarray(pixels)


def _advice(pixels: np.ndarray) -> str:
    """How to fix an array that is nearly an image."""
    if pixels.ndim == 2 and pixels.shape[1] == 3:
        return "; put a single image into a list"
    if pixels.ndim == 2:
        return "; repeat the gray values for three color channels"
    if pixels.ndim == 3 and pixels.shape[2] != 3 and pixels.shape[0] == 3:
        return "; put the color channels last"
    if pixels.dtype.kind == "f" and pixels.ndim == 3:
        return "; multiply values from 0 to 1 by 255 and round them"
    return ""


def _is_list_of_texts(row: Any) -> bool:
    entries = np.asarray(row, object) if isinstance(row, list | tuple) else row
    return (
        isinstance(entries, np.ndarray) and entries.ndim == 1 and all(isinstance(one, str | bytes) for one in entries)
    )


def _is_many(column: Any) -> bool:
    return not isinstance(column, bytes | bytearray | memoryview | str | dict) and not (
        isinstance(column, np.ndarray) and column.ndim == 3
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
