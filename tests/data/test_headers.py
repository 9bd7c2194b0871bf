"""Sizes by header; oracle: PIL."""

import io

import numpy as np
import pytest
from oracle.pictures import jpeg, real, smooth
from PIL import Image

from dist_resnet.data.headers import check_whole, picture_size
from dist_resnet.data.parquet import read_row_group


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
def test_the_size_of_any_picture_is_found(options: dict) -> None:
    assert picture_size(np.frombuffer(jpeg(smooth(37, 53, 0), **options), np.uint8)) == (37, 53)


def test_a_rotated_picture_keeps_its_stored_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert picture_size(np.frombuffer(jpeg(smooth(37, 53, 0), exif=exif), np.uint8)) == (37, 53)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xd8\xff", b"<html>", b"\xff\xd8" + b"garbage" * 9, b"\x89PNG\r\n\x1a\n"]
)
def test_bytes_that_are_no_picture_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="are no picture header"):
        picture_size(np.frombuffer(content, np.uint8))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "CMYK"}, {"format": "PNG"}, {"format": "BMP"}])
@pytest.mark.parametrize("after", [b"", bytes(9000), b"\n"])
def test_a_whole_picture_is_whole_whatever_follows_it(options: dict, after: bytes) -> None:
    check_whole(
        np.frombuffer(jpeg(smooth(37, 53, 0), **options) + after[: 3000 if "format" in options else None], np.uint8)
    )


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"format": "PNG"}, {"exif": "thumbnail"}])
@pytest.mark.parametrize("missing", [2, 12, 300])
def test_a_picture_that_is_cut_short_is_found_where_pil_finds_it(options: dict, missing: int) -> None:
    if "exif" in options:
        # A thumbnail has an end of its own, before the picture's.
        options = {"exif": b"Exif\0\0" + jpeg(smooth(30, 30, 1))}
    encoded = jpeg(smooth(337, 353, 0), **options)[:-missing]
    with pytest.raises(ValueError, match="is cut short"):
        check_whole(np.frombuffer(encoded, np.uint8))
    if options.get("format") != "PNG" or missing > 12:  # PIL does not miss a PNG's last chunk, DALI does
        with pytest.raises(OSError, match="truncated"):
            Image.open(io.BytesIO(encoded)).load()


def test_the_real_pictures_have_the_sizes_that_pil_sees() -> None:
    split = real("imagenet-sample/*.parquet")
    for number in range(split.num_row_groups):
        for image in read_row_group(split, number).images:
            check_whole(image)
            assert picture_size(image) == Image.open(io.BytesIO(image.tobytes())).size[::-1]
