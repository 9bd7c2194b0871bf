"""ImageNet's exact shape in miniature: preparing, order, and an epoch of reading, with times and memory.

    python benchmarks/full_size.py --scale 1 --folder /tmp/full-size

1,281,167 training and 50,000 validation pictures of 1000 classes as 294 + 14 Parquet shards as downloaded (compressed,
sorted by class), each picture a JPEG of 8 x 8 pixels with its number in a comment, so that every one can be told from
the others. They are prepared, and read as 1, 8 and 64 workers would, one worker after the other: bytes, labels and crop
windows, without decoding. Each worker count is a process of its own, whose greatest memory counts. What is counted: the
times that each picture is read in an epoch, that its label is its own, and that each evaluation picture is read once.

--scale 0.1 takes a tenth of it. Times of 100 times the size are those of the order alone.
"""

import argparse
import io
import os
import platform
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

TRAIN, VALIDATION, CLASSES = 1_281_167, 50_000, 1000
SHARDS = {"train": 294, "validation": 14}
WORKERS = (1, 8, 64)
GLOBAL_BATCH, GHOST_BATCH = 2048, 32
_NUMBER_AT = 6


def main() -> None:
    """Generates, prepares, reads, and prints the figures; appends them to a file where --result is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=0.01, help="of ImageNet's number of pictures")
    parser.add_argument("--folder", type=Path, required=True, help="where the sets are generated; removed at the end")
    parser.add_argument("--result", type=Path, help="Markdown file to append the figures to")
    parser.add_argument("--read", type=int, metavar="WORKERS", help=argparse.SUPPRESS)
    parser.add_argument("--order", type=int, metavar="TIMES", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(read_epoch(options.folder, options.read))
        return
    if options.order:
        print(order_epoch(options.order))
        return
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
    options.folder.mkdir(parents=True)
    try:
        lines = measure(options.folder, options.scale)
    finally:
        shutil.rmtree(options.folder)
    if options.result:
        with options.result.open("a") as file:
            file.write("\n".join(lines) + "\n")


def measure(folder: Path, scale: float) -> list[str]:
    """Runs every act and returns its lines."""
    counts = {"train": round(TRAIN * scale), "validation": round(VALIDATION * scale)}
    lines = [f"## {counts['train']:,} + {counts['validation']:,} pictures", ""]

    def tell(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    started = time.perf_counter()
    size = sum(generate(folder / "raw", split, count, scale) for split, count in counts.items())
    print(f"generated {size / 1e6:.0f} MB of pictures in {time.perf_counter() - started:.0f} s", flush=True)
    tell("| act | seconds | pictures/s | greatest memory, MiB |")
    tell("|---|---:|---:|---:|")
    # As many shards as the real set has of 500 MB.
    seconds, driver, workers = prepare(folder, size / 1e6 / (290 * scale))
    rate = sum(counts.values()) / seconds
    tell(f"| prepare from Parquet | {seconds:.1f} | {rate:,.0f} | driver {driver:.0f}, largest task {workers:.0f} |")
    for number in WORKERS:
        tell(child(folder, "--read", number))
    for times in (1, 100) if scale == 1 else ():
        tell(child(folder, "--order", times))
    return lines


def child(folder: Path, option: str, number: int) -> str:
    """The line that a process of its own measures."""
    command = [sys.executable, __file__, "--folder", str(folder), option, str(number)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def generate(folder: Path, split: str, count: int, scale: float) -> int:
    """Writes a split as downloaded, sorted by class, and returns the bytes of its pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    heads = list(_pictures())
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
    """The class of pictures by their number among `count`: int64, sorted and as even as can be."""
    return numbers.astype(np.int64) * CLASSES // count


def _pictures() -> Iterator[bytes]:
    """A grey JPEG of 8 x 8 pixels for each class."""
    rng = np.random.default_rng(0)
    for _ in range(CLASSES):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(buffer, "JPEG", optimize=True)
        yield buffer.getvalue()


def _numbered(picture: bytes, number: int) -> bytes:
    """The picture with its number in a comment, the first thing in the file."""
    return picture[:2] + b"\xff\xfe\x00\x0a" + number.to_bytes(8, "little") + picture[2:]


