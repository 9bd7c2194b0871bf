"""Mean and deviation of colors. Oracle: NumPy in float64 over the pixels, and CIFAR-10's published numbers."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from oracle.images import REAL, jpeg, smooth
from oracle.sources import prepare_here, small_images, write_folders
from PIL import Image

from dist_resnet.data.datasets import DATASETS
from dist_resnet.data.image.colors import added, color_moments, mean_and_deviation
from dist_resnet.data.image.ingest import Shrink
from dist_resnet.data.image.pixels import decode

PIXELS = [np.random.default_rng(n).integers(0, 256, (5 + n, 9, 3), dtype=np.uint8) for n in range(4)]


def of(images: list[Image.Image]) -> tuple[list[float], list[float]]:
    return mean_and_deviation(added(map(color_moments, images)), len(images))


def expected(images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Each image equally: the mean of the images' means, and the deviation around it."""
    mean = np.mean([np.mean(image / 255, axis=(0, 1)) for image in images], axis=0)
    squares = np.mean([np.mean((image / 255 - mean) ** 2, axis=(0, 1)) for image in images], axis=0)
    return mean, np.sqrt(squares)


def test_every_image_counts_equally_whatever_its_size():
    found = of([Image.fromarray(image) for image in PIXELS])
    np.testing.assert_allclose(found, expected(PIXELS), atol=6e-7)
    assert not np.allclose(
        found[0], np.concatenate([image.reshape(-1, 3) for image in PIXELS]).mean(0) / 255, atol=1e-4
    )


def test_the_sums_do_not_depend_on_the_order():
    moments = [color_moments(Image.fromarray(image)) for image in PIXELS]
    assert added(moments) == added(moments[::-1])


def test_images_of_one_color_have_no_deviation():
    assert of([Image.new("RGB", (7, 3), (51, 0, 255))] * 3) == ([0.2, 0.0, 1.0], [0.0, 0.0, 0.0])


@pytest.mark.skipif(not REAL.exists(), reason="there is no CIFAR-10 beside the repository")
def test_cifar_has_nearly_its_published_mean_and_deviation():
    """The copy here holds JPEGs, whose pixels differ a little from CIFAR's own."""
    rows = pq.read_table(sorted(REAL.glob("cifar10/*.parquet"))[0]).to_pylist()[:2000]
    images = [decode(row.get("img", row.get("image"))["bytes"]) for row in rows]
    known = DATASETS["cifar10"].normalization
    np.testing.assert_allclose(of(images), (known.mean, known.std), atol=0.01)


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("shrink", [None, Shrink(shorter_side=32)])
def test_preparing_measures_the_pixels_that_it_stores(tmp_path: Path, shrink: Shrink | None):
    images = small_images()
    synset, other = list(images["train"])[:2]
    gray = smooth(60, 50, 1)[..., 0]
    seen = np.dstack([smooth(60, 50, 2), np.full((60, 50), 128, np.uint8)])
    images["train"][synset] += [("gray.png", encoded(gray, "PNG")), ("transparent.png", encoded(seen, "PNG"))]
    images["train"][synset] += [("large.bmp", encoded(smooth(90, 70, 3), "BMP"))]
    images["train"][other] += [("damaged.jpg", jpeg(smooth(40, 40, 4))[:-60])]
    manifest = prepare_here(write_folders(tmp_path / "source", images), tmp_path / "target", shrink=shrink)
    for split in ("train", "validation"):
        stored = [
            np.asarray(decode(row["image"]["bytes"]))
            for file in (tmp_path / "target").glob(f"{split}-*.parquet")
            for row in pq.read_table(file).to_pylist()
        ]
        entry = manifest["splits"][split]
        assert entry["images"] == len(stored)
        np.testing.assert_allclose((entry["mean"], entry["std"]), expected(stored), atol=6e-7)
    assert (manifest["splits"]["train"]["shrunk"] > 0) == (shrink is not None)
