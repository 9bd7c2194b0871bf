"""Odd images on their way in; oracle: Pillow's and NumPy's pixels, and DALI's own decoder on what enters the set."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from jobs.inside import run_inside
from nvidia.dali import fn, pipeline_def
from oracle.images import jpeg, smooth
from oracle.sources import prepare_here, prepared_rows, small_images, write_folders
from PIL import Image

from dist_resnet.data.image import headers
from dist_resnet.data.image import ingest as module
from dist_resnet.data.image.ingest import DamagedError, Ingested, Shrink, difference, ingest

PIXELS = smooth(60, 80, 1)


def dali(encoded: bytes) -> np.ndarray:
    """What DALI's decoder on the CPU makes of an image: uint8 [H, W, 3]."""

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipeline():
        source = fn.external_source(lambda: [np.frombuffer(encoded, np.uint8)])
        return fn.decoders.image(source, device="cpu", adjust_orientation=False)

    built = pipeline()
    built.build()
    (decoded,) = built.run()
    return np.array(decoded.at(0))


def pillow(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, color: int, raw: bytes) -> bytes:
    """A PNG of any bit depth and color type, written by hand."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def sixteen_bits(channels: int) -> tuple[bytes, np.ndarray]:
    """A 16-bit PNG of noise, and the high bytes of its values: uint8 [H, W, channels]."""
    values = np.random.default_rng(channels).integers(0, 1 << 16, (40, 50, channels), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(50, 40, 16, {1: 0, 3: 2}[channels], rows), (values >> 8).astype(np.uint8)


def assert_kept(encoded: bytes) -> None:
    assert ingest(encoded) == Ingested(encoded=encoded)
    difference = np.abs(dali(encoded).astype(int) - pillow(encoded))
    assert difference.max() <= 1


def test_a_cmyk_jpeg_is_kept_and_read_as_pillow_reads_it() -> None:
    assert_kept(jpeg(PIXELS, mode="CMYK"))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_cmyk_jpeg_without_adobes_marker_becomes_a_png_of_pillows_colors(progressive: bool) -> None:
    encoded = jpeg(PIXELS, mode="CMYK", progressive=progressive)
    marker = encoded.index(b"\xff\xee\x00\x0eAdobe")
    bare = encoded[:marker] + encoded[marker + 16 :]
    assert np.abs(dali(bare).astype(int) - pillow(bare)).mean() > 100  # which is why
    made = ingest(bare)
    assert made.converted == "CMYK JPEG without Adobe's marker"
    np.testing.assert_array_equal(pillow(made.encoded), pillow(bare))
    np.testing.assert_array_equal(dali(made.encoded), pillow(bare))


def bmp(bits: int, compression: int, data: bytes, extra: bytes = b"", header: int = 40) -> bytes:
    """A BMP of 40 x 30 pixels, written by hand; `extra`: bit masks or palette; `header`: 40, or 12 as once was."""
    if header == 12:
        fields = struct.pack("<IHHHH", 12, 40, 30, 1, bits)
    else:
        fields = struct.pack("<IiiHHIIiiII", 40, 40, 30, 1, bits, compression, len(data), 2835, 2835, 0, 0)
    start = 14 + len(fields) + len(extra)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + fields + extra + data


def noise(num_bytes: int) -> bytes:
    return np.random.default_rng(0).integers(0, 256, num_bytes, dtype=np.uint8).tobytes()


@pytest.mark.parametrize(
    "encoded",
    [
        bmp(16, 0, noise(2 * 40 * 30)),
        bmp(16, 3, noise(2 * 40 * 30), struct.pack("<III", 0xF800, 0x7E0, 0x1F)),
        bmp(32, 3, noise(4 * 40 * 30), struct.pack("<III", 0xFF000000, 0xFF0000, 0xFF00)),
        bmp(4, 2, b"".join(bytes([40, 7 * row, 0, 0]) for row in range(30)) + b"\0\1", noise(16 * 4)),
    ],
    ids=["RGB555", "RGB565", "XBGR", "RLE4"],
)
def test_a_bmp_that_the_decoder_reads_otherwise_or_not_at_all_becomes_a_png(encoded: bytes) -> None:
    made = ingest(encoded)
    assert made.converted == "16-bit or compressed BMP"
    np.testing.assert_array_equal(dali(made.encoded), pillow(encoded))


@pytest.mark.parametrize("bits", [1, 4, 8, 24, 32])
def test_a_plain_bmp_is_kept_at_any_other_depth(bits: int) -> None:
    stride = (40 * bits + 31) // 32 * 4
    assert_kept(bmp(bits, 0, noise(30 * stride), noise(4 << bits) if bits <= 8 else b""))


def test_a_bmp_with_the_oldest_header_is_kept() -> None:
    assert_kept(bmp(24, 0, noise(30 * 120), header=12))


def test_a_png_is_kept_whatever_it_is_called() -> None:
    assert_kept(jpeg(PIXELS, format="PNG"))
    assert_kept(jpeg(PIXELS, format="PNG", mode="P"))
    assert_kept(jpeg(PIXELS, format="PNG", mode="L"))
    assert_kept(jpeg(PIXELS, format="PNG", mode="1"))


@pytest.mark.parametrize("options", [{"format": "PNG", "mode": "RGBA"}, {"format": "PNG", "mode": "LA"}])
def test_an_alpha_channel_goes_with_no_pixel_changed_where_it_hides_none(options: dict) -> None:
    encoded = jpeg(PIXELS, **options)
    made = ingest(encoded)
    assert made.converted == "PNG with transparency"
    np.testing.assert_array_equal(dali(made.encoded), pillow(encoded))


def test_a_grayscale_jpeg_is_kept() -> None:
    assert_kept(jpeg(PIXELS, mode="L"))


def test_exif_rotation_stays_in_the_bytes_and_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    encoded = jpeg(PIXELS, exif=exif)
    assert ingest(encoded).encoded == encoded
    assert dali(encoded).shape == PIXELS.shape
    assert np.abs(dali(encoded).astype(int) - pillow(encoded)).max() <= 1


@pytest.mark.parametrize("options", [{"progressive": True}, {"format": "BMP"}, {"format": "WEBP"}])
def test_what_the_decoder_reads_as_pillow_does_is_kept(options: dict) -> None:
    assert_kept(jpeg(PIXELS, **options))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_16_bit_png_becomes_one_of_the_high_bytes(channels: int) -> None:
    encoded, high = sixteen_bits(channels)
    made = ingest(encoded)
    assert made.converted == "16-bit PNG"
    expected = np.broadcast_to(high, (40, 50, 3))
    np.testing.assert_array_equal(pillow(made.encoded), expected)
    np.testing.assert_array_equal(dali(made.encoded), expected)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI"])
def test_what_the_decoder_reads_otherwise_or_not_at_all_becomes_a_png_of_the_same_pixels(kind: str) -> None:
    encoded = jpeg(PIXELS, format=kind)
    made = ingest(encoded)
    assert made.converted == kind
    assert made.encoded[:4] == b"\x89PNG"
    np.testing.assert_array_equal(dali(made.encoded), pillow(encoded))


def test_the_first_frame_of_a_animated_image_counts() -> None:
    frames = [Image.fromarray(smooth(30, 40, n)).quantize(64) for n in range(3)]
    for kind, reason in (("GIF", "GIF"), ("WEBP", "animated WEBP")):
        buffer = io.BytesIO()
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], lossless=True)
        made = ingest(buffer.getvalue())
        assert made.converted == reason
        np.testing.assert_array_equal(dali(made.encoded), np.asarray(frames[0].convert("RGB")))


def test_a_16_bit_tiff_becomes_a_png_of_the_high_bytes() -> None:
    values = np.random.default_rng(0).integers(0, 1 << 16, (40, 50), dtype=np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF")
    made = ingest(buffer.getvalue())
    assert made.converted is not None
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(made.encoded))), values >> 8)


def test_values_of_neither_8_nor_16_bits_are_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.linspace(0, 1, 6000, dtype=np.float32).reshape(60, 100)).save(buffer, "TIFF")
    for shrink in (None, Shrink(shorter_side=32)):
        with pytest.raises(DamagedError, match="floating-point values"):
            ingest(buffer.getvalue(), shrink)
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(buffer, "TIFF")
    with pytest.raises(DamagedError, match="values of 70000 to 70000"):
        ingest(buffer.getvalue())


@pytest.mark.parametrize(("width", "height"), [(10_001, 10_000), (40_000, 40_000)])
def test_an_image_of_more_than_a_hundred_megapixels_is_refused_unread(width: int, height: int) -> None:
    with pytest.raises(DamagedError, match="more than 100 megapixels"):
        ingest(png(width, height, 8, 2, b""))


def test_the_largest_image_allowed_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "MOST_MEGAPIXELS", 60 * 80 / 1e6)
    ingest(jpeg(PIXELS))
    with pytest.raises(DamagedError, match="81 x 60 is more than"):
        ingest(jpeg(smooth(60, 81, 1)))


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (b"", "no bytes"),
        (b"<html>not found</html>", "not an image: 22 bytes that begin with 3c68746d6c3e6e6f"),
        (jpeg(PIXELS)[:-100], "truncated"),
        (jpeg(PIXELS)[:300], "."),
        (b"\xff\xd8\xff\xe0" + bytes(500), "."),
        (jpeg(PIXELS, format="PNG")[:-50], "."),
        (png(50, 40, 8, 2, b"\0" * 100), "."),
    ],
)
def test_bytes_that_are_no_whole_image_are_refused_with_the_reason(encoded: bytes, reason: str) -> None:
    with pytest.raises(DamagedError, match=reason) as caught:
        ingest(encoded)
    assert str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_image_that_one_window_would_not_show_is_refused() -> None:
    whole = jpeg(smooth(400, 400, 2), quality=95)
    with pytest.raises(DamagedError, match="truncated"):
        ingest(whole[: len(whole) * 9 // 10])


def test_shrinking_brings_the_shorter_side_down_and_leaves_small_images_alone() -> None:
    shrink = Shrink(shorter_side=100, quality=80)
    large, small = jpeg(smooth(300, 450, 3), quality=95), jpeg(smooth(90, 400, 4))
    made = ingest(large, shrink)
    assert made.shrunk
    assert Image.open(io.BytesIO(made.encoded)).size == (150, 100)
    assert ingest(small, shrink) == Ingested(encoded=small)
    tall = Image.open(io.BytesIO(ingest(jpeg(smooth(450, 300, 3), quality=95), shrink).encoded))
    assert tall.size == (100, 150)


def test_an_image_that_would_grow_is_not_shrunk() -> None:
    encoded = jpeg(smooth(110, 110, 3), quality=20)
    assert ingest(encoded, Shrink(shorter_side=100, quality=100)) == Ingested(encoded=encoded)


def test_an_image_that_would_be_too_long_for_a_jpeg_is_not_shrunk() -> None:
    encoded = jpeg(np.zeros((300, 80_000, 3), np.uint8), format="PNG")
    assert ingest(encoded, Shrink(shorter_side=256)) == Ingested(encoded=encoded)
    longest = jpeg(np.zeros((300, 76_757, 3), np.uint8), format="PNG", compress_level=0)
    assert Image.open(io.BytesIO(ingest(longest, Shrink(shorter_side=256)).encoded)).size == (65_499, 256)


def test_an_image_that_cannot_be_encoded_again_counts_as_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST_JPEG_SIDE", 100_000)  # longer than libjpeg has it
    encoded = jpeg(np.zeros((300, 80_000, 3), np.uint8), format="PNG")
    with pytest.raises(DamagedError, match=r"80000 x 300 in RGB that cannot be encoded again \(broken data stream"):
        ingest(encoded, Shrink(shorter_side=256))


def test_shrunk_colors_are_those_that_training_sees() -> None:
    encoded = jpeg(smooth(300, 450, 3), mode="CMYK", quality=98)
    made = ingest(encoded, Shrink(shorter_side=200, quality=95))
    expected = Image.open(io.BytesIO(encoded)).convert("RGB").resize((300, 200), Image.Resampling.LANCZOS)
    assert np.abs(pillow(made.encoded).astype(int) - np.asarray(expected)).mean() < 2


def test_the_difference_is_none_for_the_same_image_and_known_for_a_shift_in_brightness() -> None:
    first, second = (np.full((64, 64, 3), level, np.uint8) for level in (100, 110))
    assert difference(jpeg(first, format="PNG"), jpeg(first, format="PNG"), 256) == 0
    assert difference(jpeg(first, format="PNG"), jpeg(second, format="PNG"), 256) == 10


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"shorter_side": 31}, "at least 32 pixels, got 31"),
        ({"shorter_side": 256, "quality": 0}, "1 .. 100, got 0"),
        ({"shorter_side": 256, "quality": 101}, "1 .. 100, got 101"),
    ],
)
def test_impossible_shrinking_is_refused(values: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Shrink(**values)


def test_a_quality_of_zero_is_refused_by_the_job() -> None:
    done = run_inside("prepare_imagenet", "--source", "x", "--target", "y", "--shorter-side", "256", "--quality", "0")
    assert done.returncode == 2
    assert "--quality must be in 1 .. 100, got 0" in done.stderr


def test_the_manifest_lists_odd_and_huge_images(tmp_path: Path) -> None:
    images = small_images()
    images["train"]["n01440764"] += [
        ("png.JPEG", jpeg(PIXELS, format="PNG")),
        ("gif.JPEG", jpeg(PIXELS, format="GIF")),
        ("deep.png", sixteen_bits(1)[0]),
        ("huge.png", png(20_000, 20_000, 8, 2, b"")),
    ]
    manifest = prepare_here(write_folders(tmp_path / "source", images), tmp_path / "target")
    train = manifest["splits"]["train"]
    converted = {one["image"]: one["reason"] for one in train["converted"]}
    assert converted == {"train/n01440764/gif.JPEG": "GIF", "train/n01440764/deep.png": "16-bit PNG"}
    assert [one["image"] for one in train["damaged"]] == ["train/n01440764/huge.png"]
    assert train["damaged"][0]["reason"] == "more than 100 megapixels"
    rows = {name: one for name, one, _ in prepared_rows(tmp_path / "target", "train")}
    assert rows["png.JPEG"] == jpeg(PIXELS, format="PNG")
    np.testing.assert_array_equal(dali(rows["gif.JPEG"]), pillow(jpeg(PIXELS, format="GIF")))
    assert "huge.png" not in rows
