"""The kind of a file by its first bytes: an image that can be prepared, or something else."""

import os
import re

HEAD_BYTES = 512
"""The number of first bytes that determine a file's kind."""
# A file with such an ending is an image, possibly a damaged one: preparing reads its bytes.
_ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")
_BEGINNINGS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"qoif", "QOI"),
    # The kinds that follow cannot be prepared.
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"8BPS", "Photoshop"),
    (b"IIRO", "camera raw"),
    (b"IIRS", "camera raw"),
    (b"IIU\0", "camera raw"),
    (b"FUJIFILMCCD-RAW", "camera raw"),
    (b"%PDF", "PDF"),
    (b"PK\x03\x04", "zip"),
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!", "RAR"),
    (b"PAR1", "Parquet"),
    (b"\x89HDF", "HDF5"),
    (b"\x93NUMPY", "NumPy"),
    (b"MATLAB ", "MATLAB"),
    (b"SQLite format 3", "SQLite"),
    (b"\x1a\x45\xdf\xa3", "video"),
    (b"\0\0\x01\xba", "video"),
    (b"\0\0\x01\xb3", "video"),
    (b"version https://git-lfs", "Git LFS pointer"),
)
IMAGES = frozenset({"JPEG", "PNG", "GIF", "TIFF", "JPEG 2000", "QOI", "BMP", "WebP", "PNM", "AVIF"})
"""The kinds that can be prepared, as they are or converted."""
_BMP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})
_PNM = re.compile(rb"P[1-6]\s+(#[^\n]*\n\s*)*\d+\s")
# Camera files that are TIFF whose first image is a thumbnail.
_RAW_ENDINGS = (".arw", ".cr2", ".dng", ".erf", ".kdc", ".nef", ".nrw", ".pef", ".sr2", ".srf", ".srw", ".3fr", ".iiq")


def is_named_image(name: str) -> bool:
    """Whether a file has an image's ending, so that its bytes are only read when it is prepared."""
    return name.lower().endswith(_ENDINGS)


def kind_of(name: str, head: bytes) -> str:
    """The kind of a file by its first bytes, such as `JPEG`, `HEIC` or `text (.txt)`."""
    if not head:
        return "empty"
    kind = next((kind for beginning, kind in _BEGINNINGS if head.startswith(beginning)), None)
    kind = kind or _container(head) or _plain(head)
    if kind == "TIFF" and (head[8:10] == b"CR" or name.lower().endswith(_RAW_ENDINGS)):
        return "camera raw"
    if kind in ("text", "unknown"):
        ending = os.path.splitext(name)[1]
        return f"{kind} ({ending})" if ending else kind
    return kind


def _container(head: bytes) -> str | None:
    """The kind of a file in a container format that several kinds share, or None."""
    if head[:4] == b"RIFF":
        return {b"WEBP": "WebP", b"AVI ": "video", b"WAVE": "sound"}.get(head[8:12])
    if head[4:8] == b"ftyp":
        size = int.from_bytes(head[:4], "big")
        brands = [head[place : place + 4] for place in range(8, min(size, len(head)), 4)]
        if any(brand in (b"avif", b"avis") for brand in brands):
            return "AVIF"
        return "HEIC" if any(brand[:2] == b"he" or brand in (b"mif1", b"msf1") for brand in brands) else "video"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return "tar" if head[257:262] == b"ustar" else None


def _plain(head: bytes) -> str:
    """The kind of a text file, or `unknown`."""
    if _PNM.match(head):
        return "PNM"
    if any(byte < 9 or 13 < byte < 32 for byte in head):
        return "unknown"
    lower = head.lower()
    if b"<svg" in lower:
        return "SVG"
    if b"<html" in lower or b"<!doctype html" in lower:
        return "HTML"
    return "XML" if lower.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"<?xml") else "text"