def prepare(folder: Path, shard_megabytes: float) -> tuple[float, float, float]:
    """(seconds, greatest MiB of the driver, greatest MiB of a task's process) of preparing the generated set."""
    from dist_resnet.data.prepare.prepare import Options
    from dist_resnet.launch.ray import prepare as ray_prepare

    options = Options(source=str(folder / "raw"), target=str(folder / "prepared"), shard_megabytes=shard_megabytes)
    memory = _Memory()
    started = time.perf_counter()
    ray_prepare.prepare(options, workers=None)
    return time.perf_counter() - started, *memory.end()


class _Memory:
    """Looks every fifth of a second at the memory of this process and of the tasks' processes below it."""

    def __init__(self) -> None:
        self._before = psutil.Process().memory_info().rss
        self._tasks = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> tuple[float, float]:
        """Greatest MiB of this process, and of the largest task's."""
        self._ended.set()
        self._thread.join()
        return _own_peak(), self._tasks / 2**20

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            for process in psutil.Process().children(recursive=True):
                try:
                    if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::"):
                        self._tasks = max(self._tasks, process.memory_info().rss)
                except psutil.Error:
                    continue


def _own_peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def read_epoch(folder: Path, workers: int) -> str:
    """Reads an epoch and an evaluation as so many workers would, counts every picture, and returns a line."""
    from dist_resnet.data.input.streams import evaluation_requests, training_requests
    from dist_resnet.data.shards.split import ShardReader, open_split
    from dist_resnet.recipe import Augment, Data, Model, Recipe

    train, validation = (open_split(f"{folder}/prepared/{split}-*.parquet") for split in SHARDS)
    # A hundredth of the set must fill a global batch too.
    scale = 1 if train.num_images > 100_000 else 8
    recipe = Recipe(
        model=Model(depth=50, num_classes=CLASSES),
        data=Data(train="t", validation="v"),
        augment=Augment(kind="inception", size=8),
        global_batch=GLOBAL_BATCH // scale,
        ghost_batch=GHOST_BATCH // scale,
    )
    seen = np.zeros(train.num_images, np.int64)
    started = time.perf_counter()
    for rank in range(workers):
        ghosts = list(range(rank, recipe.num_ghost_batches, workers))
        for request in training_requests(recipe, ShardReader(train), 0, 0, ghosts):
            count(seen, request)
    seconds = time.perf_counter() - started
    steps = train.num_images // recipe.global_batch
    assert seen.max() == 1, "a picture came twice"
    assert seen.sum() == steps * recipe.global_batch, "a picture is missing"
    evaluated = np.zeros(validation.num_images, np.int64)
    for rank in range(workers):
        share = range(*(validation.num_images * one // workers for one in (rank, rank + 1)))
        for request in evaluation_requests(ShardReader(validation), share, 256, crop=8, shorter_side=8):
            count(evaluated, request)
    assert (evaluated == 1).all(), "evaluation left a picture out or took it twice"
    left = train.num_images - int(seen.sum())
    return (
        f"| read as {workers} workers, each picture once but {left} of the last batch, evaluation each once | "
        f"{seconds:.1f} | {seen.sum() / seconds:,.0f} | {_own_peak():.0f} |"
    )


def count(seen: np.ndarray, request: object) -> None:
    """Counts a request's pictures by the numbers in their bytes, and compares their labels."""
    images, labels = request.images, request.labels  # type: ignore[attr-defined]
    numbers = np.array([int.from_bytes(bytes(one[_NUMBER_AT : _NUMBER_AT + 8]), "little") for one in images])
    assert (label_of(numbers, len(seen)) == labels).all(), "a label is not its picture's"
    np.add.at(seen, numbers, 1)


def order_epoch(times: int) -> str:
    """Plans an epoch of so many times ImageNet and draws the whole order of one worker of 64; returns a line."""
    from dist_resnet.data.input.order import WindowedOrder

    rows = np.full(-(-TRAIN * times // 100), 100, np.int64)
    started = time.perf_counter()
    order = WindowedOrder(rows, global_batch=GLOBAL_BATCH, ghost_batch=GHOST_BATCH, seed=0, epoch=0)
    planned = time.perf_counter() - started
    drawn = sum(len(order.window(0, number).rows) for number in range(order.num_windows(0)))
    seconds = time.perf_counter() - started
    return (
        f"| order alone at {times} times: plan in {planned:.3f} s, and one worker's of 64 | {seconds:.1f} | "
        f"{drawn / seconds:,.0f} | {_own_peak():.0f} |"
    )


if __name__ == "__main__":
    main()
