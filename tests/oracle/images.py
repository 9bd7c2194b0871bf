"""Images and shards for the tests of the data floor."""

import io
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pytest
from PIL import Image

from dist_resnet.data.shards.reader import RowGroup, ShardReader
from dist_resnet.data.shards.split import Split, open_split
from dist_resnet.data.shards.write import encode_table, write_table
from dist_resnet.recipe import Augment, Data, Model, Recipe

REAL = Path(__file__).parents[3] / "shared" / "data"


def smooth(height: int, width: int, seed: int) -> np.ndarray:
    """An image of gentle gradients, uint8 [height, width, 3], as photographs are at the scale of a pixel."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def jpeg(pixels: np.ndarray, **options: object) -> bytes:
    """Encodes an image as JPEG; `mode` converts it before."""
    image = Image.fromarray(pixels).convert(str(options.pop("mode", "RGB")))
    buffer = io.BytesIO()
    image.save(buffer, str(options.pop("format", "JPEG")), **{"quality": 90, **options})
    return buffer.getvalue()


def write_split(folder: Path, rows_per_shard: list[int], *, rows_per_group: int = 10, side: int | None = None) -> Split:
    """Writes shards of small JPEGs whose label is their index modulo 10, and opens them."""
    index = 0
    for number, rows in enumerate(rows_per_shard):
        here = range(index, index + rows)
        images = [jpeg(smooth(side or 24 + i % 9, side or 40 - i % 7, i)) for i in here]
        write_rows(folder / f"part-{number:03d}.parquet", images, [i % 10 for i in here], rows_per_group)
        index += rows
    return open_split(str(folder))


def read_row_group(split: Split, number: int) -> RowGroup:
    """Reads row group `number` of a split."""
    return ShardReader(split).read(number)


def write_rows(file: Path, images: list[bytes], labels: list[int], rows_per_group: int = 10) -> None:
    """Writes one shard of the given images."""
    table = encode_table(images, ["x.jpg"] * len(images), np.array(labels, np.int64), [f"class {n}" for n in range(10)])
    write_table(pafs.LocalFileSystem(), str(file), table, rows_per_group=rows_per_group)


def recipe(**changes: object) -> Recipe:
    """A recipe of small images: 4 ghost batches of 4."""
    augment = changes.pop("augment", Augment(kind="inception", size=16))
    values: dict = {"global_batch": 16, "ghost_batch": 4, "seed": 3, **changes}
    return Recipe(
        model=Model(depth=20, num_classes=10), data=Data(train="t", validation="v"), augment=augment, **values
    )


def real(pattern: str) -> Split:
    """A split of the real images beside the project root, or a skip where they are absent."""
    if not list(REAL.glob(pattern)):
        pytest.skip(f"the real images {pattern} are not in ../shared/data beside the project")
    return open_split(str(REAL / pattern))
