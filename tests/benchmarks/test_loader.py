"""benchmarks/loader.py as people run it; oracle: the rows its table must have, and that bare decoding costs less."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pytest
from oracle.images import jpeg, smooth

from dist_resnet.data.shards.write import encode_table, write_table

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "loader.py"


@pytest.fixture
def shards(tmp_path: Path) -> str:
    images = [jpeg(smooth(200 + 10 * n, 300, n)) for n in range(8)]
    table = encode_table(images, [f"{n}.jpg" for n in range(8)], np.arange(8) % 3, ["a", "b", "c"])
    write_table(pafs.LocalFileSystem(), str(tmp_path / "shards/0.parquet"), table, rows_per_group=4)
    return str(tmp_path / "shards")


def cells(text: str, title: str) -> list[list[str]]:
    """The rows of the table under a title."""
    table = text.partition(f"## {title}\n\n")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_loader_is_measured_beside_bare_decoding(shards: str, tmp_path: Path) -> None:
    result = tmp_path / "result.md"
    options = ["--contestants", "prepared", "bare", "--rounds", "1", "--seconds", "0.1", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--data", shards, "--result", str(result), *options],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    if "left out: bare" in done.stdout:
        pytest.skip("libjpeg-turbo's headers are not installed")
    text = result.read_text()
    for title in ("train, real images", "evaluation, real images", "train, mixed images"):
        ours, bare = cells(text, title)
        # CPU-ms over bare decoding's: decoding and the rest cost more than decoding alone.
        assert float(bare[4]) < 1.0 < float(ours[6])
        assert bare[5:] == ours[3:5] == ["1.00", "1.00"]


def test_an_image_that_libjpeg_turbo_cannot_decode_is_not_counted_as_decoded(tmp_path: Path) -> None:
    """jpeg_windows.c on a good JPEG, one cut short in its header, and no JPEG at all."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    from loader import build_bare

    if reason := build_bare(tmp_path):
        pytest.skip(f"libjpeg-turbo's headers are not installed ({reason})")
    import ctypes

    library = ctypes.CDLL(str(tmp_path / "jpeg_windows.so"))
    good = jpeg(smooth(60, 80, 0))
    images = [np.frombuffer(image, np.uint8) for image in (good, good[:100], b"GIF89a" + bytes(90), good)]
    columns = [
        np.array([image.ctypes.data for image in images], np.uintp),
        np.array([len(image) for image in images], np.uintp),
        np.array([[10, 20, 30, 40]] * 4, np.int32),
    ]
    pointers = [column.ctypes.data_as(ctypes.c_void_p) for column in columns]
    assert library.decode_windows(*pointers, 4, 2) == 2
