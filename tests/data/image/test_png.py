"""Damaged PNG files; oracle: the standard's chunks and sums, NumPy's pixels, and DALI's decoder beside Pillow's.

Whatever is wrong with a file, preparing it and training on shards that were not prepared come to the same verdict.
"""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from data.image.test_ingest import chunk, dali
from oracle.images import smooth, write_rows
from PIL import Image

from dist_resnet.data.image import png
from dist_resnet.data.image.headers import oddity
from dist_resnet.data.image.ingest import ingest
from dist_resnet.data.image.pixels import DamagedError, decode
from dist_resnet.data.input import streams
from dist_resnet.data.input.dali import DaliDecoder
from dist_resnet.data.input.pillow import PillowDecoder
from dist_resnet.data.shards.reader import ShardReader
from dist_resnet.data.shards.split import open_split

PIXELS = smooth(60, 80, 1)
Chunks = list[tuple[bytes, bytes]]
IHDR = struct.pack(">IIBBBBB", 80, 60, 8, 2, 0, 0, 0)
ROWS = b"".join(b"\0" + row.tobytes() for row in PIXELS)
PACKED = zlib.compress(ROWS)
PLAIN: Chunks = [(b"IHDR", IHDR), (b"IDAT", PACKED), (b"IEND", b"")]
TEXT = (b"tEXt", b"Title\0a cat")


def built(parts: Chunks, wrong: bytes = b"") -> bytes:
    """A PNG of these chunks, with wrong sums for those of one kind."""
    made = [chunk(kind, data) for kind, data in parts]
    spoiled = [one[:-1] + bytes([one[-1] ^ 1]) if one[4:8] == wrong else one for one in made]
    return png.SIGNATURE + b"".join(spoiled)


def beside(*parts: tuple[bytes, bytes], at: int = 1) -> Chunks:
    return [*PLAIN[:at], *parts, *PLAIN[at:]]


def interlaced() -> bytes:
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = [row for x, y, right, down in passes for row in PIXELS[y::down, x::right]]
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return built([(b"IHDR", IHDR[:-1] + b"\1"), (b"IDAT", packed), (b"IEND", b"")])


