"""dist_resnet's input pipeline beside others, and beside what libjpeg-turbo alone takes: the limit.

    python benchmarks/loader.py --data '/data/imagenet/train-*.parquet' --result loader.md

All do the same work on the same JPEGs on the CPU and end in normalized float32 batches of 32 images of 224 x 224
(loader_contestants.py). Two sets of images: `real`, as given, and `mixed`, the same ones encoded again with sides of
0.5, 1, 2 and 4 times the length, a quarter each. Every contestant has a process of its own; rounds are interleaved,
one contestant works at a time, and medians are given. Two more rows show parts of our own way, to tell what the rest
is spent on. Contestants that lack their library are left out with a line that says what to install; FFCV may live in an
environment of its own (--ffcv-python). It all takes seven minutes on two quiet cores.
"""

import contextlib
import functools
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import harness
import numpy as np
import pyarrow.parquet as pq
from clock import RATE, Rate
from loader_contestants import CONTESTANTS, EPOCH
from PIL import Image

from dist_resnet.data.prepare.shard_writer import ShardWriter
from dist_resnet.data.shards.reader import ShardReader
from dist_resnet.data.shards.split import open_split
from dist_resnet.data.shards.write import encode_table

HERE = Path(__file__).parent
FACTORS = (0.5, 1.0, 2.0, 4.0)
LONGEST_SIDE = 2048
"""No image is enlarged past it: FFCV sets memory aside for whole batches of the greatest image."""
PER_SHARD = 100
BASES = tuple(CONTESTANTS[name][0] for name in ("prepared", "bare"))
Ask = Callable[[dict], Rate]


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    data: str  # Glob or folder of local Parquet shards with JPEG images.
    sets: tuple[Literal["real", "mixed"], ...] = harness.sized(("real", "mixed"), quick=("real",))
    pipeline: Literal["train", "evaluation", "both"] = "both"
    contestants: tuple[str, ...] = tuple(CONTESTANTS)  # The rows of the tables.
    rounds: int = harness.sized(5, quick=1)
    seconds: float = harness.sized(1.0, quick=0.1)  # Least length of a round, warm-up not counted.
    threads: int = os.cpu_count() or 1  # Threads, or DataLoader workers.
    ffcv_python: str = sys.executable  # Python of an environment that has FFCV.

    def __post_init__(self) -> None:
        if unknown := set(self.contestants) - set(CONTESTANTS):
            raise ValueError(f"contestants must be of {', '.join(CONTESTANTS)}, got {', '.join(sorted(unknown))}")


def measure(options: Options) -> Iterator[str]:
    """A table for each set and pipeline."""
    pipelines = ("train", "evaluation") if options.pipeline == "both" else (options.pipeline,)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        for kind in options.sets:
            yield write_set(options.data, kind, folder / kind)
        missing = {name: what_lacks(name, options.ffcv_python, folder) for name in options.contestants}
        for name, what in missing.items():
            if what:
                yield f"left out: {CONTESTANTS[name][0]}; it needs {what}"
        ask = {
            CONTESTANTS[name][0]: stack.enter_context(contestant(name, options))
            for name, what in missing.items()
            if not what
        }
        for kind in options.sets:
            for pipeline in pipelines:
                order = {"folder": str(folder / kind), "pipeline": pipeline, "seconds": options.seconds}
                turns = {name: functools.partial(one, order) for name, one in ask.items()}
                found = harness.interleaved(turns, options.rounds)
                ask = {name: ask[name] for name in found}
                yield f"\n## {pipeline}, {kind} images\n"
                yield from harness.comparison(found, RATE, *BASES)


