"""ImageNet's exact shape in miniature: preparing, order, and an epoch of reading, with times and memory.

    python benchmarks/full_size.py --scale 1 --folder /tmp/full-size

1,281,167 training and 50,000 validation images of 1000 classes as 294 + 14 Parquet shards as downloaded (compressed,
sorted by class), each image a JPEG of 8 x 8 pixels with its number in a comment, so that every one can be told from
the others. They are prepared, and read as 1, 8 and 64 workers would, one worker after the other: bytes, labels and crop
windows, without decoding. Each worker count is a process of its own, whose greatest memory counts. What is counted: the
times that each image is read in an epoch, that its label is its own, and that each evaluation image is read once.

--scale 0.1 takes a tenth of it. Times of 100 times the size are those of the order alone.
"""

import io
import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import harness
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from clock import timed
from PIL import Image

TRAIN, VALIDATION, CLASSES = 1_281_167, 50_000, 1000
SHARDS = {"train": 294, "validation": 14}
WORKERS = (1, 8, 64)
GLOBAL_BATCH, GHOST_BATCH = 2048, 32
_NUMBER_AT = 6
COLUMNS = {"act": "", "seconds": ".1f", "images/s": ",.0f", "greatest memory, MiB": ".0f", "a task's": ".0f"}
Row = tuple[object, ...]


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    folder: Path  # Where the sets are generated; removed at the end.
    scale: float = harness.sized(0.01, quick=0.002)  # Of ImageNet's number of images.


def measure(options: Options) -> Iterator[str]:
    """Generates, prepares and reads; a row for each act."""
    options.folder.mkdir(parents=True)
    try:
        yield from harness.table(COLUMNS, rows(options.folder, options.scale))
    finally:
        shutil.rmtree(options.folder)


def rows(folder: Path, scale: float) -> Iterator[Row]:
    """Runs every act."""
    counts = {"train": round(TRAIN * scale), "validation": round(VALIDATION * scale)}
    started = time.perf_counter()
    size = sum(generate(folder / "raw", split, count, scale) for split, count in counts.items())
    seconds, num = time.perf_counter() - started, sum(counts.values())
    yield f"generate {num:,} images, {size / 1e6:.0f} MB", seconds, num / seconds
    # As many shards as the real set has of 500 MB.
    seconds, driver, task = prepare(folder, size / 1e6 / (290 * scale))
    yield "prepare from Parquet", seconds, num / seconds, driver, task
    for workers in WORKERS:
        yield in_own_process(read_epoch, folder, workers)
    for times in (1, 100) if scale == 1 else (1,):
        yield in_own_process(order_epoch, times)


