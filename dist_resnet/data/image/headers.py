"""Facts about encoded images without decoding them: their size, whether they are cut short, and their peculiarities.

Heights and widths are as stored: EXIF orientation is ignored.
"""

import io
import itertools

import numpy as np
from PIL import Image

from dist_resnet.data.image import png

MOST_MEGAPIXELS = 100
"""A larger image counts as damaged; decoding one of this size takes 0.3 GB, or 0.9 GB if it is progressive."""
# Start-of-frame markers: 0xC0 .. 0xCF without DHT (C4), JPG (C8) and DAC (CC).
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
# Segments before the pixels: the frame, tables, application data, comments.
_SEGMENTS = _FRAMES | {0xC4, 0xCC, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE}
# Segments that do not affect pixels, and the size from which on each is kept.
_METADATA_BYTES = {**dict.fromkeys([*range(0xE2, 0xF0), 0xFE], 1 << 17), 0xE0: 18, 0xEE: 16}
_JPEG_START, _JPEG_END, _TAIL_BYTES = b"\xff\xd8", b"\xff\xd9", 4096


def image_size(encoded: np.ndarray) -> tuple[int, int]:
    """(height, width) of an encoded image, uint8 [num_bytes]. Raises ValueError if it has no known header."""
    head = encoded.data
    size = None
    if head[:2] == _JPEG_START:
        size = _jpeg_size(head)
    elif head[:8] == png.SIGNATURE and head[12:16] == b"IHDR" and len(head) >= 24:
        size = int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")
    else:
        size = _pillow_size(encoded)
    if size is None or min(size) < 1:
        raise ValueError(f"{len(encoded)} bytes that begin with {head[:8].hex() or 'nothing'} are not an image header")
    return size


def check_megapixels(height: int, width: int) -> None:
    """Raises ValueError, naming the size, if an image has more than `MOST_MEGAPIXELS`."""
    if height * width > MOST_MEGAPIXELS * 1_000_000:
        raise ValueError(f"{width} x {height} is more than {MOST_MEGAPIXELS} megapixels")


def check_whole(encoded: np.ndarray) -> None:
    """Raises ValueError if an encoded JPEG, uint8 [num_bytes], is cut short; `oddity` reports a PNG without an end.

    A decoder of the upper part of an image would not notice that the lower part is missing.
    """
    tail = encoded[-_TAIL_BYTES:].tobytes()
    is_jpeg = encoded[:2].tobytes() == _JPEG_START
    if is_jpeg and _JPEG_END not in tail and not _has_jpeg_end(encoded.tobytes()):
        raise ValueError("the JPEG is cut short: it has no end")


def oddity(encoded: np.ndarray) -> str | None:
    """Why the training decoder's pixels would differ from those of `pixels.decode`, or None if they would not.

    `encoded`: uint8 [num_bytes]. With None, the image may still be damaged or cut short.
    """
    head = encoded.data
    if head[:2] == _JPEG_START:
        return _jpeg_oddity(head)
    if head[:8] == png.SIGNATURE:
        return _png_oddity(head)
    if head[:2] == b"BM":
        return "16-bit or compressed BMP" if _is_odd_bmp(head) else None
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _webp_oddity(head)
    return "neither JPEG, PNG, BMP nor WebP"


def _jpeg_oddity(head: memoryview) -> str | None:
    frame = _find_segment(head, _FRAMES)
    if frame is None:
        return "JPEG with an odd header"
    if head[frame + 9 : frame + 10] != b"\4":
        return None
    marker = _find_segment(head, frozenset({0xEE}))
    marked = marker is not None and head[marker + 4 : marker + 9] == b"Adobe"
    # Pillow takes the values as inverted even without the marker.
    return None if marked else "CMYK JPEG without Adobe's marker"


def _png_oddity(head: memoryview) -> str | None:
    chunks = list(png.chunks(head))
    if reason := png.fault(chunks):
        return reason
    if head[24:25] == b"\x10":
        return "16-bit PNG"
    before = {chunk.kind for chunk in itertools.takewhile(lambda one: one.kind != b"IDAT", chunks)}
    if b"acTL" in before:
        # The default image may not be a frame of the animation: DALI decodes the first frame, Pillow the default image.
        return "animated PNG"
    return "PNG with transparency" if head[25:26] in (b"\4", b"\6") or b"tRNS" in before else None


def _is_odd_bmp(head: memoryview) -> bool:
    """Whether a BMP has 16 bits per pixel, is run-length encoded, or has bit fields."""
    if head[14:18] == b"\x0c\0\0\0":  # the oldest header, without compression
        return head[24:25] == b"\x10"
    return head[28:29] == b"\x10" or head[30:34] != bytes(4)


def _webp_oddity(head: memoryview) -> str | None:
    extended, lossless = head[12:16] == b"VP8X", head[12:16] == b"VP8L"
    if extended and head[20] & 0x02:
        return "animated WEBP"
    if (extended and head[20] & 0x10) or (lossless and head[24] & 0x10):
        return "WEBP with transparency"
    return None


def jpeg_without_metadata(content: bytes) -> bytes:
    """A JPEG without the segments that do not affect its pixels, except EXIF data.

    JFIF's and Adobe's segments, which define the colors, stay if they have the length that decoders need.
    """
    kept, start = [content[:2]], 2
    while start + 4 <= len(content) and content[start] == 0xFF and content[start + 1] in _SEGMENTS:
        end = start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
        if content[start + 1] not in _METADATA_BYTES or end - start >= _METADATA_BYTES[content[start + 1]]:
            kept.append(content[start:end])
        start = end
    return b"".join(kept) + content[start:]


def _has_jpeg_end(content: bytes) -> bool:
    """Whether there is an end marker after the start of the first scan; a thumbnail before it has its own."""
    scan = _find_segment(content, frozenset({0xDA}))
    return scan is not None and content.rfind(_JPEG_END, scan) >= 0


def _jpeg_size(head: memoryview) -> tuple[int, int] | None:
    """Height and width of the JPEG's first frame; None if it has no frame header."""
    frame = _find_segment(head, _FRAMES)
    if frame is None:
        return None
    return (head[frame + 5] << 8) | head[frame + 6], (head[frame + 7] << 8) | head[frame + 8]


def _find_segment(head: bytes | memoryview, markers: frozenset[int]) -> int | None:
    """The offset of the JPEG's first segment with one of the markers; None without one."""
    offset, end = 2, len(head) - 9
    while offset <= end:
        if head[offset] != 0xFF:
            return None
        marker = head[offset + 1]
        if marker in markers:
            return offset
        if marker == 0xFF:  # a fill byte
            offset += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # a marker without a segment
            offset += 2
        else:
            offset += 2 + ((head[offset + 2] << 8) | head[offset + 3])
    return None


def _pillow_size(encoded: np.ndarray) -> tuple[int, int] | None:
    try:
        with Image.open(io.BytesIO(encoded.tobytes())) as image:
            return image.height, image.width
    except Image.DecompressionBombError as error:
        raise ValueError(f"more than {MOST_MEGAPIXELS} megapixels ({error})") from error
    except MemoryError:
        raise
    except Exception:  # Pillow raises nearly anything for damaged headers
        return None
