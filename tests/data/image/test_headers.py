"""Sizes by header; oracle: PIL."""

import io
import struct
import zlib

import numpy as np
import pytest
from data.image.test_ingest import dali
from oracle.images import jpeg, read_row_group, real, smooth
from PIL import Image

from dist_resnet.data.image.headers import check_whole, image_size
from dist_resnet.data.image.ingest import ingest
from dist_resnet.data.image.pixels import decode
from dist_resnet.data.input.streams import image_sizes


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "L"},
        {"mode": "CMYK"},
        {"progressive": True},
        {"format": "PNG"},
        {"format": "BMP"},
        {"format": "WEBP"},
        {"exif": b"Exif\0\0" + bytes(60000)},
        {"icc_profile": bytes(200_000)},
        {"comment": b"\xff\xc0" * 50},
    ],
)
def test_the_size_of_any_image_is_found(options: dict) -> None:
    assert image_size(np.frombuffer(jpeg(smooth(37, 53, 0), **options), np.uint8)) == (37, 53)


def test_a_rotated_image_keeps_its_stored_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert image_size(np.frombuffer(jpeg(smooth(37, 53, 0), exif=exif), np.uint8)) == (37, 53)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xd8\xff", b"<html>", b"\xff\xd8" + b"garbage" * 9, b"\x89PNG\r\n\x1a\n"]
)
def test_bytes_that_are_no_image_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="are not an image header"):
        image_size(np.frombuffer(content, np.uint8))


def claiming(width: int, height: int, format: str) -> bytes:
    """A small image whose header claims another size."""
    encoded = bytearray(jpeg(smooth(16, 16, 0), format=format))
    if format == "PNG":
        encoded[16:24] = struct.pack(">II", width, height)
        encoded[29:33] = struct.pack(">I", zlib.crc32(encoded[12:29]))
    else:
        frame = encoded.index(b"\xff\xc0")
        encoded[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(encoded)


def test_a_size_that_pillow_will_not_open_is_no_size() -> None:
    bomb = b"qoif" + struct.pack(">IIBB", 60_000, 60_000, 3, 0) + bytes(62)
    with pytest.raises(ValueError, match=r"more than 100 megapixels \(Image size \(3600000000 pixels\)"):
        image_size(np.frombuffer(bomb, np.uint8))


def test_a_header_on_which_pillow_stumbles_is_refused() -> None:
    avif = struct.pack(">I", 24) + b"ftypavif" + bytes(4) + b"avifmif1" + bytes(80)
    surface = bytearray(jpeg(smooth(16, 16, 0), format="DDS"))
    surface[80:84] = bytes(4)  # no pixel format at all
    for content in (avif, bytes(surface)):
        with pytest.raises(ValueError, match="are not an image header"):
            image_size(np.frombuffer(content, np.uint8))


def test_an_image_of_more_than_a_hundred_megapixels_counts_as_damaged_whatever_its_format() -> None:
    images = [
        claiming(65_535, 65_535, "JPEG"),
        claiming(10_001, 10_000, "PNG"),
        claiming((1 << 32) - 1, (1 << 32) - 1, "PNG"),
        b"qoif" + struct.pack(">IIBB", 60_000, 60_000, 3, 0) + bytes(62),
        claiming(10_000, 10_000, "JPEG"),
    ]
    heights, widths, damaged = image_sizes([np.frombuffer(image, np.uint8) for image in images])
    assert (heights.tolist(), widths.tolist()) == ([1, 1, 1, 1, 10_000], [1, 1, 1, 1, 10_000])
    assert damaged.keys() == {0, 1, 2, 3}
    assert damaged[0] == "65535 x 65535 is more than 100 megapixels"
    assert damaged[1] == "10001 x 10000 is more than 100 megapixels"
    assert damaged[2] == "4294967295 x 4294967295 is more than 100 megapixels"
    assert damaged[3] == "more than 100 megapixels"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "CMYK"}, {"format": "PNG"}, {"format": "BMP"}])
@pytest.mark.parametrize("after", [b"", bytes(9000), b"\n"])
def test_a_whole_image_is_whole_whatever_follows_it(options: dict, after: bytes) -> None:
    check_whole(
        np.frombuffer(jpeg(smooth(37, 53, 0), **options) + after[: 3000 if "format" in options else None], np.uint8)
    )


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": "thumbnail"}])
@pytest.mark.parametrize("missing", [2, 12, 300])
def test_an_image_that_is_cut_short_is_found_where_pil_finds_it(options: dict, missing: int) -> None:
    if "exif" in options:
        # A thumbnail has an end of its own, before the image's.
        options = {"exif": b"Exif\0\0" + jpeg(smooth(30, 30, 1))}
    encoded = jpeg(smooth(337, 353, 0), **options)[:-missing]
    with pytest.raises(ValueError, match="is cut short"):
        check_whole(np.frombuffer(encoded, np.uint8))
    with pytest.raises(OSError, match="truncated"):
        Image.open(io.BytesIO(encoded)).load()


def test_the_real_images_have_the_sizes_that_pil_sees() -> None:
    split = real("imagenet-sample/*.parquet")
    for number in range(split.num_row_groups):
        for image in read_row_group(split, number).images:
            check_whole(image)
            assert image_size(image) == Image.open(io.BytesIO(image.tobytes())).size[::-1]


@pytest.mark.parametrize(
    ("marker", "data"),
    [
        (0xE0, b"JFIF\0"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xEE, b"Adobe"),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_segment_that_tells_no_pixel_may_be_cut_short(marker: int, data: bytes, mode: str) -> None:
    plain = jpeg(smooth(40, 50, 1), mode=mode)
    segment = bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data
    odd = plain[:2] + segment + plain[2:]
    with pytest.raises(Image.UnidentifiedImageError):
        Image.open(io.BytesIO(odd))
    expected = np.asarray(Image.open(io.BytesIO(plain)).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(decode(odd)), expected)
    np.testing.assert_array_equal(dali(ingest(odd).encoded), dali(plain))
    assert decode(odd[:2] + jpeg_exif(6) + odd[2:], upright=True).size == (40, 50)


def jpeg_exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = exif.tobytes()
    return b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data
