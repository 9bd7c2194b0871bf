"""What a file is by its first bytes; oracle: Pillow, which writes each format and opens what is taken."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
from oracle.images import jpeg, smooth
from PIL import Image

from dist_resnet.data.image.kinds import HEAD_BYTES, IMAGES, is_named_image, kind_of

PIXELS = smooth(20, 30, 1)


def encode(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "encoded"),
    [
        ("JPEG", jpeg(PIXELS)),
        ("JPEG", jpeg(PIXELS, progressive=True, mode="CMYK")),
        ("PNG", encode("PNG")),
        ("GIF", encode("GIF")),
        ("BMP", encode("BMP")),
        ("WebP", encode("WEBP", lossless=True)),
        ("AVIF", encode("AVIF")),
        ("TIFF", encode("TIFF")),
        ("TIFF", encode("TIFF", big_tiff=True)),
        ("JPEG 2000", encode("JPEG2000")),
        ("JPEG 2000", encode("JPEG2000", no_jp2=True)),
        ("PNM", encode("PPM")),
        ("PNM", b"P2\n# by hand\n2 2\n255\n0 9 9 0\n"),
        ("QOI", encode("QOI")),
    ],
)
def test_what_pillow_writes_is_an_image_under_any_name(kind: str, encoded: bytes) -> None:
    assert kind in IMAGES
    for name in ("a", "a.jfif", "a.jpe", "a.dat", "a.txt", "a.JPG"):
        assert kind_of(name, encoded[:HEAD_BYTES]) == kind
    Image.open(io.BytesIO(encoded)).load()


def packed() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.jpg", b"x")
    return buffer.getvalue()


def taped() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
    return buffer.getvalue()


def saved() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, PIXELS)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "name", "content"),
    [
        ("empty", "a", b""),
        ("HEIC", "a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        ("HEIC", "a", b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic"),
        ("video", "a.mp4", b"\0\0\0\x18ftypisom\0\0\2\0isommp41"),
        ("JPEG XL", "a.jxl", b"\xff\x0a" + bytes(20)),
        ("camera raw", "a.NEF", encode("TIFF")),
        ("camera raw", "a", b"II*\0\x10\0\0\0CR\2\0"),
        ("PDF", "a.pdf", b"%PDF-1.7\n"),
        ("SVG", "a.svg", b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>'),
        ("HTML", "a", b"\r\n<!DOCTYPE html><title>404</title>"),
        ("XML", "a.xml", b"<?xml version='1.0'?><annotation/>"),
        ("text (.txt)", "a.txt", "BMW, große Wörter\n".encode()),
        ("text (.txt)", "a.txt", b"P1 is the first player, P2 20 the second"),
        ("Git LFS pointer", "a", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        ("unknown (.db)", "a.db", bytes(range(40))),
        ("unknown", "a", bytes(range(40))),
        ("zip", "a", packed()),
        ("tar", "a", taped()),
        ("NumPy", "a.npy", saved()),
    ],
)
def test_what_is_no_image_is_told_by_its_kind(kind: str, name: str, content: bytes) -> None:
    assert kind_of(name, content[:HEAD_BYTES]) == kind
    assert kind not in IMAGES


def test_the_usual_endings_need_no_look_at_the_bytes() -> None:
    assert is_named_image("n01440764_10026.JPEG")
    assert not any(is_named_image(name) for name in ("a", "a.jfif", "a.txt", "jpg", "a.jpg.txt"))
