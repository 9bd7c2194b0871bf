"""What encoded images say of themselves without being decoded: size, whether they are cut short, and their kind.

Heights and widths are those stored: EXIF orientation is ignored.
"""

import io
import itertools

import numpy as np
from PIL import Image

from dist_resnet.data.image import png

MOST_MEGAPIXELS = 100
"""A larger image counts as damaged; decoding one of this size takes 0.3 GB, or 0.9 GB where it is progressive."""
# Start-of-frame markers: 0xC0 .. 0xCF without DHT (C4), JPG (C8) and DAC (CC).
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
# What can precede the pixels: the frame, tables, what applications have to say, comments.
_SEGMENTS = _FRAMES | {0xC4, 0xCC, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE}
# Segments that tell no pixel, and the least bytes with which one is kept.
_SAID_BESIDE = {**dict.fromkeys([*range(0xE2, 0xF0), 0xFE], 1 << 17), 0xE0: 18, 0xEE: 16}
_JPEG_START, _JPEG_END, _TAIL_BYTES = b"\xff\xd8", b"\xff\xd9", 4096


def image_size(encoded: np.ndarray) -> tuple[int, int]:
    """(height, width) of an encoded image: uint8 [num_bytes]. Raises ValueError where it has no known header."""
    head = encoded.data
    size = None
    if head[:2] == _JPEG_START:
        size = _jpeg_size(head)
    elif head[:8] == png.SIGNATURE and head[12:16] == b"IHDR" and len(head) >= 24:
        size = int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")
    else:
        size = _pillow_size(encoded)
    if size is None or min(size) < 1:
        raise ValueError(f"{len(encoded)} bytes that begin with {head[:8].hex() or 'nothing'} are no image header")
    return size


def check_megapixels(height: int, width: int) -> None:
    """Raises ValueError, naming the size, where an image has more than `MOST_MEGAPIXELS`."""
    if height * width > MOST_MEGAPIXELS * 1_000_000:
        raise ValueError(f"{width} x {height} is more than {MOST_MEGAPIXELS} megapixels")


def check_whole(encoded: np.ndarray) -> None:
    """Raises ValueError where an encoded JPEG, uint8 [num_bytes], is cut short; a PNG without an end is an oddity.

    A decoder that is asked for the upper part of an image would not notice that the lower part is missing.
    """
    tail = encoded[-_TAIL_BYTES:].tobytes()
    is_jpeg = encoded[:2].tobytes() == _JPEG_START
    if is_jpeg and _JPEG_END not in tail and not _has_jpeg_end(encoded.tobytes()):
        raise ValueError("the JPEG is cut short: it has no end")


def oddity(encoded: np.ndarray) -> str | None:
    """Why the decoder that trains would not give the pixels of `pixels.decode`, or None where it does.

    `encoded`: uint8 [num_bytes]. What is None's may be damaged, or cut short, all the same.
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
    # Pillow takes the values for inverted all the same.
    return None if marked else "CMYK JPEG without Adobe's marker"


def _png_oddity(head: memoryview) -> str | None:
    chunks = list(png.chunks(head))
    if reason := png.fault(chunks):
        return reason
    if head[24:25] == b"\x10":
        return "16-bit PNG"
    before = {chunk.kind for chunk in itertools.takewhile(lambda one: one.kind != b"IDAT", chunks)}
    if b"acTL" in before:
        # Where the image for readers without animation is no frame of it, DALI shows the first frame and Pillow that.
        return "animated PNG"
    return "PNG with transparency" if head[25:26] in (b"\4", b"\6") or b"tRNS" in before else None


def _is_odd_bmp(head: memoryview) -> bool:
    """Whether a BMP has 16 bits per pixel, is run-length encoded, or has bit fields of its own."""
    if head[14:18] == b"\x0c\0\0\0":  # the oldest header, which knows no compression
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
    """A JPEG without what precedes its pixels and says nothing of them, but for EXIF data.

    JFIF's and Adobe's segments, which tell its colors, stay if they are as long as decoders want them.
    """
    kept, place = [content[:2]], 2
    while place + 4 <= len(content) and content[place] == 0xFF and content[place + 1] in _SEGMENTS:
        end = place + 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        if content[place + 1] not in _SAID_BESIDE or end - place >= _SAID_BESIDE[content[place + 1]]:
            kept.append(content[place:end])
        place = end
    return b"".join(kept) + content[place:]


def _has_jpeg_end(content: bytes) -> bool:
    """Whether the end marker stands anywhere after the first scan begins; a thumbnail before it has one of its own."""
    place = _find_segment(content, frozenset({0xDA}))
    return place is not None and content.rfind(_JPEG_END, place) >= 0


def _jpeg_size(head: memoryview) -> tuple[int, int] | None:
    """Height and width of the JPEG's first frame; None where no frame header is reached."""
    place = _find_segment(head, _FRAMES)
    if place is None:
        return None
    return (head[place + 5] << 8) | head[place + 6], (head[place + 7] << 8) | head[place + 8]


def _find_segment(head: bytes | memoryview, markers: frozenset[int]) -> int | None:
    """Walks the JPEG's segments to the first with one of the markers."""
    place, end = 2, len(head) - 9
    while place <= end:
        if head[place] != 0xFF:
            return None
        marker = head[place + 1]
        if marker in markers:
            return place
        if marker == 0xFF:  # a fill byte
            place += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # a marker without a segment
            place += 2
        else:
            place += 2 + ((head[place + 2] << 8) | head[place + 3])
    return None


def _pillow_size(encoded: np.ndarray) -> tuple[int, int] | None:
    try:
        with Image.open(io.BytesIO(encoded.tobytes())) as image:
            return image.height, image.width
    except Image.DecompressionBombError as error:
        raise ValueError(f"more than {MOST_MEGAPIXELS} megapixels ({error})") from error
    except MemoryError:
        raise
    except Exception:  # damaged headers make Pillow's many formats raise nearly anything
        return None