def write_set(data: str, kind: str, folder: Path) -> str:
    """Writes the images as every contestant wants them, linked until they fill an epoch; a line about them."""
    split = open_split(data)
    reader = ShardReader(split)
    groups = [reader.read(number) for number in range(split.num_row_groups)]
    images = [image.tobytes() for group in groups for image in group.images]
    labels = np.concatenate([group.labels for group in groups])
    if kind == "mixed":
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(resized, images, [FACTORS[row % len(FACTORS)] for row in range(len(images))]))
    for part in ("prepared", "downloaded", "files", "tars"):
        (folder / part).mkdir(parents=True)
    table = encode_table(images, [f"{row}.jpg" for row in range(len(images))], labels, split.class_names or ())
    with (folder / "prepared/0.parquet").open("wb") as file, ShardWriter(file, split.class_names or ()) as shard:
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            shard.add(image, f"{row}.jpg", int(label))
        shard.finish()
    pq.write_table(table, folder / "downloaded/0.parquet", row_group_size=100)  # pyarrow's defaults, as the Hub has it
    for first in range(0, len(images), PER_SHARD):
        with tarfile.open(folder / f"tars/0-{first:06d}.tar", "w") as tar:
            for row in range(first, min(first + PER_SHARD, len(images))):
                add(tar, f"{row:06d}.jpg", images[row])
                add(tar, f"{row:06d}.cls", str(labels[row]).encode())
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / "files" / f"{label:04d}").mkdir(exist_ok=True)
        (folder / "files" / f"{label:04d}" / f"0-{row}.jpg").write_bytes(image)
    for file in [*folder.glob("*/0-*"), *folder.glob("*/*/0-*"), *folder.glob("*/0.parquet")]:
        for copy in range(1, -(-EPOCH // len(images))):
            os.link(file, file.with_name(f"{copy}{file.name[1:]}"))
    pixels = sum(opened.width * opened.height for opened in (Image.open(io.BytesIO(image)) for image in images))
    return (
        f"The {kind} set: {len(images)} JPEGs of {sum(map(len, images)) / len(images) / 1000:.0f} KB and "
        f"{pixels / len(images) / 1e6:.2f} megapixels on average.\n"
    )


def resized(image: bytes, factor: float) -> bytes:
    """The image with sides of `factor` times the length, as a JPEG of quality 90."""
    target = io.BytesIO()
    with Image.open(io.BytesIO(image)) as opened:
        factor = min(factor, max(1.0, LONGEST_SIDE / max(opened.size)))
        sides = [max(round(side * factor), 1) for side in opened.size]
        opened.convert("RGB").resize((sides[0], sides[1]), Image.Resampling.BICUBIC).save(target, "JPEG", quality=90)
    return target.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a file."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def what_lacks(name: str, ffcv_python: str, folder: Path) -> str | None:
    """What to install for a contestant, if it is not installed. Builds the bare one."""
    if name == "webdataset" and importlib.util.find_spec("webdataset") is None:
        return "pip install webdataset"
    if name == "ffcv" and subprocess.run([ffcv_python, "-c", "import ffcv.loader"], capture_output=True).returncode:
        return (
            "pip install ffcv pillow torchvision (Debian: libopencv-dev libturbojpeg0-dev pkg-config), or --ffcv-python"
        )
    if name == "bare" and (reason := build_bare(folder)):
        return f"a C compiler and libjpeg-turbo's headers (Debian: gcc libjpeg62-turbo-dev): {reason}"
    return None


def build_bare(folder: Path) -> str | None:
    """Compiles jpeg_windows.c; the compiler's last word where that fails."""
    target = str(folder / "jpeg_windows.so")
    command = ["cc", "-O3", "-shared", "-fPIC", "-o", target, str(HERE / "jpeg_windows.c"), "-ljpeg", "-lpthread"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return "no cc"
    return (done.stderr.strip() or "cc failed").splitlines()[-1] if done.returncode else None


@contextlib.contextmanager
def contestant(name: str, options: Options) -> Iterator[Ask]:
    """A process that measures a round of the contestant for each order."""
    python = options.ffcv_python if name == "ffcv" else sys.executable
    command = [python, str(HERE / "loader_contestants.py"), name, str(options.threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        orders, answers = process.stdin, process.stdout

        def round_of(order: dict) -> Rate:
            with contextlib.suppress(BrokenPipeError):
                orders.write(json.dumps(order) + "\n")
            if not (answer := answers.readline()):
                raise harness.WithdrawnError(f"{CONTESTANTS[name][0]} stopped; its error is above")
            return Rate(*json.loads(answer))

        yield round_of
        with contextlib.suppress(BrokenPipeError):
            orders.close()


if __name__ == "__main__":
    harness.main(measure, Options, __doc__)
