"""Checks PNG files chunk by chunk: which are damaged, and which have all their pixels nevertheless.

Pillow checks the CRCs of the chunks before the pixels only; libpng checks all, and accepts damage that costs no pixel.
Every package of a model contains a copy of this file.
"""

import itertools
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NEEDED = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
# Chunks that affect the pixels, too.
_SEEN = _NEEDED | {b"tRNS", b"acTL", b"fcTL", b"fdAT", b"eXIf"}
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PALETTE = 3
# Left, top, step right and step down of the seven passes of an interlaced image.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_AT_ONCE = 1 << 20


class Chunk(NamedTuple):
    """A chunk in its file."""

    kind: bytes
    start: int
    end: int
    data: memoryview
    is_intact: bool
    """Whether it is complete and its CRC is right."""


def chunks(content: bytes | memoryview) -> Iterator[Chunk]:
    """The chunks up to IEND; the last one is incomplete if the file ends within it."""
    content, start = memoryview(content), len(SIGNATURE)
    while start + 8 <= len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        kind, data = bytes(content[start + 4 : start + 8]), content[start + 8 : end - 4]
        is_intact = end <= len(content) and content[end - 4 : end] == struct.pack(
            ">I", zlib.crc32(data, zlib.crc32(kind))
        )
        yield Chunk(kind, start, min(end, len(content)), data, is_intact)
        if kind == b"IEND":
            return
        start = end


def fault(parts: Sequence[Chunk]) -> str | None:
    """Why decoders may differ on a PNG of these chunks, or None if it conforms to the standard."""
    kinds = [chunk.kind for chunk in parts]
    for chunk in parts:
        if not chunk.is_intact:
            return f"PNG with a damaged chunk {chunk.kind.decode('ascii', 'backslashreplace')}"
        if chunk.kind[:1].isupper() and chunk.kind not in _NEEDED:
            return f"PNG with a chunk {chunk.kind.decode('ascii', 'backslashreplace')}"
    if kinds[:1] != [b"IHDR"] or kinds.count(b"IHDR") > 1:
        return "PNG with an odd header"
    if [kind for kind, _ in itertools.groupby(kinds)].count(b"IDAT") > 1:
        return "PNG with its pixels in several places"
    return None if kinds[-1] == b"IEND" else "PNG without an end"


def without_metadata(content: bytes) -> bytes:
    """A PNG without the chunks that do not affect its pixels, such as text, and without damaged EXIF data."""
    kept = (
        content[chunk.start : chunk.end]
        for chunk in chunks(content)
        if chunk.kind[:1].isupper() or (chunk.kind in _SEEN and (chunk.is_intact or chunk.kind != b"eXIf"))
    )
    return SIGNATURE + b"".join(kept)


def check_pixels(content: bytes) -> None:
    """Raises ValueError if pixels of a PNG are missing, which Pillow would fill with black."""
    kinds, found = set(), 0
    inflate, header = zlib.decompressobj(), b""
    for chunk in chunks(content):
        kinds.add(chunk.kind)
        if chunk.kind == b"IHDR":
            header = bytes(chunk.data)
        elif chunk.kind == b"IDAT":
            found += _inflated(inflate, chunk.data)
    width, height, bits, color, compression, filtering, interlacing = struct.unpack(">IIBBBBB", header[:13])
    if compression or filtering or interlacing > 1:
        raise ValueError("the PNG's header names unknown methods")
    if color == _PALETTE and b"PLTE" not in kinds:
        raise ValueError("the PNG has no palette")
    needed = _needed(width, height, bits * _CHANNELS[color], interlaced=interlacing == 1)
    if found < needed:
        raise ValueError(f"the PNG has {found} of the {needed} bytes of its pixels")


def _inflated(inflate: "zlib._Decompress", data: memoryview) -> int:
    """The number of bytes that compressed data expands to; decompresses in parts to save memory."""
    count, waiting = 0, bytes(data)
    while waiting and not inflate.eof:
        count += len(inflate.decompress(waiting, _AT_ONCE))
        waiting = inflate.unconsumed_tail
    return count


def _needed(width: int, height: int, bits: int, *, interlaced: bool) -> int:
    """The decompressed bytes of an image with `bits` per pixel; each row has an additional byte for its filter."""
    if not interlaced:
        return height * (1 + (width * bits + 7) // 8)
    sizes = ((-((left - width) // right), -((top - height) // down)) for left, top, right, down in _PASSES)
    return sum(_needed(wide, high, bits, interlaced=False) for wide, high in sizes if wide > 0 and high > 0)