SAID_BESIDE: dict[bytes, bytes] = {
    b"tEXt": TEXT[1],
    b"zTXt": b"Title\0\0" + zlib.compress(b"a cat"),
    b"iTXt": b"Title\0\0\0\0\0a cat",
    b"iCCP": b"profile\0\0" + zlib.compress(bytes(200)),
    b"gAMA": struct.pack(">I", 45455),
    b"pHYs": struct.pack(">IIB", 2835, 2835, 1),
    b"tIME": b"\x07\xea\1\2\3\4\5",
    b"bKGD": bytes(6),
    b"eXIf": b"II*\0" + bytes(8),
    b"prVt": b"private",
}
# Every pixel is there.
INTACT: dict[str, Callable[[], bytes]] = {
    **{
        f"{kind.decode()} of a wrong sum": lambda kind=kind, data=data: built(beside((kind, data)), wrong=kind)
        for kind, data in SAID_BESIDE.items()
    },
    "text of a wrong sum behind the pixels": lambda: built(beside(TEXT, at=2), wrong=b"tEXt"),
    "text that unfolds to 80 MB": lambda: built(beside((b"zTXt", b"T\0\0" + zlib.compress(bytes(80 << 20))))),
    "pixels of a wrong sum": lambda: built(PLAIN, wrong=b"IDAT"),
    "an end of a wrong sum": lambda: built(PLAIN, wrong=b"IEND"),
    "no end": lambda: built(PLAIN[:-1]),
    "an end that is cut": lambda: built(PLAIN)[:-5],
    "a chunk that nobody knows": lambda: built(beside((b"ABCD", b"x"))),
    "a second header": lambda: built(beside(PLAIN[0])),
    "text within the pixels": lambda: built([PLAIN[0], (b"IDAT", PACKED[:99]), TEXT, (b"IDAT", PACKED[99:]), PLAIN[2]]),
    "much behind the end": lambda: built(PLAIN) + b"rubbish" * 2000,
    "another image behind the end": lambda: built(PLAIN) + built(PLAIN),
    "interlacing": interlaced,
    "interlacing and text of a wrong sum": lambda: (
        interlaced()[:33] + built([TEXT], wrong=b"tEXt")[len(png.SIGNATURE) :] + interlaced()[33:]
    ),
}
HALF = zlib.compress(ROWS[: 241 * 30])
DAMAGED: dict[str, Callable[[], bytes]] = {
    "half of the rows": lambda: built([PLAIN[0], (b"IDAT", HALF), PLAIN[2]]),
    "half of the rows, interlaced": lambda: built([(b"IHDR", IHDR[:-1] + b"\1"), (b"IDAT", HALF), PLAIN[2]]),
    "a row without its last pixel": lambda: built([PLAIN[0], (b"IDAT", zlib.compress(ROWS[:-3])), PLAIN[2]]),
    "half of the compressed bytes": lambda: built([PLAIN[0], (b"IDAT", PACKED[: len(PACKED) // 2]), PLAIN[2]]),
    "no pixels": lambda: built([PLAIN[0], PLAIN[2]]),
    "a sum of the pixels that is wrong": lambda: built([PLAIN[0], (b"IDAT", PACKED[:-4] + bytes(4)), PLAIN[2]]),
    "a palette that is not there": lambda: built(
        [(b"IHDR", IHDR[:9] + b"\3" + IHDR[10:]), (b"IDAT", zlib.compress(bytes(81 * 60))), PLAIN[2]]
    ),
    "a header of a wrong sum": lambda: built(PLAIN, wrong=b"IHDR"),
    "an unknown compression": lambda: built([(b"IHDR", IHDR[:10] + b"\1" + IHDR[11:]), *PLAIN[1:]]),
    "an unknown filter method": lambda: built([(b"IHDR", IHDR[:11] + b"\1" + IHDR[12:]), *PLAIN[1:]]),
    "a file that ends in its pixels": lambda: built(PLAIN)[:-200],
}


def unprepared(tmp_path: Path, encoded: bytes) -> list[np.ndarray | None]:
    """The image as evaluation on a shard of it sees a part, uint8 [20, 20, 3], or None if it is damaged: by DALI, and
    by Pillow in its place."""
    write_rows(tmp_path / "foreign.parquet", [encoded], [0])
    reader, seen = ShardReader(open_split(str(tmp_path / "foreign.parquet"))), []
    for decoder in (DaliDecoder(max_batch=1, num_threads=1, device=torch.device("cpu")), PillowDecoder(num_threads=1)):
        ((request, pixels),) = decoder.decode(
            streams.evaluation_requests(reader, range(1), 1, crop=20, shorter_side=60)
        )
        seen.append(None if request.damaged else pixels[0].numpy())
    return seen


@pytest.mark.parametrize("kind", INTACT)
def test_what_costs_no_pixel_is_no_damage_to_preparing_training_and_serving(tmp_path: Path, kind: str) -> None:
    encoded = INTACT[kind]()
    np.testing.assert_array_equal(np.asarray(decode(encoded)), PIXELS)
    made = ingest(encoded).encoded
    np.testing.assert_array_equal(dali(made), PIXELS)
    assert oddity(np.frombuffer(made, np.uint8)) is None
    for seen in unprepared(tmp_path, encoded):
        np.testing.assert_array_equal(seen, PIXELS[20:40, 30:50])


@pytest.mark.parametrize("kind", DAMAGED)
def test_what_lacks_pixels_is_damaged_to_preparing_training_and_serving(tmp_path: Path, kind: str) -> None:
    encoded = DAMAGED[kind]()
    with pytest.raises(DamagedError) as caught:
        ingest(encoded)
    assert "\n" not in str(caught.value)
    assert unprepared(tmp_path, encoded) == [None, None]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (80, 60), (9, 1)])
def test_what_pillow_writes_has_neither_faults_nor_missing_pixels(mode: str, size: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    assert png.fault(list(png.chunks(buffer.getvalue()))) is None
    png.check_pixels(buffer.getvalue())


def test_rotation_is_kept_where_other_metadata_is_damaged() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    parts = beside((b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")), TEXT)
    assert decode(built(parts, wrong=b"tEXt"), upright=True).size == (60, 80)
    assert decode(built(parts, wrong=b"eXIf"), upright=True).size == (80, 60)


def test_a_pointer_of_git_lfs_is_named_with_what_brings_the_file() -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 109\n"
    with pytest.raises(DamagedError, match="a Git LFS pointer: run git lfs pull"):
        decode(pointer)
