"""dist_resnet's input pipeline beside others, and beside what libjpeg-turbo alone takes: the limit.

    python benchmarks/loader.py --data '/data/imagenet/train-*.parquet' --result loader.md

All do the same work on the same JPEGs on the CPU and end in normalised float32 batches of 32 pictures of 224 x 224
(loader_contestants.py). Two sets of pictures: `real`, as given, and `mixed`, the same ones written anew with sides of
0.5, 1, 2 and 4 times the length, a quarter each. Every contestant has a process of its own; rounds are interleaved,
one contestant works at a time, and medians are given. Two more rows show parts of our own way, to tell what the rest
is spent on. Contestants that lack their library are left out with a line that says what to install; FFCV may live in an
environment of its own (--ffcv-python). It all takes seven minutes on two quiet cores.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import nvidia.dali
import pyarrow
import pyarrow.parquet as pq
import torch
import torchvision
from loader_contestants import CONTESTANTS, EPOCH
from PIL import Image

from dist_resnet.data.prepare.write_shard import ShardWriter
from dist_resnet.data.shards.split import ShardReader, open_split
from dist_resnet.data.shards.write import encode_table

HERE = Path(__file__).parent
FACTORS = (0.5, 1.0, 2.0, 4.0)
LONGEST_SIDE = 2048
"""No picture is enlarged past it: FFCV sets memory aside for whole batches of the greatest picture."""
PER_SHARD = 100
Figures = dict[str, list[tuple[float, float]]]
"""(pictures per second, CPU milliseconds per picture) of each round by contestant."""


def main() -> None:
    """Measures and prints the tables; writes them to a file where --result is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="glob or folder of local Parquet shards with JPEG pictures")
    parser.add_argument("--sets", nargs="+", choices=("real", "mixed"), default=("real", "mixed"))
    parser.add_argument("--pipeline", choices=("train", "evaluation", "both"), default="both")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=tuple(CONTESTANTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="least length of a round, warm-up not counted")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads, or DataLoader workers")
    parser.add_argument("--ffcv-python", default=sys.executable, help="Python of an environment that has FFCV")
    parser.add_argument("--result", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    if options.result and not options.result.parent.is_dir():
        parser.error(f"--result {options.result} lies in no folder that exists; make {options.result.parent} first")
    pipelines = ("train", "evaluation") if options.pipeline == "both" else (options.pipeline,)
    text = describe(options)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        for kind in options.sets:
            text += write_set(options.data, kind, folder / kind)
        names = [name for name in options.contestants if is_there(name, options.ffcv_python, folder)]
        ask = {name: stack.enter_context(contestant(name, options)) for name in names}
        for kind in options.sets:
            for pipeline in pipelines:
                order = {"folder": str(folder / kind), "pipeline": pipeline, "seconds": options.seconds}
                text += report(f"{pipeline}, {kind} pictures", run_rounds(ask, order, options.rounds))
    text += f"\nLoad average {os.getloadavg()[0]:.1f} at the end.\n"
    print(text)
    if options.result:
        options.result.write_text(text)


def describe(options: argparse.Namespace) -> str:
    """The machine, the versions and the command, as Markdown."""
    with open("/proc/cpuinfo") as lines:
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    return (
        f"{os.cpu_count()} cores ({model}), Python {platform.python_version()}, DALI {nvidia.dali.__version__}, torch "
        f"{torch.__version__}, torchvision {torchvision.__version__}, pyarrow {pyarrow.__version__}; {options.threads} "
        f"threads or workers; {options.rounds} interleaved rounds of at least {options.seconds} s; load average "
        f"{os.getloadavg()[0]:.1f} at the start.\n"
    )


def write_set(data: str, kind: str, folder: Path) -> str:
    """Writes the pictures as every contestant wants them, linked until they fill an epoch; a line about them."""
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
    pixels = sum(picture.width * picture.height for picture in (Image.open(io.BytesIO(image)) for image in images))
    return (
        f"The {kind} set: {len(images)} JPEGs of {sum(map(len, images)) / len(images) / 1000:.0f} KB and "
        f"{pixels / len(images) / 1e6:.2f} megapixels on average.\n"
    )


def resized(image: bytes, factor: float) -> bytes:
    """The picture with sides of `factor` times the length, as a JPEG of quality 90."""
    target = io.BytesIO()
    with Image.open(io.BytesIO(image)) as picture:
        factor = min(factor, max(1.0, LONGEST_SIDE / max(picture.size)))
        sides = [max(round(side * factor), 1) for side in picture.size]
        picture.convert("RGB").resize((sides[0], sides[1]), Image.Resampling.BICUBIC).save(target, "JPEG", quality=90)
    return target.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a file."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def is_there(name: str, ffcv_python: str, folder: Path) -> bool:
    """Whether what the contestant needs is installed; says what to install where it is not. Builds the bare one."""
    if name == "webdataset" and importlib.util.find_spec("webdataset") is None:
        missing = "pip install webdataset"
    elif name == "ffcv" and subprocess.run([ffcv_python, "-c", "import ffcv.loader"], capture_output=True).returncode:
        missing = (
            "pip install ffcv pillow torchvision (Debian: libopencv-dev libturbojpeg0-dev pkg-config), or --ffcv-python"
        )
    elif name == "bare" and (reason := build_bare(folder)):
        missing = f"a C compiler and libjpeg-turbo's headers (Debian: gcc libjpeg62-turbo-dev): {reason}"
    else:
        return True
    print(f"left out: {CONTESTANTS[name][0]}; it needs {missing}", flush=True)
    return False


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
def contestant(name: str, options: argparse.Namespace) -> Iterator[Callable[[dict], tuple[float, float]]]:
    """A process that measures a round of the contestant for each order."""
    python = options.ffcv_python if name == "ffcv" else sys.executable
    command = [python, str(HERE / "loader_contestants.py"), name, str(options.threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        orders, answers = process.stdin, process.stdout

        def round_of(order: dict) -> tuple[float, float]:
            with contextlib.suppress(BrokenPipeError):
                orders.write(json.dumps(order) + "\n")
            if not (answer := answers.readline()):
                raise RuntimeError(f"{CONTESTANTS[name][0]} stopped; its error is above")
            speed, cost = json.loads(answer)
            return speed, cost

        yield round_of
        with contextlib.suppress(BrokenPipeError):
            orders.close()


def run_rounds(ask: dict[str, Callable[[dict], tuple[float, float]]], order: dict, rounds: int) -> Figures:
    """Interleaved rounds, each begun by another contestant."""
    figures: Figures = {name: [] for name in ask}
    names = list(ask)
    for turn in range(rounds):
        begin = turn % len(names)
        for name in names[begin:] + names[:begin]:
            if name not in ask:
                continue
            try:
                figures[name].append(ask[name](order))
            except RuntimeError as error:  # the others' rounds are not lost for it
                print(f"left out from here on: {error}", flush=True)
                del ask[name], figures[name]
                continue
            speed, cost = figures[name][-1]
            print(f"{order['pipeline']} round {turn} {name}: {speed:.0f} pictures/s, {cost:.2f} CPU-ms", flush=True)
    return figures


def report(title: str, figures: Figures) -> str:
    """The medians as a Markdown table; ratios are medians of the ratios within a round."""
    lines = [
        f"\n## {title}\n",
        "| pipeline | pictures/s, median (range) | CPU-ms per picture | of the limit, CPU | of the limit, speed "
        "| prepared shards over it, CPU | prepared shards over it, speed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rounds in figures.items():
        speeds = [speed for speed, _ in rounds]
        cells = [
            f"{statistics.median(speeds):.0f} ({min(speeds):.0f} .. {max(speeds):.0f})",
            f"{statistics.median(cost for _, cost in rounds):.2f}",
            *(f"{value:.0%}" for value in ratios(rounds, figures.get("bare"))),
            *(f"{1 / value:.2f}" for value in ratios(rounds, figures.get("prepared"))),
        ]
        cells += ["-"] * (6 - len(cells))
        lines.append(f"| {CONTESTANTS[name][0]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def ratios(rounds: list[tuple[float, float]], other: list[tuple[float, float]] | None) -> list[float]:
    """By how much these rounds are better than the others, by CPU time and by speed; empty without others."""
    if other is None:
        return []
    pairs = list(zip(rounds, other, strict=True))
    return [
        statistics.median(theirs / ours for (_, ours), (_, theirs) in pairs),
        statistics.median(ours / theirs for (ours, _), (theirs, _) in pairs),
    ]


if __name__ == "__main__":
    sys.exit(main())
