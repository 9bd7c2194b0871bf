"""Images per second of training on CIFAR: this package's loop beside the usual torchvision loop, data included.

    python benchmarks/cifar.py --data '/data/cifar10/train-*.parquet'
    python benchmarks/cifar.py --data '/data/cifar10/train-*.parquet' --trials 1 2 4 8     (on a GPU)

All train the same ResNet with the same optimizer, precision and memory format on the same images, cropped at random
with padding 4, mirrored half of the time and normalized. The usual loop is torchvision's own CIFAR10 class with its
arrays filled, a DataLoader with 0 or 2 workers, and the bare model. Each contestant has a process of its own; rounds
are interleaved, one process works at a time, and medians are given. `--trials` runs that many loops at once on one
GPU and gives trials of 64k iterations per hour.
"""

import contextlib
import functools
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import clock
import harness
import numpy as np
import subject
import torch

from dist_resnet.data.datasets import DATASETS
from dist_resnet.data.input.resident import load_images
from dist_resnet.data.shards.reader import ShardReader
from dist_resnet.data.shards.split import open_split
from dist_resnet.model import build_model
from dist_resnet.recipe import Execution, Model, Performance
from dist_resnet.train.precision import autocast

# Nothing here imports DALI: a DataLoader forks its workers, and threads of DALI do not survive that.

SIZE, CLASSES, BATCH, RATE, ITERATIONS = 32, 10, 128, 0.1, 64_000
TRIALS = {"loop": "", "trials at once": "", "images/s together": ".0f", "trials of 64k iterations per hour": ".2f"}


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    data: str  # Glob or folder of local Parquet shards of CIFAR-10.
    depth: int = harness.sized(20, quick=8)
    precision: Literal["fp32", "bf16"] = "fp32"
    steps: int = harness.sized(20, quick=2)  # Steps of 128 images in a round.
    warm_up: int = harness.sized(clock.WARM_UP, quick=1)  # Steps before each round that do not count.
    rounds: int = harness.sized(7, quick=1)
    threads: int = os.cpu_count() or 1
    trials: tuple[int, ...] = ()  # Loops at once on one GPU, such as 1 2 4 8.


def measure(options: Options) -> Iterator[str]:
    """Images/s of every contestant, turn by turn, and of several loops at once."""
    with tempfile.TemporaryDirectory() as folder:
        write_arrays(options.data, Path(folder))
        yield from compared(options, folder)
        yield from trials_per_hour(options, folder)


def write_arrays(data: str, folder: Path) -> None:
    """Decodes the images once, as the arrays that torchvision's CIFAR10 class holds."""
    images, labels, _ = load_images(
        ShardReader(open_split(data)), SIZE, decode="pillow", device=subject.CPU, num_threads=1
    )
    np.save(folder / "images.npy", images.numpy())
    np.save(folder / "labels.npy", labels.numpy())


def compared(options: Options, folder: str) -> Iterator[str]:
    """Images/s of every contestant, turn by turn."""
    names = [name for name in CONTESTANTS if torch.cuda.is_available() or "CUDA" not in name]
    with contextlib.ExitStack() as stack:
        contestants = {name: stack.enter_context(contestant(name, folder, options)) for name in names}
        found = harness.interleaved(contestants, options.rounds)
    yield from harness.comparison(found, clock.RATE, OURS)


def trials_per_hour(options: Options, folder: str) -> Iterator[str]:
    """What several loops at once give together on one GPU."""
    if not torch.cuda.is_available():
        yield "\nTrials per hour at several trials per GPU: not measured, no GPU here."
        return
    yield ""
    yield from harness.table(
        TRIALS,
        (
            (name, count, rate, rate * 3600 / (ITERATIONS * BATCH))
            for name in (OURS, GRAPHED)
            for count, rate in together(name, folder, options)
        ),
    )


def together(name: str, folder: str, options: Options) -> Iterator[tuple[int, float]]:
    """Images/s of all loops of a kind together, for each number of loops at once in `options.trials`."""
    with contextlib.ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(max(options.trials)))
        loops = [contestant(name, folder, options) for _ in range(max(options.trials))]
        begun = list(threads.map(stack.enter_context, loops))
        for count in options.trials:
            rates = threads.map(lambda loop: loop(), begun[:count])
            yield count, sum(each.images_per_second for each in rates)


@contextlib.contextmanager
def contestant(name: str, folder: str, options: Options) -> Iterator[Callable[[], clock.Rate]]:
    """What measures a round of a loop, in a process of its own that is ready to."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        process.submit(_begin, name, folder, options).result()
        yield lambda: process.submit(_round, options).result()


def _begin(name: str, folder: str, options: Options) -> None:
    global _loop
    torch.set_num_threads(options.threads)
    _loop = CONTESTANTS[name](folder, options)
    _round(options)


def _round(options: Options) -> clock.Rate:
    return clock.rate(_loop, count=options.steps, warm_up=options.warm_up, wait=subject.wait)


_loop: Iterator[int]
"""The loop of this process; each item is a step, given by its number of images."""


def ours(folder: str, options: Options, *, ghost_batches: int = 1, graphs: bool = False) -> Iterator[int]:
    """This package's loader and step, one worker."""
    recipe = subject.cifar_recipe(
        options.data, depth=options.depth, batch=BATCH // ghost_batches, ghost_batches=ghost_batches
    )
    performance = Performance(cuda_graphs=graphs)
    execution = Execution(precision=options.precision, cpus_per_worker=options.threads, performance=performance)
    images = subject.training_images(recipe, execution)
    step, _ = subject.training_step(recipe, execution)
    batches = subject.endless(images)
    while True:
        step(batches, RATE)
        yield BATCH


def usual(folder: str, options: Options, *, workers: int) -> Iterator[int]:
    """torchvision's CIFAR10 and transforms, a DataLoader with that many workers, a plain loop."""
    device = subject.DEVICE
    loader = torch.utils.data.DataLoader(
        usual_images(folder),
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
            yield BATCH


def usual_images(folder: str) -> torch.utils.data.Dataset:
    """torchvision's CIFAR10 with the images given and its transforms."""
    from torchvision import datasets, transforms

    constants = DATASETS["cifar10"].normalization
    data = datasets.CIFAR10.__new__(datasets.CIFAR10)
    data.data, data.targets = np.load(f"{folder}/images.npy"), np.load(f"{folder}/labels.npy").tolist()
    steps = [transforms.RandomCrop(SIZE, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    data.transform = transforms.Compose([*steps, transforms.Normalize(constants.mean, constants.std)])
    data.target_transform = None
    return data


OURS = "dist_resnet"
GRAPHED = f"{OURS}, CUDA graphs"
SPLIT = f"{GRAPHED}, ghost batches of 64"
CONTESTANTS: dict[str, Callable[[str, Options], Iterator[int]]] = {
    OURS: ours,
    # As the paper's two GPUs have.
    f"{OURS}, ghost batches of 64": functools.partial(ours, ghost_batches=2),
    GRAPHED: functools.partial(ours, graphs=True),
    SPLIT: functools.partial(ours, ghost_batches=2, graphs=True),
    "torchvision CIFAR10, DataLoader in the process": functools.partial(usual, workers=0),
    "torchvision CIFAR10, DataLoader with 2 workers": functools.partial(usual, workers=2),
}


if __name__ == "__main__":
    harness.main(measure, Options, __doc__)
