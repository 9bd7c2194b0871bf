"""What becomes of one encoded image on its way into a set: decoded once, kept, converted, shrunk or refused.

An image's bytes are kept as they are wherever the decoder that trains reads them as Pillow does, whatever the file
is called: JPEG of nearly any color space, PNG of 8 bits without transparency, plain BMP, WebP. EXIF rotation stays in
the bytes and is ignored when they are read, as torchvision's ImageFolder does. What the decoder reads otherwise or not
at all, PNG of 16 bits or with transparency, CMYK JPEG without a marker of its kind, GIF, TIFF and others, becomes an
8-bit PNG of the pixels that `pixels.decode` has.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dist_resnet.data.image.headers import check_whole, image_size, oddity
from dist_resnet.data.image.pixels import DamagedError, decode, flatten, load, reason_of

_KEPT_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "WEBP")
# As small as they come, and read alike.
_PNG_MODES = ("1", "P")
# libjpeg's JPEG_MAX_DIMENSION.
_LONGEST_JPEG_SIDE = 65_500


@dataclass(frozen=True, kw_only=True)
class Shrink:
    """Images with a longer shorter side are resized to it and encoded as JPEG, unless they are too long for one."""

    shorter_side: int
    quality: int = 90

    def __post_init__(self) -> None:
        if self.shorter_side < 32:
            raise ValueError(f"the shorter side must be at least 32 pixels, got {self.shorter_side}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must lie in 1 .. 100, got {self.quality}")


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """An image as it enters the set."""

    encoded: bytes
    converted: str | None = None
    """Why it became a PNG, or None where it did not."""
    shrunk: bool = False


def ingest(encoded: bytes, shrink: Shrink | None = None) -> Ingested:
    """Decodes an image fully and settles which bytes enter the set. Raises DamagedError."""
    image = load(encoded)
    try:
        return _settled(encoded, image, shrink)
    except (DamagedError, MemoryError):
        raise
    except Exception as error:  # as many kinds as Pillow has encoders
        raise DamagedError(
            f"an image of {image.width} x {image.height} in {image.mode} that cannot be encoded again "
            f"({reason_of(error)})"
        ) from error


def _settled(encoded: bytes, image: Image.Image, shrink: Shrink | None) -> Ingested:
    smaller = None if shrink is None else _shrunk(image, shrink)
    if smaller is not None and len(smaller) < len(encoded):
        return Ingested(encoded=smaller, shrunk=True)
    if reason := _why_converted(encoded, image):
        return Ingested(encoded=_png(image), converted=reason)
    return Ingested(encoded=encoded)


def _why_converted(encoded: bytes, image: Image.Image) -> str | None:
    """Why the decoder that trains would not give the same pixels, or None where it does."""
    if image.format not in _KEPT_FORMATS:
        return image.format
    content = np.frombuffer(encoded, np.uint8)
    if reason := oddity(content):
        return reason
    try:
        seen = image_size(content)
        check_whole(content)
    except ValueError:
        seen = None
    return None if seen == (image.height, image.width) else f"{image.format} with an odd header"


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    plain = image.mode in _PNG_MODES and not image.has_transparency_data
    (image if plain else flatten(image)).save(buffer, "PNG")
    return buffer.getvalue()


def _shrunk(image: Image.Image, shrink: Shrink) -> bytes | None:
    """The image at its smaller size as a JPEG, or None where it is small already or would be too long for one."""
    factor = shrink.shorter_side / min(image.size)
    size = (round(image.width * factor), round(image.height * factor))
    if factor >= 1 or max(size) > _LONGEST_JPEG_SIDE:
        return None
    buffer = io.BytesIO()
    flatten(image).resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=shrink.quality)
    return buffer.getvalue()


def difference(encoded: bytes, shrunk: bytes, shorter_side: int) -> float:
    """Mean absolute difference, of 255 levels, that shrinking makes to the center that an evaluation would crop.

    Both images are resized to `shorter_side`, at most 256, and the center square of 7/8 of it is compared.
    """
    side = min(256, shorter_side)
    first, second = (_center(decode(one), side) for one in (encoded, shrunk))
    return float(np.abs(first - second).mean())


def _center(image: Image.Image, side: int) -> np.ndarray:
    """int16 [S, S, 3] with S = 7/8 of `side`"""
    factor = side / min(image.size)
    size = (round(image.width * factor), round(image.height * factor))
    crop = side * 7 // 8
    left, top = (size[0] - crop) // 2, (size[1] - crop) // 2
    resized = image.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + crop, top + crop)), np.int16)
