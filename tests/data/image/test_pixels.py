"""Any encoded image as pixels; oracle: NumPy's c * a + 255 * (1 - a), Pillow's conversions, DALI on what enters a set.

The images here are made so that what transparency hides differs from what it shows.
"""

import io
import logging
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from data.image.test_ingest import chunk, dali, png, sixteen_bits
from oracle.images import jpeg, smooth, write_rows
from oracle.pixels import decode_center
from PIL import Image, ImageOps, features

from dist_resnet.data.image.headers import oddity
from dist_resnet.data.image.ingest import Shrink, ingest
from dist_resnet.data.image.pixels import DamagedError, decode
from dist_resnet.data.input import streams
from dist_resnet.data.input.dali import DaliDecoder
from dist_resnet.data.shards.reader import ShardReader
from dist_resnet.data.shards.split import open_split

PIXELS = smooth(60, 80, 1)
GRAY = PIXELS[..., 0]
ALPHA = smooth(60, 80, 2)[..., 0].copy()
ALPHA[:20], ALPHA[20:25] = 0, 255


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The formula: uint8 [H, W, 3] or [H, W], and [H, W] -> float [H, W, 3]"""
    colors = np.broadcast_to(pixels.reshape(*alpha.shape, -1), (*alpha.shape, 3)) / 255
    share = (alpha / 255)[..., None]
    return 255 * (colors * share + 1 - share)


def with_transparent(bits: int, color: int, raw: bytes, transparent: bytes, palette: bytes = b"") -> bytes:
    """A PNG of 80 x 60 pixels with a chunk tRNS, written by hand."""
    whole = png(80, 60, bits, color, raw)
    chunks = (chunk(b"PLTE", palette) if palette else b"") + chunk(b"tRNS", transparent)
    return whole[:33] + chunks + whole[33:]


def rows(values: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in values)


def _rgba(kind: str, **options: object) -> Callable[[], tuple[bytes, np.ndarray]]:
    return lambda: (
        save(Image.fromarray(np.dstack([PIXELS, ALPHA])), kind, **options),
        on_white(PIXELS, ALPHA),
    )


def _gray_alpha() -> tuple[bytes, np.ndarray]:
    return save(Image.fromarray(np.dstack([GRAY, ALPHA])), "PNG"), on_white(GRAY, ALPHA)


def _palette(kind: str, transparency: int | bytes) -> tuple[bytes, np.ndarray]:
    image = Image.fromarray(PIXELS).quantize(16)
    entries = np.asarray(image)
    shares = np.frombuffer(transparency, np.uint8) if isinstance(transparency, bytes) else np.full(16, 255, np.uint8)
    if isinstance(transparency, int):
        shares = np.where(np.arange(16) == transparency, 0, 255)
    return save(image, kind, transparency=transparency), on_white(np.asarray(image.convert("RGB")), shares[entries])


def _gray_of(bits: int) -> tuple[bytes, np.ndarray]:
    """A gray PNG of 1, 2, 4, 8 or 16 bits whose value at (5, 5) is transparent."""
    values = (GRAY.astype(np.int64) << 8 | GRAY[::-1]) if bits == 16 else GRAY.astype(np.int64) >> (8 - bits)
    most = (1 << bits) - 1
    shown = values >> 8 if bits == 16 else values * 255 // most
    if bits == 16:
        packed = rows(values.astype(">u2"))
    else:
        planes = (values[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8).reshape(60, -1)
        packed = rows(np.packbits(planes, axis=1))
    hidden = int(values[5, 5])
    expected = on_white(shown.astype(np.uint8), np.where(values == hidden, 0, 255))
    return with_transparent(bits, 0, packed, struct.pack(">H", hidden)), expected


def _color_of(bits: int) -> tuple[bytes, np.ndarray]:
    """An RGB PNG of 8 or 16 bits whose color at (5, 5) is transparent."""
    values = PIXELS // 64 * 64 if bits == 8 else PIXELS.astype(np.uint16) // 64 * 64 * 257
    hidden = values[5, 5]
    alpha = np.where((values == hidden).all(2), 0, 255)
    shown = (values >> (bits - 8)).astype(np.uint8)
    packed = rows(values.astype(">u2" if bits == 16 else np.uint8))
    return with_transparent(bits, 2, packed, struct.pack(">HHH", *hidden.tolist())), on_white(shown, alpha)


def _gif() -> tuple[bytes, np.ndarray]:
    return _palette("GIF", 3)


TRANSPARENT = {
    "RGBA PNG": _rgba("PNG"),
    "gray and alpha PNG": _gray_alpha,
    "16-bit RGBA PNG": lambda: (
        png(80, 60, 16, 6, rows(np.dstack([PIXELS, ALPHA]).astype(">u2") * 257)),
        on_white(PIXELS, ALPHA),
    ),
    "palette PNG, one entry": lambda: _palette("PNG", 3),
    "palette PNG, shares": lambda: _palette("PNG", bytes(range(0, 256, 16))),
    **{f"{bits}-bit gray PNG": lambda bits=bits: _gray_of(bits) for bits in (1, 2, 4, 8, 16)},
    **{f"{bits}-bit RGB PNG": lambda bits=bits: _color_of(bits) for bits in (8, 16)},
    "lossless WebP": _rgba("WEBP", lossless=True, exact=True),
    "TIFF": _rgba("TIFF"),
    "TGA": _rgba("TGA"),
    "JPEG 2000": _rgba("JPEG2000"),
    "GIF": _gif,
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparency_is_laid_on_white(kind: str) -> None:
    encoded, expected = TRANSPARENT[kind]()
    assert expected.min() < 200
    assert (expected == 255).all(2).any()
    found = np.asarray(decode(encoded))
    assert found.dtype == np.uint8
    assert np.abs(found - expected).max() <= 1
    assert (found[(expected == 255).all(2)] == 255).all()


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_preparing_and_the_decoder_that_trains_see_the_same(kind: str) -> None:
    encoded, expected = TRANSPARENT[kind]()
    made = ingest(encoded)
    assert made.converted is not None
    assert oddity(np.frombuffer(encoded, np.uint8)) is not None
    assert oddity(np.frombuffer(made.encoded, np.uint8)) is None
    np.testing.assert_array_equal(dali(made.encoded), np.asarray(decode(encoded)))
    shrunk = ingest(encoded, Shrink(shorter_side=50, quality=98))
    small = np.asarray(Image.fromarray(expected.round().astype(np.uint8)).resize((67, 50), Image.Resampling.LANCZOS))
    if shrunk.shrunk:
        assert np.abs(dali(shrunk.encoded).astype(int) - small).mean() < 6


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "TIFF")])
def test_what_hides_nothing_changes_nothing(mode: str, kind: str) -> None:
    plain = Image.fromarray(PIXELS).convert(mode.removesuffix("A"))
    encoded = save(plain.convert(mode), kind, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(np.asarray(decode(encoded)), np.asarray(plain.convert("RGB")))


def test_a_palette_that_hides_nothing_changes_nothing() -> None:
    plain = Image.fromarray(PIXELS).quantize(16)
    encoded = save(plain, "PNG", transparency=bytes([255] * 16))
    np.testing.assert_array_equal(np.asarray(decode(encoded)), np.asarray(plain.convert("RGB")))


@pytest.mark.parametrize("channels", [1, 3])
def test_of_16_bits_the_high_byte_counts(channels: int) -> None:
    encoded, high = sixteen_bits(channels)
    np.testing.assert_array_equal(np.asarray(decode(encoded)), np.broadcast_to(high, (40, 50, 3)))


@pytest.mark.parametrize(
    "encoded",
    [
        jpeg(PIXELS),
        jpeg(PIXELS, mode="L"),
        jpeg(PIXELS, mode="CMYK"),
        jpeg(PIXELS, progressive=True),
        jpeg(PIXELS, format="PNG", mode="P"),
        jpeg(PIXELS, format="PNG", mode="1"),
        jpeg(PIXELS, format="BMP"),
        jpeg(PIXELS, format="WEBP"),
        jpeg(PIXELS, format="TIFF", mode="CMYK"),
    ],
)
def test_other_colors_are_those_of_pillow(encoded: bytes) -> None:
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(decode(encoded)), expected)


def _oriented(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(Image.fromarray(PIXELS), kind, exif=exif)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_turns_an_image_if_it_is_to_be_upright_and_else_not(orientation: int, kind: str) -> None:
    encoded = _oriented(kind, orientation)
    stored = Image.open(io.BytesIO(encoded)).convert("RGB")
    np.testing.assert_array_equal(np.asarray(decode(encoded)), np.asarray(stored))
    turned = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(decode(encoded, upright=True)), turned)


def test_a_tiff_is_turned_once_as_pillow_does_it() -> None:
    encoded = save(Image.fromarray(PIXELS), "TIFF", tiffinfo={0x0112: 6})
    for upright in (False, True):
        np.testing.assert_array_equal(np.asarray(decode(encoded, upright=upright)), np.rot90(PIXELS, -1))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x09"]
)
def test_damaged_metadata_turns_nothing(exif: bytes) -> None:
    encoded = jpeg(PIXELS, exif=exif)
    np.testing.assert_array_equal(np.asarray(decode(encoded, upright=True)), np.asarray(decode(encoded)))


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (b"", "no bytes"),
        (b"rubbish", "7 bytes that begin with 72756262697368, of an unknown format"),
        (b"  <!DOCTYPE html><p>no</p>", "markup such as HTML or SVG"),
        (b"%PDF-1.7", "a PDF"),
        (b"\0\0\0\x18ftypheic", "HEIC or a video"),
        (b'{"error": 404}', "JSON"),
        (jpeg(PIXELS)[:-100], "truncated"),
        (png(20_000, 20_000, 8, 2, b""), "more than 100 megapixels"),
        (save(Image.fromarray(GRAY.astype(np.float32)), "TIFF"), "floating-point values"),
    ],
)
def test_what_is_no_image_is_named(encoded: bytes, reason: str) -> None:
    with pytest.raises(DamagedError, match=reason) as caught:
        decode(encoded, upright=True)
    assert "\n" not in str(caught.value)


def test_shards_that_were_not_prepared_are_read_by_the_same_rule(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = [TRANSPARENT[kind]()[0] for kind in TRANSPARENT] + [sixteen_bits(1)[0], sixteen_bits(3)[0]]
    images = [jpeg(PIXELS, format="PNG"), *odd, jpeg(PIXELS, format="PNG", mode="L"), b"rubbish"]
    images.append(TRANSPARENT["RGBA PNG"]()[0][:-400])
    write_rows(tmp_path / "foreign.parquet", images, [0] * len(images))
    split = open_split(str(tmp_path / "foreign.parquet"))
    streams._warn_once.cache_clear()
    requests = streams.evaluation_requests(ShardReader(split), range(len(images)), 64, crop=32, shorter_side=32)
    with caplog.at_level(logging.WARNING, logger="dist_resnet"):
        ((request, pixels),) = DaliDecoder(max_batch=64, num_threads=1, device=torch.device("cpu")).decode(requests)
    assert sorted(request.damaged) == [len(images) - 2, len(images) - 1]
    for ours, encoded in zip(pixels.numpy(), images[:-2], strict=False):
        assert np.abs(ours.astype(int) - decode_center(encoded, 32, 32)).max() <= 1
    said = [record.getMessage() for record in caplog.records if "converted each time" in record.getMessage()]
    assert len(said) == len(set(said)) > 2


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_laid_on_white_too() -> None:
    encoded, expected = _rgba("AVIF", quality=100, subsampling="4:4:4")()
    assert np.abs(np.asarray(decode(encoded)) - expected).mean() < 2


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
@pytest.mark.parametrize("apart", [True, False])
def test_an_animated_png_is_the_image_that_pillow_shows(tmp_path: Path, mode: str, apart: bool) -> None:
    first, later = Image.fromarray(PIXELS).convert(mode), Image.fromarray(255 - PIXELS).convert(mode)
    encoded = save(first, "PNG", save_all=True, append_images=[later, first], default_image=apart)
    assert b"acTL" in encoded
    expected = np.asarray(first.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(decode(encoded)), expected)
    made = ingest(encoded)
    assert made.converted == "animated PNG"
    np.testing.assert_array_equal(dali(made.encoded), expected)
    write_rows(tmp_path / "foreign.parquet", [encoded], [0])
    reader = ShardReader(open_split(str(tmp_path)))
    requests = streams.evaluation_requests(reader, range(1), 1, crop=60, shorter_side=60)
    ((_, pixels),) = DaliDecoder(max_batch=1, num_threads=1, device=torch.device("cpu")).decode(requests)
    np.testing.assert_array_equal(pixels[0].numpy(), expected[:, 10:70])


def test_a_chunk_behind_the_pixels_is_no_transparency() -> None:
    whole = jpeg(PIXELS, format="PNG")
    late = whole[:-12] + chunk(b"tRNS", struct.pack(">HHH", 0, 0, 0)) + whole[-12:]
    assert oddity(np.frombuffer(late, np.uint8)) is None


def test_postscript_is_no_image_for_reading_it_would_execute_it() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, "EPS")
    with pytest.raises(DamagedError, match="PostScript"):
        decode(buffer.getvalue())
