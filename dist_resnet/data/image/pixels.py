"""Pixels of any encoded image: one rule for preparing, for Pillow as a decoder, and for prediction.

16-bit values keep the high byte, animations the first frame. Transparent images are composited on white, and other
color spaces converted as Pillow does. Every package of a model contains a copy of this file.
"""

import functools
import io
import warnings
import zlib

import numpy as np
from PIL import ExifTags, Image

from dist_resnet.data.image import png
from dist_resnet.data.image.headers import MOST_MEGAPIXELS, check_megapixels, jpeg_without_metadata

_SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What a PNG has that says how it is turned: a chunk, or the name of a text.
_PNG_METADATA = (b"eXIf", b"exif", b"xmp")
# Files that are sent instead of images.
_NO_IMAGES = (
    (png.SIGNATURE, "a damaged PNG"),
    (b"\xff\xd8\xff", "a damaged JPEG"),
    (b"GIF8", "a damaged GIF"),
    (b"%PDF", "a PDF"),
    (b"%!PS", "PostScript"),
    (b"<", "markup such as HTML or SVG"),
    (b"PK\3\4", "a ZIP archive"),
    (b"\x1f\x8b", "gzip"),
    (b"{", "JSON"),
    (b"PAR1", "Parquet"),
    (b"version https://git-lfs", "a Git LFS pointer: run git lfs pull"),
)


class DamagedError(ValueError):
    """The bytes are not a readable image; the message is the reason."""


def decode(encoded: bytes, *, upright: bool = False) -> Image.Image:
    """The image as 8-bit RGB; with `upright`, turned by its EXIF orientation. Raises DamagedError."""
    image = load(encoded)
    return rgb(_turned(image) if upright else image)


def rgb(image: Image.Image) -> Image.Image:
    """An image of `load` as 8-bit RGB. Raises DamagedError."""
    try:
        return flatten(image).convert("RGB")
    except (DamagedError, MemoryError):
        raise
    except Exception as error:  # Pillow cannot convert from every mode
        raise DamagedError(f"an image of mode {image.mode}, which cannot be read ({reason_of(error)})") from error


def is_turned(encoded: bytes) -> bool:
    """Whether `decode` turns the image if it is to be upright. False for an image that it cannot read."""
    if encoded.startswith(png.SIGNATURE) and not any(mark in encoded for mark in _PNG_METADATA):
        return False  # Pillow looks for it behind the pixels, and so decodes them
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _turn(Image.open(io.BytesIO(encoded), formats=_formats())) is not None
    except MemoryError:
        raise
    except Exception:  # Pillow raises nearly anything for damaged bytes
        return False


def load(encoded: bytes) -> Image.Image:
    """The image with all its pixels as Pillow reads them. Raises DamagedError."""
    if not encoded:
        raise DamagedError("no bytes")
    image = _read_anyhow(encoded)
    if not encoded.startswith(png.SIGNATURE):
        return image
    try:
        png.check_pixels(encoded)
    except (ValueError, zlib.error) as error:
        raise DamagedError(reason_of(error)) from error
    if "transparency" in image.info:
        image.info["transparency"] = _transparent_value(image, bits=encoded[24])
    return image


def _read_anyhow(encoded: bytes) -> Image.Image:
    """As `_read`, but accepts a PNG or JPEG whose metadata is damaged or too large."""
    try:
        return _read(encoded)
    except DamagedError:
        is_png, is_jpeg = encoded.startswith(png.SIGNATURE), encoded.startswith(b"\xff\xd8")
        plain = png.without_metadata(encoded) if is_png else jpeg_without_metadata(encoded) if is_jpeg else encoded
        try:
            if plain != encoded:
                return _read(plain)
        except DamagedError:
            pass  # the first reason is reported
        raise


def _read(encoded: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about size, which is checked here, and metadata, which is unused
            image = Image.open(io.BytesIO(encoded), formats=_formats())
            check_megapixels(image.height, image.width)
            image.load()
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise DamagedError(f"more than {MOST_MEGAPIXELS} megapixels") from error
    except Image.UnidentifiedImageError as error:
        raise DamagedError(
            f"not an image: {len(encoded)} bytes that begin with {encoded[:8].hex()}, {_likeness(encoded)}"
        ) from error
    except Exception as error:  # Pillow raises nearly anything for damaged bytes
        raise DamagedError(reason_of(error)) from error
    if image.mode == "F":
        raise DamagedError("floating-point values, which are neither 8 nor 16 bits")
    return image


@functools.cache
def _formats() -> tuple[str, ...]:
    """Pillow's formats except EPS, for which it starts Ghostscript, which executes code in the file."""
    Image.init()
    return tuple(name for name in Image.OPEN if name != "EPS")


def flatten(image: Image.Image) -> Image.Image:
    """An image of `load` with 8 bits per channel and no transparency: gray (mode L) or RGB. Raises DamagedError."""
    if image.mode in _SIXTEEN_BIT_MODES:
        return _eight_bits(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def reason_of(error: Exception) -> str:
    """An error's message in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _turned(image: Image.Image) -> Image.Image:
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata: no turn
        return None


def _transparent_value(image: Image.Image, bits: int) -> object:
    """A PNG's transparent color, scaled as Pillow scales colors; Pillow itself leaves it as in the file."""
    value = image.info["transparency"]
    if image.mode in ("1", "L") and bits < 8:
        return value * 255 // ((1 << bits) - 1)
    if image.mode == "RGB" and bits == 16:
        return tuple(channel >> 8 for channel in value)
    return value


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise DamagedError(f"values of {values.min()} to {values.max()}, which are neither 8 nor 16 bits")
    return Image.fromarray(np.where(values == image.info.get("transparency"), 255, values >> 8).astype(np.uint8))


def _likeness(encoded: bytes) -> str:
    if encoded[4:8] == b"ftyp":
        return "HEIC or a video"
    start = encoded[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    return next((name for sign, name in _NO_IMAGES if start.startswith(sign)), "of an unknown format")
