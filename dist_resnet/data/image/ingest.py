"""Decides how one encoded image enters a set: decodes it once, then keeps, converts, shrinks or refuses it.

The bytes are kept if the training decoder reads them as Pillow does, whatever the file name: JPEG of nearly any color
space, 8-bit PNG without transparency, plain BMP, WebP. EXIF rotation stays in the bytes and is ignored when they are
read, as in torchvision's ImageFolder. Images that the decoder reads differently or not at all (16-bit or transparent
PNG, CMYK JPEG without Adobe's marker, GIF, TIFF and others) become an 8-bit PNG of the pixels of `pixels.decode`.
"""

import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from dist_resnet.data.image.headers import check_whole, image_size, oddity
from dist_resnet.data.image.pixels import DamagedError, decode, flatten, load, reason_of, rgb

_KEPT_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "WEBP")
# Stored as they are: they are small, and read alike.
_PNG_MODES = ("1", "P")
# libjpeg's JPEG_MAX_DIMENSION.
_LONGEST_JPEG_SIDE = 65_500


@dataclass(frozen=True, kw_only=True)
class Shrink:
    """Resizes images with a longer shorter side to this one and encodes them as JPEG, unless too long for JPEG."""

    shorter_side: int
    quality: int = 90

    def __post_init__(self) -> None:
        if self.shorter_side < 32:
            raise ValueError(f"--shorter-side must be at least 32 pixels, got {self.shorter_side}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"--quality must be in 1 .. 100, got {self.quality}")


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """An image as it enters the set."""

    encoded: bytes
    converted: str | None = None
    """Why it became a PNG, or None if it did not."""
    shrunk: bool = False
    loaded: Image.Image | None = field(default=None, repr=False, compare=False)
    """The image of these bytes; None if it was shrunk and has to be decoded again."""

    def pixels(self) -> Image.Image:
        """The pixels of these bytes, RGB. Raises DamagedError."""
        return decode(self.encoded) if self.loaded is None else rgb(self.loaded)


def ingest(encoded: bytes, shrink: Shrink | None = None) -> Ingested:
    """The bytes that enter the set, after decoding the image completely. Raises DamagedError if it is damaged."""
    image = load(encoded)
    try:
        return _ingested(encoded, image, shrink)
    except (DamagedError, MemoryError):
        raise
    except Exception as error:  # Pillow's encoders raise many kinds
        raise DamagedError(
            f"an image of {image.width} x {image.height} in {image.mode} that cannot be encoded again "
            f"({reason_of(error)})"
        ) from error


def _ingested(encoded: bytes, image: Image.Image, shrink: Shrink | None) -> Ingested:
    smaller = None if shrink is None else _shrunk(image, shrink)
    if smaller is not None and len(smaller) < len(encoded):
        return Ingested(encoded=smaller, shrunk=True)
    if reason := _why_converted(encoded, image):
        return Ingested(encoded=_png(image), converted=reason, loaded=image)
    return Ingested(encoded=encoded, loaded=image)


def _why_converted(encoded: bytes, image: Image.Image) -> str | None:
    """Why the training decoder would not give the same pixels, or None if it would."""
    if image.format not in _KEPT_FORMATS:
        return image.format
    content = np.frombuffer(encoded, np.uint8)
    if reason := oddity(content):
        return reason
    try:
        size = image_size(content)
        check_whole(content)
    except ValueError:
        size = None
    return None if size == (image.height, image.width) else f"{image.format} with an odd header"


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    plain = image.mode in _PNG_MODES and not image.has_transparency_data
    (image if plain else flatten(image)).save(buffer, "PNG")
    return buffer.getvalue()


def _shrunk(image: Image.Image, shrink: Shrink) -> bytes | None:
    """The shrunk image as a JPEG, or None if it is already small or too long for a JPEG."""
    factor = shrink.shorter_side / min(image.size)
    size = (round(image.width * factor), round(image.height * factor))
    if factor >= 1 or max(size) > _LONGEST_JPEG_SIDE:
        return None
    buffer = io.BytesIO()
    flatten(image).resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=shrink.quality)
    return buffer.getvalue()


def difference(encoded: bytes, shrunk: bytes, shorter_side: int) -> float:
    """Mean absolute difference, in levels of 0 .. 255, of an image and its shrunk version in the evaluation crop.

    Both images are resized to `shorter_side`, at most 256, and the center squares of 7/8 of that are compared.
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
