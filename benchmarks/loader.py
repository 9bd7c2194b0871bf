"""Pictures per second of dist_resnet's input pipeline beside DALI's file reader and torchvision's ImageFolder.

All three do the same work on the same JPEGs on the CPU: a window of 8 % to 100 % of the area resized to 224 x 224,
mirrored half of the time, normalised float32 batches of 32. dist_resnet reads the Parquet shards as they are; the two
others read the same pictures written out as files. Rounds are interleaved and medians are given.

    python benchmarks/loader.py --data '/data/imagenet/validation-*.parquet'
"""

import argparse
import contextlib
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nvidia.dali
import pyarrow
import torch
import torchvision
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.plugin.pytorch import DALIGenericIterator

from dist_resnet.data.datasets import DATASETS
from dist_resnet.data.loader import open_loader
from dist_resnet.data.parquet import open_split, read_row_group
from dist_resnet.recipe import Augment, Data, Execution, Model, Recipe

SIZE, BATCH = 224, 32
MEAN, STD = DATASETS["imagenet"].mean, DATASETS["imagenet"].std


def main() -> None:
    """Measures and prints a table; writes it to a file where --result is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="glob or folder of local Parquet shards with JPEG pictures")
    parser.add_argument("--pictures", type=int, default=1536, help="pictures per contender and round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads, or DataLoader workers")
    parser.add_argument("--result", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        contenders = prepare(options, Path(folder), stack)
        figures: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        for turn in range(options.rounds):
            names = list(contenders)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                figures[name].append(measure(contenders[name], options.pictures))
                print(f"round {turn} {name}: {figures[name][-1][0]:.0f} pictures/s, {figures[name][-1][1]:.2f} CPU-ms")
    text = report(figures, options)
    print(text)
    if options.result:
        options.result.write_text(text)


def prepare(
    options: argparse.Namespace, folder: Path, stack: contextlib.ExitStack
) -> dict[str, Callable[[], Iterator[torch.Tensor]]]:
    """Writes the pictures out and returns what starts each contender: a call that yields float batches."""
    split = open_split(options.data)
    # Whole copies, until a round and its warm-up fit into one epoch.
    copies = -(-(options.pictures + 16 * BATCH) // split.num_images)
    for number in range(split.num_row_groups):
        group = read_row_group(split, number)
        for row, (image, label) in enumerate(zip(group.images, group.labels, strict=True)):
            for copy in range(copies):
                file = folder / "files" / f"{label:04d}" / f"{copy}-{group.first_index + row}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(image.tobytes())
    (folder / "shards").mkdir()
    for copy in range(copies):
        for shard in split.shards:
            (folder / "shards" / f"{copy}-{Path(shard).name}").symlink_to(Path(shard).resolve())
    files = str(folder / "files")
    return {
        "dist_resnet": ours(str(folder / "shards"), options.threads, stack),
        "DALI fn.readers.file": dali_files(files, options.threads),
        "torchvision ImageFolder": image_folder(files, options.threads),
    }


def ours(shards: str, threads: int, stack: contextlib.ExitStack) -> Callable[[], Iterator[torch.Tensor]]:
    """The loader of this package, one worker."""
    split = open_split(shards)
    recipe = Recipe(
        model=Model(depth=50, num_classes=1000),
        data=Data(train=shards, validation=shards),
        augment=Augment(kind="inception", size=SIZE),
        global_batch=8 * BATCH,
        ghost_batch=BATCH,
    )
    execution = Execution(cpus_per_worker=threads)
    loader = open_loader(recipe, execution, split, split, rank=0, world_size=1, device=torch.device("cpu"))
    stack.callback(loader.close)
    epochs = iter(range(1_000_000))

    def batches() -> Iterator[torch.Tensor]:
        return (batch.images for step in loader.train(next(epochs)) for batch in step)

    return batches


def dali_files(files: str, threads: int) -> Callable[[], Iterator[torch.Tensor]]:
    """NVIDIA's own pipeline for ImageNet: docs, "ImageNet training in PyTorch", CPU variant."""
    pipeline = Pipeline(batch_size=BATCH, num_threads=threads, device_id=None, seed=0, prefetch_queue_depth=2)
    with pipeline:
        encoded, labels = fn.readers.file(file_root=files, random_shuffle=True, name="files")
        pixels = fn.decoders.image_random_crop(
            encoded, output_type=types.RGB, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        pixels = fn.resize(pixels, resize_x=SIZE, resize_y=SIZE, interp_type=types.INTERP_TRIANGULAR)
        values = fn.crop_mirror_normalize(
            pixels,
            dtype=types.FLOAT,
            output_layout="CHW",
            mean=[255 * mean for mean in MEAN],
            std=[255 * std for std in STD],
            mirror=fn.random.coin_flip(),
        )
        pipeline.set_outputs(values, labels)

    iterator = DALIGenericIterator([pipeline], ["images", "labels"], auto_reset=True, reader_name="files")

    def batches() -> Iterator[torch.Tensor]:
        return (entry[0]["images"] for _ in iter(int, 1) for entry in iterator)

    return batches


def image_folder(files: str, workers: int) -> Callable[[], Iterator[torch.Tensor]]:
    """torchvision's reference: PIL, RandomResizedCrop, DataLoader workers."""
    from torchvision import datasets, transforms

    steps = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    data = datasets.ImageFolder(files, transforms.Compose([*steps, transforms.Normalize(MEAN, STD)]))
    loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=workers)
    return lambda: (images for images, _ in loader)


def measure(start: Callable[[], Iterator[torch.Tensor]], pictures: int) -> tuple[float, float]:
    """(pictures per second, CPU milliseconds per picture) after a warm-up of eight batches."""
    batches = start()
    for _ in range(8):
        next(batches)
    cpu, begin, seen = cpu_seconds(), time.perf_counter(), 0
    while seen < pictures:
        seen += len(next(batches))
    seconds, cpu = time.perf_counter() - begin, cpu_seconds() - cpu
    return seen / seconds, 1000 * cpu / seen


def cpu_seconds() -> float:
    """CPU time so far of this process and its living children."""
    ticks = sum(os.times()[:2]) * os.sysconf("SC_CLK_TCK")
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            with contextlib.suppress(FileNotFoundError):
                ticks += sum(map(int, Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def report(figures: dict[str, list[tuple[float, float]]], options: argparse.Namespace) -> str:
    """The medians as a Markdown table, with the machine and the versions."""
    speeds = {name: statistics.median(speed for speed, _ in rounds) for name, rounds in figures.items()}
    lines = [
        f"Python {platform.python_version()}, DALI {nvidia.dali.__version__}, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, pyarrow {pyarrow.__version__}; {options.threads} threads or workers; "
        f"{options.rounds} interleaved rounds of {options.pictures} pictures; load average "
        f"{os.getloadavg()[0]:.1f} at the end.",
        "",
        "| pipeline | pictures/s, median (range) | CPU-ms per picture | dist_resnet over it |",
        "|---|---|---|---|",
    ]
    for name, rounds in figures.items():
        low, high = min(speed for speed, _ in rounds), max(speed for speed, _ in rounds)
        cpu = statistics.median(cost for _, cost in rounds)
        ratio = statistics.median(
            own / other for (own, _), (other, _) in zip(figures["dist_resnet"], rounds, strict=True)
        )
        lines.append(f"| {name} | {speeds[name]:.0f} ({low:.0f} .. {high:.0f}) | {cpu:.2f} | {ratio:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
