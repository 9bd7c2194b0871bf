"""Generated images of ten easy classes, to try every job in minutes without a data set."""

import colorsys
import io

import numpy as np
import pyarrow.fs as pafs
from PIL import Image

from dist_resnet.data.shards.write import encode_table, write_table
from dist_resnet.storage.uri import child_uri, open_uri

CLASS_NAMES = (
    "horizontal stripes",
    "vertical stripes",
    "diagonal stripes",
    "checkerboard",
    "dots",
    "rings",
    "rays",
    "waves",
    "zigzag",
    "disc",
)
_ROWS_PER_GROUP = 32
_ROWS_PER_SHARD = 1024
_JPEG_QUALITY = 90
# Part of the folder's name: raise it when the images change.
_VERSION = 1


def write_demo(
    target: str, *, size: int, num_classes: int = 10, train_images: int, validation_images: int, seed: int
) -> tuple[str, str]:
    """Writes two splits of size x size JPEG images under `target`, a local path or URI; returns their two folders.

    The images depend on the arguments alone. Existing shards are kept. Raises ValueError for more classes than
    `CLASS_NAMES` has, or fewer images than classes.
    """
    if not 2 <= num_classes <= len(CLASS_NAMES):
        raise ValueError(f"num_classes must be in 2 .. {len(CLASS_NAMES)}, got {num_classes}")
    if min(train_images, validation_images) < num_classes or size < 16:
        raise ValueError(
            f"a demo needs at least {num_classes} images in each split, of 16 pixels or more; got "
            f"{train_images} and {validation_images} of {size} pixels"
        )
    name = f"demo-v{_VERSION}-{size}px-{num_classes}-classes-{train_images}-{validation_images}-seed-{seed}"
    folders = []
    for number, (split, images) in enumerate((("train", train_images), ("validation", validation_images))):
        folder = child_uri(target, f"{name}/{split}")
        _write_split(folder, split, size, num_classes, images, np.random.SeedSequence([seed, number]))
        folders.append(folder)
    return folders[0], folders[1]


def draw(label: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draws an image of a class: uint8 [size, size, 3]."""
    field = _pattern(label, size, rng)[..., None]
    front = _color(label / len(CLASS_NAMES), rng.uniform(0.75, 1.0), rng)
    back = _color((label * 3 + 5) % 10 / 10, rng.uniform(0.2, 0.45), rng)
    noise = rng.standard_normal((size, size, 3), dtype=np.float32) * 0.06
    values = back + (front - back) * field + noise
    return (np.clip(values, 0, 1) * 255).astype(np.uint8)


def _write_split(
    folder: str, split: str, size: int, num_classes: int, num_images: int, seed: np.random.SeedSequence
) -> None:
    """Writes the shards of a split that do not exist yet."""
    filesystem, path = open_uri(folder)
    shards = -(-num_images // _ROWS_PER_SHARD)
    seeds = seed.spawn(shards + 1)
    labels = np.random.default_rng(seeds[shards]).permutation(np.arange(num_images) % num_classes)
    for shard in range(shards):
        file = f"{path}/{split}-{shard:05d}-of-{shards:05d}.parquet"
        if filesystem.get_file_info(file).type == pafs.FileType.File:
            continue  # shards appear complete or not at all
        rng = np.random.default_rng(seeds[shard])
        here = labels[shard * _ROWS_PER_SHARD : (shard + 1) * _ROWS_PER_SHARD]
        encoded = [_jpeg(draw(int(label), size, rng)) for label in here]
        paths = [f"{split}/{shard * _ROWS_PER_SHARD + row:05d}.jpg" for row in range(len(here))]
        table = encode_table(encoded, paths, here, CLASS_NAMES[:num_classes])
        write_table(filesystem, file, table, rows_per_group=_ROWS_PER_GROUP)


def _pattern(label: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """The fraction of the front color in each pixel: float32 [size, size] in [0, 1]."""
    y, x = np.meshgrid(*[np.linspace(0, 1, size, dtype=np.float32)] * 2, indexing="ij")
    turns = rng.uniform(5, 8) * 2 * np.pi
    phase, other_phase = rng.uniform(0, 2 * np.pi, 2)
    y_wave, x_wave = np.sin(turns * y + phase), np.sin(turns * x + other_phase)
    dy, dx = y - rng.uniform(0.35, 0.65), x - rng.uniform(0.35, 0.65)
    radius = np.hypot(dy, dx)
    if label == 9:
        return (radius < rng.uniform(0.25, 0.4)).astype(np.float32)
    waves = {
        0: lambda: y_wave,
        1: lambda: x_wave,
        2: lambda: np.sin(turns * (x + y) * 0.7 + phase),
        3: lambda: y_wave * x_wave,
        4: lambda: y_wave + x_wave - 0.8,
        5: lambda: np.sin(turns * radius * 1.5 + phase),
        6: lambda: np.sin(rng.integers(5, 9) * np.arctan2(dy, dx) + phase),
        7: lambda: np.sin(turns * 0.5 * y + 2 * np.sin(turns * 0.4 * x + phase)),
        8: lambda: np.sin(turns * (y + np.abs((x * 4 + phase) % 1 - 0.5) * 0.5)),
    }
    return np.clip(waves[label]() * 2 + 0.5, 0, 1)


def _color(hue: float, value: float, rng: np.random.Generator) -> np.ndarray:
    shifted = (hue + rng.uniform(-0.02, 0.02)) % 1.0
    return np.array(colorsys.hsv_to_rgb(shifted, rng.uniform(0.65, 0.95), value), np.float32)


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()
