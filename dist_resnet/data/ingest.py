"""What becomes of one encoded picture on its way into a set: decoded once, kept, converted, shrunk or refused.

A picture's bytes are kept as they are wherever the decoder that trains reads them as Pillow does, whatever the file
is called: JPEG of nearly any colour space, PNG of 8 bits, plain BMP, WebP. EXIF rotation stays in the bytes and is
ignored when they are read, as torchvision's ImageFolder does. What the decoder reads otherwise or not at all, PNG of 16
bits, CMYK JPEG without a marker of its kind, GIF, TIFF and others, becomes an 8-bit PNG of the same pixels.
"""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dist_resnet.data.headers import MOST_MEGAPIXELS, check_megapixels, check_whole, picture_size

_KEPT_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "WEBP")
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
_SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")
# libjpeg's JPEG_MAX_DIMENSION.
_LONGEST_JPEG_SIDE = 65_500


class DamagedError(ValueError):
    """The bytes are no picture that can be trained on; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Shrink:
    """Pictures with a longer shorter side are resized to it and encoded as JPEG, unless they are too long for one."""

    shorter_side: int
    quality: int = 90

    def __post_init__(self) -> None:
        if self.shorter_side < 32:
            raise ValueError(f"the shorter side must be at least 32 pixels, got {self.shorter_side}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must lie in 1 .. 100, got {self.quality}")


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """A picture as it enters the set."""

    encoded: bytes
    converted: str | None = None
    """Why it became a PNG, or None where it did not."""
    shrunk: bool = False


def ingest(encoded: bytes, shrink: Shrink | None = None) -> Ingested:
    """Decodes a picture fully and settles which bytes enter the set. Raises DamagedError."""
    picture = decode(encoded)
    try:
        return _settled(encoded, picture, shrink)
    except (DamagedError, MemoryError):
        raise
    except Exception as error:  # as many kinds as Pillow has encoders
        raise DamagedError(
            f"a picture of {picture.width} x {picture.height} in {picture.mode} that cannot be encoded again "
            f"({_told(error)})"
        ) from error


def _settled(encoded: bytes, picture: Image.Image, shrink: Shrink | None) -> Ingested:
    smaller = None if shrink is None else _shrunk(picture, shrink)
    if smaller is not None and len(smaller) < len(encoded):
        return Ingested(encoded=smaller, shrunk=True)
    if reason := _unlike_pillow(encoded, picture):
        return Ingested(encoded=_png(picture), converted=reason)
    return Ingested(encoded=encoded)


def decode(encoded: bytes) -> Image.Image:
    """The picture with all its pixels, 16-bit ones brought to 8 bits. Raises DamagedError."""
    if not encoded:
        raise DamagedError("no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about size, which is checked here, and metadata, which is not read
            picture = Image.open(io.BytesIO(encoded))
            check_megapixels(picture.height, picture.width)
            picture.load()
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise DamagedError(f"more than {MOST_MEGAPIXELS} megapixels") from error
    except Image.UnidentifiedImageError as error:
        raise DamagedError(f"no picture: {len(encoded)} bytes that begin with {encoded[:8].hex()}") from error
    except Exception as error:  # damaged bytes can make Pillow raise nearly anything
        raise DamagedError(_told(error)) from error
    if picture.mode == "F":
        raise DamagedError("floating-point values, which are neither 8 nor 16 bits")
    return _eight_bits(picture) if picture.mode in _SIXTEEN_BIT_MODES else picture


def _told(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _eight_bits(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise DamagedError(f"values of {values.min()} to {values.max()}, which are neither 8 nor 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _unlike_pillow(encoded: bytes, picture: Image.Image) -> str | None:
    """Why the decoder that trains would not give Pillow's pixels, or None where it does."""
    # Pillow forgets the format of what it has converted.
    kind = picture.format or ("PNG" if encoded[:4] == b"\x89PNG" else "16-bit picture")
    if kind not in _KEPT_FORMATS:
        return kind
    if encoded[:4] == b"\x89PNG" and encoded[24] == 16:
        return "16-bit PNG"
    if kind == "WEBP" and getattr(picture, "n_frames", 1) > 1:
        return "animated WEBP"
    if picture.mode == "CMYK" and "adobe_transform" not in picture.info:
        return "CMYK JPEG without Adobe's marker"  # Pillow takes its values for inverted all the same
    if kind == "BMP" and _is_odd_bmp(encoded):
        return "16-bit or compressed BMP"
    try:
        seen = picture_size(np.frombuffer(encoded, np.uint8))
        check_whole(np.frombuffer(encoded, np.uint8))  # Pillow does not miss a PNG's last chunk
    except ValueError:
        seen = None
    return None if seen == (picture.height, picture.width) else f"{kind} with an odd header"


def _is_odd_bmp(encoded: bytes) -> bool:
    """Whether a BMP has 16 bits per pixel, is run-length encoded, or has bit fields of its own."""
    if encoded[14:18] == b"\x0c\0\0\0":  # the oldest header, which knows no compression
        return encoded[24] == 16
    return encoded[28] == 16 or encoded[30:34] != bytes(4)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    (picture if picture.mode in _PNG_MODES else picture.convert("RGB")).save(buffer, "PNG")
    return buffer.getvalue()


def _shrunk(picture: Image.Image, shrink: Shrink) -> bytes | None:
    """The picture at its smaller size as a JPEG, or None where it is small already or would be too long for one."""
    factor = shrink.shorter_side / min(picture.size)
    size = (round(picture.width * factor), round(picture.height * factor))
    if factor >= 1 or max(size) > _LONGEST_JPEG_SIDE:
        return None
    buffer = io.BytesIO()
    _plain(picture).resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=shrink.quality)
    return buffer.getvalue()


def _plain(picture: Image.Image) -> Image.Image:
    return picture if picture.mode in ("L", "RGB") else picture.convert("RGB")


def difference(encoded: bytes, shrunk: bytes, shorter_side: int) -> float:
    """Mean absolute difference, of 255 levels, that shrinking makes to the centre that an evaluation would crop.

    Both pictures are resized to `shorter_side`, at most 256, and the centre square of 7/8 of it is compared.
    """
    side = min(256, shorter_side)
    first, second = (_centre(decode(one), side) for one in (encoded, shrunk))
    return float(np.abs(first - second).mean())


def _centre(picture: Image.Image, side: int) -> np.ndarray:
    """int16 [S, S, 3] with S = 7/8 of `side`"""
    factor = side / min(picture.size)
    size = (round(picture.width * factor), round(picture.height * factor))
    crop = side * 7 // 8
    left, top = (size[0] - crop) // 2, (size[1] - crop) // 2
    resized = picture.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + crop, top + crop)), np.int16)
