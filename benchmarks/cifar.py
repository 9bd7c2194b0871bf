"""Pictures per second of training on CIFAR: this package's loop beside the usual torchvision loop, data included.

    python benchmarks/cifar.py --data '/data/cifar10/train-*.parquet'
    python benchmarks/cifar.py --data '/data/cifar10/train-*.parquet' --trials 1 2 4 8     (on a GPU)

All train the same ResNet with the same optimizer, precision and memory format on the same pictures, cropped at random
with padding 4, mirrored half of the time and normalised. The usual loop is torchvision's own CIFAR10 class with its
arrays filled, a DataLoader with 0 or 2 workers, and the bare model. Each contender has a process of its own; rounds
are interleaved, one process works at a time, and medians are given. `--trials` runs that many loops at once on one
GPU and gives trials of 64k iterations per hour.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import torchvision

# Nothing here imports DALI: a DataLoader forks its workers, and threads of DALI do not survive that.

SIZE, CLASSES, BATCH, RATE, ITERATIONS = 32, 10, 128, 0.1, 64_000
WARM_UP = 6
OURS = "dist_resnet"


def main() -> None:
    """Measures and prints tables; appends them to a file where --result is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="glob or folder of local Parquet shards of CIFAR-10")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--steps", type=int, default=20, help="steps of 128 pictures in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--trials", type=int, nargs="*", default=[], help="loops at once on one GPU, such as 1 2 4 8")
    parser.add_argument("--result", type=Path, help="Markdown file to append the figures to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_arrays(options.data, Path(folder))
        text = compared(options, folder) + "\n" + trials_per_hour(options, folder)
    print(text)
    if options.result:
        with options.result.open("a") as file:
            file.write(text)


def write_arrays(data: str, folder: Path) -> None:
    """Decodes the pictures once, as the arrays that torchvision's CIFAR10 class holds."""
    import io

    from PIL import Image

    from dist_resnet.data.shards.split import ShardReader, open_split

    split = open_split(data)
    reader = ShardReader(split)
    groups = [reader.read(number) for number in range(split.num_row_groups)]
    pictures = [
        np.asarray(Image.open(io.BytesIO(image.tobytes())).convert("RGB")) for group in groups for image in group.images
    ]
    np.save(folder / "pictures.npy", np.stack(pictures))
    np.save(folder / "labels.npy", np.concatenate([np.asarray(group.labels) for group in groups]))


def compared(options: argparse.Namespace, folder: str) -> str:
    """Images/s of every contender, turn by turn."""
    names = [name for name in CONTENDERS if torch.cuda.is_available() or "CUDA" not in name]
    rates: dict[str, list[float]] = {name: [] for name in names}
    costs: dict[str, list[float]] = {name: [] for name in names}
    with contextlib.ExitStack() as stack:
        rounds = {name: stack.enter_context(contender(name, folder, options)) for name in names}
        for turn in range(options.rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                rounds[name].start()
                rate, cost = rounds[name].answer()
                rates[name].append(rate)
                costs[name].append(cost)
                print(f"round {turn} {name}: {rate:.0f} images/s, {cost:.2f} CPU-ms", flush=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {options.threads} threads"
    lines = [
        f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}; "
        f"{device}; ResNet-{options.depth}, {options.precision}; {options.rounds} interleaved rounds of "
        f"{options.steps} steps of {BATCH} pictures; load average {os.getloadavg()[0]:.1f} at the end.",
        "",
        "| loop | images/s, median (range) | dist_resnet over it | CPU-ms per picture |",
        "|---|---:|---:|---:|",
    ]
    for name, found in rates.items():
        ratio = statistics.median(own / other for own, other in zip(rates[OURS], found, strict=True))
        median, cost = statistics.median(found), statistics.median(costs[name])
        lines.append(f"| {name} | {median:.0f} ({min(found):.0f} .. {max(found):.0f}) | {ratio:.2f} | {cost:.2f} |")
    return "\n".join(lines) + "\n"


def trials_per_hour(options: argparse.Namespace, folder: str) -> str:
    """What several loops at once give together on one GPU."""
    if not torch.cuda.is_available():
        return "Trials per hour at several trials per GPU: not measured, no GPU here.\n"
    lines = [
        "| loop | trials at once | images/s together | trials of 64k iterations per hour |",
        "|---|---:|---:|---:|",
    ]
    for name, count in itertools.product((OURS, f"{OURS}, CUDA graphs"), options.trials):
        with contextlib.ExitStack() as stack:
            loops = [stack.enter_context(contender(name, folder, options)) for _ in range(count)]
            for loop in loops:
                loop.start()
            together = sum(loop.answer()[0] for loop in loops)
        lines.append(f"| {name} | {count} | {together:.0f} | {together * 3600 / (ITERATIONS * BATCH):.2f} |")
    return "\n".join(lines) + "\n"


class Contender:
    """A process that measures a round whenever it is told to."""

    def __init__(self, orders: Connection) -> None:
        self._orders = orders

    def start(self) -> None:
        """Orders a round."""
        self._orders.send(True)

    def answer(self) -> tuple[float, float]:
        """What the round gave: images/s, and CPU milliseconds per picture of the process and its workers."""
        return self._orders.recv()


@contextlib.contextmanager
def contender(name: str, folder: str, options: argparse.Namespace) -> Iterator[Contender]:
    """A contender in a process of its own, ready to measure."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=serve, args=(there, name, folder, options))
    process.start()
    here.recv()
    try:
        yield Contender(here)
    finally:
        here.send(False)
        process.join()


def serve(orders: Connection, name: str, folder: str, options: argparse.Namespace) -> None:
    """Answers each order with the images/s of a round. The first steps, up to when it is ready, are not measured."""
    torch.set_num_threads(options.threads)
    steps = CONTENDERS[name](folder, options)
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(WARM_UP):
        next(steps)
    orders.send(True)
    while orders.recv():
        # What workers made ahead in the pause is used up first.
        for _ in range(WARM_UP):
            next(steps)
        wait()
        start, cpu = time.perf_counter(), cpu_seconds()
        for _ in range(options.steps):
            next(steps)
        wait()
        seconds, cpu, pictures = time.perf_counter() - start, cpu_seconds() - cpu, options.steps * BATCH
        orders.send((pictures / seconds, 1000 * cpu / pictures))


def cpu_seconds() -> float:
    """CPU time so far of this process and its living children."""
    ticks = sum(os.times()[:2]) * os.sysconf("SC_CLK_TCK")
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            with contextlib.suppress(FileNotFoundError):
                ticks += sum(map(int, Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def ours(folder: str, options: argparse.Namespace, *, ghost_batch: int = BATCH, graphs: bool = False) -> Iterator[None]:
    """This package's loader and step, one worker."""
    from dist_resnet.data.input.decoders import InputOptions
    from dist_resnet.data.loader import TrainingImages
    from dist_resnet.data.shards.split import open_split
    from dist_resnet.recipe import Augment, Data, Evaluation, Execution, Model, Performance, Recipe
    from dist_resnet.train.loop import create_state
    from dist_resnet.train.step import TrainStep
    from dist_resnet.worker import Worker

    recipe = Recipe(
        model=Model(depth=options.depth, num_classes=CLASSES),
        data=Data(train=options.data, validation=options.data, dataset="cifar10"),
        augment=Augment(kind="pad", size=SIZE),
        evaluation=Evaluation(crops=(SIZE,), shorter_sides=(SIZE,)),
        global_batch=BATCH,
        ghost_batch=ghost_batch,
    )
    execution = Execution(
        precision=options.precision, cpus_per_worker=options.threads, performance=Performance(cuda_graphs=graphs)
    )
    worker = Worker(rank=0, world_size=1, device=_device())
    split = open_split(options.data)
    images = TrainingImages(recipe, split, worker, InputOptions.of(execution))
    step = TrainStep(recipe, execution, worker, create_state(recipe, execution, worker))
    for epoch in itertools.count():
        for batches in images.epoch(epoch):
            step(batches, RATE)
            yield


def usual(folder: str, options: argparse.Namespace, *, workers: int) -> Iterator[None]:
    """torchvision's CIFAR10 and transforms, a DataLoader, a plain loop."""
    from torchvision import datasets, transforms

    from dist_resnet.data.datasets import DATASETS
    from dist_resnet.model import build_model
    from dist_resnet.recipe import Execution, Model
    from dist_resnet.train.precision import autocast

    constants = DATASETS["cifar10"]
    data = datasets.CIFAR10.__new__(datasets.CIFAR10)
    data.data, data.targets = np.load(f"{folder}/pictures.npy"), np.load(f"{folder}/labels.npy").tolist()
    steps = [transforms.RandomCrop(SIZE, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    data.transform = transforms.Compose([*steps, transforms.Normalize(constants.mean, constants.std)])
    data.target_transform = None
    device = _device()
    loader = torch.utils.data.DataLoader(
        data,
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
    model = build_model(Model(depth=options.depth, num_classes=CLASSES)).to(device)
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=1e-4)
    execution = Execution(precision=options.precision)
    while True:
        for images, labels in loader:
            images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
            labels = labels.to(device, non_blocking=True)
            with autocast(execution, device):
                loss = torch.nn.functional.cross_entropy(model(images).float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


def ours_halved(folder: str, options: argparse.Namespace) -> Iterator[None]:
    """Two ghost batches of 64 a step, as the paper's two GPUs have."""
    return ours(folder, options, ghost_batch=BATCH // 2)


def ours_graphed(folder: str, options: argparse.Namespace) -> Iterator[None]:
    """The step as a CUDA graph."""
    return ours(folder, options, graphs=True)


def usual_alone(folder: str, options: argparse.Namespace) -> Iterator[None]:
    """Pictures made by the training process itself."""
    return usual(folder, options, workers=0)


def usual_with_workers(folder: str, options: argparse.Namespace) -> Iterator[None]:
    """Pictures made by two further processes."""
    return usual(folder, options, workers=2)


CONTENDERS: dict[str, Callable[[str, argparse.Namespace], Iterator[None]]] = {
    OURS: ours,
    f"{OURS}, ghost batches of 64": ours_halved,
    f"{OURS}, CUDA graphs": ours_graphed,
    "torchvision CIFAR10, DataLoader in the process": usual_alone,
    "torchvision CIFAR10, DataLoader with 2 workers": usual_with_workers,
}


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    main()
