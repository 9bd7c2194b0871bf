"""Pictures per second of dist_resnet's input pipeline beside DALI's file reader and torchvision's ImageFolder.

All three do the same work on the same JPEGs on the CPU: a window of 8 % to 100 % of the area resized to 224 x 224,
mirrored half of the time, normalised float32 batches of 32. dist_resnet reads the Parquet shards as they are; the two
others read the same pictures written out as files. Each has a process of its own; rounds are interleaved, one process
works at a time, and medians are given.

    python benchmarks/loader.py --data '/data/imagenet/validation-*.parquet'
"""

import argparse
import contextlib
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
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
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        write_copies(options, Path(folder))
        measures = {name: stack.enter_context(contender(name, folder, options)) for name in CONTENDERS}
        figures: dict[str, list[tuple[float, float]]] = {name: [] for name in measures}
        for turn in range(options.rounds):
            names = list(measures)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                figures[name].append(measures[name]())
                speed, cost = figures[name][-1]
                print(f"round {turn} {name}: {speed:.0f} pictures/s, {cost:.2f} CPU-ms", flush=True)
    text = report(figures, options)
    print(text)
    if options.result:
        options.result.write_text(text)


def write_copies(options: argparse.Namespace, folder: Path) -> None:
    """Writes the pictures out as `files` by class, and links the shards in `shards`, until a round fits an epoch."""
    split = open_split(options.data)
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


@contextlib.contextmanager
def contender(name: str, folder: str, options: argparse.Namespace) -> Iterator[Callable[[], tuple[float, float]]]:
    """A process that measures a round of the contender whenever it is called."""
    spawn = multiprocessing.get_context("spawn")  # DALI's threads do not survive a fork
    here, there = spawn.Pipe()
    process = spawn.Process(target=serve, args=(there, name, folder, options.threads, options.pictures))
    process.start()

    def round_of_pictures() -> tuple[float, float]:
        here.send(True)
        return here.recv()

    try:
        yield round_of_pictures
    finally:
        here.send(False)
        process.join()


def serve(orders: Connection, name: str, folder: str, threads: int, pictures: int) -> None:
    """Answers each order with a measured round."""
    torch.set_num_threads(threads)
    start = CONTENDERS[name](folder, threads)
    while orders.recv():
        orders.send(measure(start, pictures))


def ours(folder: str, threads: int) -> Callable[[], Iterator[torch.Tensor]]:
    """The loader of this package, one worker."""
    shards = f"{folder}/shards"
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
    epochs = iter(range(1_000_000))

    def batches() -> Iterator[torch.Tensor]:
        return (batch.images for step in loader.train(next(epochs)) for batch in step)

    return batches


def dali_files(folder: str, threads: int) -> Callable[[], Iterator[torch.Tensor]]:
    """NVIDIA's own pipeline for ImageNet: docs, "ImageNet training in PyTorch", CPU variant."""
    pipeline = Pipeline(batch_size=BATCH, num_threads=threads, device_id=None, seed=0, prefetch_queue_depth=2)
    with pipeline:
        encoded, labels = fn.readers.file(file_root=f"{folder}/files", random_shuffle=True, name="files")
        pixels = fn.decoders.image_random_crop(
            encoded, output_type=types.RGB, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        pixels = fn.resize(pixels, resize_x=SIZE, resize_y=SIZE, interp_type=types.INTERP_LINEAR)
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


def image_folder(folder: str, workers: int) -> Callable[[], Iterator[torch.Tensor]]:
    """torchvision's reference: PIL, RandomResizedCrop, DataLoader workers."""
    from torchvision import datasets, transforms

    steps = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    data = datasets.ImageFolder(f"{folder}/files", transforms.Compose([*steps, transforms.Normalize(MEAN, STD)]))
    loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=workers)
    return lambda: (images for images, _ in loader)


CONTENDERS: dict[str, Callable[[str, int], Callable[[], Iterator[torch.Tensor]]]] = {
    "dist_resnet": ours,
    "DALI fn.readers.file": dali_files,
    "torchvision ImageFolder": image_folder,
}


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
