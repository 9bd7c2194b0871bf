"""Sizes by header; oracle: PIL."""

import io

import numpy as np
import pytest
from oracle.pictures import jpeg, real, smooth
from PIL import Image

from dist_resnet.data.headers import picture_size
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


def test_the_real_pictures_have_the_sizes_that_pil_sees() -> None:
    split = real("imagenet-sample/*.parquet")
    for number in range(split.num_row_groups):
        for image in read_row_group(split, number).images:
            assert picture_size(image) == Image.open(io.BytesIO(image.tobytes())).size[::-1]