def in_own_process(act: Callable[..., Row], *arguments: object) -> Row:
    """What a call returns in a process of its own, whose greatest memory is that of the call."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(act, *arguments).result()


def generate(folder: Path, split: str, count: int, scale: float) -> int:
    """Writes a split as downloaded, sorted by class, and returns the bytes of its images."""
    folder.mkdir(parents=True, exist_ok=True)
    heads = list(_images())
    shards = max(1, round(SHARDS[split] * scale))
    size = 0
    for shard, rows in enumerate(np.array_split(np.arange(count), shards)):
        labels = label_of(rows, count)
        encoded = [_numbered(heads[label], row) for row, label in zip(rows.tolist(), labels.tolist(), strict=True)]
        images = pa.StructArray.from_arrays(
            [pa.array(encoded, pa.binary()), pa.array([f"{row:08d}.JPEG" for row in rows.tolist()])], ["bytes", "path"]
        )
        file = folder / f"{split}-{shard:05d}-of-{shards:05d}.parquet"
        pq.write_table(pa.table({"image": images, "label": labels}), file, row_group_size=100, compression="snappy")
        size += sum(map(len, encoded))
    return size


def label_of(numbers: np.ndarray, count: int) -> np.ndarray:
    """The class of images by their number among `count`: int64, sorted and as even as can be."""
    return numbers.astype(np.int64) * CLASSES // count


def _images() -> Iterator[bytes]:
    """A gray JPEG of 8 x 8 pixels for each class."""
    rng = np.random.default_rng(0)
    for _ in range(CLASSES):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(buffer, "JPEG", optimize=True)
        yield buffer.getvalue()


def _numbered(image: bytes, number: int) -> bytes:
    """The image with its number in a comment, the first thing in the file."""
    return image[:2] + b"\xff\xfe\x00\x0a" + number.to_bytes(8, "little") + image[2:]


def prepare(folder: Path, shard_megabytes: float) -> tuple[float, float, float]:
    """(seconds, greatest MiB of the driver, greatest MiB of a task's process) of preparing the generated set."""
    from dist_resnet.data.prepare.options import Options
    from dist_resnet.launch.ray import prepare as ray_prepare

    options = Options(source=str(folder / "raw"), target=str(folder / "prepared"), shard_megabytes=shard_megabytes)
    # The peak of this process is that from now on (man proc_pid_clear_refs).
    Path("/proc/self/clear_refs").write_text("5")
    seconds = timed(lambda: ray_prepare.prepare(options, workers=None))
    below = psutil.Process().children(recursive=True)
    tasks = [process.pid for process in below if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::")]
    return seconds, _peak("self"), max(map(_peak, tasks))


def _peak(process: int | str = "self") -> float:
    """MiB of a process; getrusage's ru_maxrss would have it begin with what its parent held."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def read_epoch(folder: Path, workers: int) -> Row:
    """Reads an epoch and an evaluation as so many workers would, and counts every image."""
    import subject

    from dist_resnet.data.input.streams import evaluation_requests, training_requests
    from dist_resnet.data.shards.reader import ShardReader
    from dist_resnet.data.shards.split import open_split

    train, validation = (open_split(f"{folder}/prepared/{split}-*.parquet") for split in SHARDS)
    # A hundredth of the set must fill a global batch too.
    scale = 1 if train.num_images > 100_000 else 8
    recipe = subject.imagenet_recipe(size=8, batch=GHOST_BATCH // scale, ghost_batches=GLOBAL_BATCH // GHOST_BATCH)
    seen = np.zeros(train.num_images, np.int64)
    started = time.perf_counter()
    for rank in range(workers):
        ghosts = list(range(rank, recipe.num_ghost_batches, workers))
        for request in training_requests(recipe, ShardReader(train), 0, 0, ghosts):
            count(seen, request)
    seconds = time.perf_counter() - started
    steps = train.num_images // recipe.global_batch
    assert seen.max() == 1, "an image came twice"
    assert seen.sum() == steps * recipe.global_batch, "an image is missing"
    evaluated = np.zeros(validation.num_images, np.int64)
    for rank in range(workers):
        share = range(*(validation.num_images * one // workers for one in (rank, rank + 1)))
        for request in evaluation_requests(ShardReader(validation), share, 256, crop=8, shorter_side=8):
            count(evaluated, request)
    assert (evaluated == 1).all(), "evaluation left an image out or took it twice"
    left = train.num_images - int(seen.sum())
    act = f"read as {workers} workers, each image once but {left} of the last batch, evaluation each once"
    return act, seconds, seen.sum() / seconds, _peak()


def count(seen: np.ndarray, request: object) -> None:
    """Counts a request's images by the numbers in their bytes, and compares their labels."""
    images, labels = request.images, request.labels  # type: ignore[attr-defined]
    numbers = np.array([int.from_bytes(bytes(one[_NUMBER_AT : _NUMBER_AT + 8]), "little") for one in images])
    assert (label_of(numbers, len(seen)) == labels).all(), "a label is not its image's"
    np.add.at(seen, numbers, 1)


def order_epoch(times: int) -> Row:
    """Plans an epoch of so many times ImageNet and draws the whole order of one worker of 64."""
    from dist_resnet.data.input.order import WindowedOrder

    rows = np.full(-(-TRAIN * times // 100), 100, np.int64)
    started = time.perf_counter()
    order = WindowedOrder(rows, global_batch=GLOBAL_BATCH, ghost_batch=GHOST_BATCH, seed=0, epoch=0)
    planned = time.perf_counter() - started
    drawn = sum(len(order.window(0, number).rows) for number in range(order.num_windows(0)))
    seconds = time.perf_counter() - started
    act = f"order alone at {times} times: plan in {planned:.3f} s, and one worker's of 64"
    return act, seconds, drawn / seconds, _peak()


if __name__ == "__main__":
    harness.main(measure, Options, __doc__)
