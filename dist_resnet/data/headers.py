"""Heights and widths of encoded pictures from their headers, as stored: EXIF orientation is ignored."""

import io

import numpy as np
from PIL import Image

_PNG = b"\x89PNG\r\n\x1a\n"
# Start-of-frame markers: 0xC0 .. 0xCF without DHT (C4), JPG (C8) and DAC (CC).
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_HEADER_BYTES = 1 << 16


def picture_size(encoded: np.ndarray) -> tuple[int, int]:
    """(height, width) of an encoded picture: uint8 [num_bytes]. Raises ValueError where it has no known header."""
    head = encoded[:_HEADER_BYTES].tobytes()
    size = None
    if head[:2] == b"\xff\xd8":
        size = _jpeg_size(head) or (_jpeg_size(encoded.tobytes()) if len(encoded) > len(head) else None)
    elif head[:8] == _PNG and len(head) >= 24:
        size = int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")
    else:
        size = _pillow_size(encoded)
    if size is None or min(size) < 1:
        raise ValueError(f"{len(encoded)} bytes that begin with {head[:8].hex() or 'nothing'} are no picture header")
    return size


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    """Walks the JPEG's segments to its first frame header; None where none is reached."""
    place, end = 2, len(head) - 9
    while place <= end:
        if head[place] != 0xFF:
            return None
        marker = head[place + 1]
        if marker in _FRAMES:
            return (head[place + 5] << 8) | head[place + 6], (head[place + 7] << 8) | head[place + 8]
        if marker == 0xFF:  # a fill byte
            place += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # a marker without a segment
            place += 2
        else:
            place += 2 + ((head[place + 2] << 8) | head[place + 3])
    return None


def _pillow_size(encoded: np.ndarray) -> tuple[int, int] | None:
    try:
        with Image.open(io.BytesIO(encoded.tobytes())) as picture:
            return picture.height, picture.width
    except (OSError, ValueError, SyntaxError):
        return None
