"""Bytes of activations kept for the backward pass, per picture, with and without recomputation, and its cost in time.

    python benchmarks/memory.py --result benchmarks/results/memory_cpu_20261121.md

Counted, not estimated: autograd's saved-tensor hooks see every tensor that a forward pass keeps on the CPU; storages
count once. Two passes of different batches give the bytes per picture, so weights and their bf16 copies drop out. With
recomputation the backward pass holds, on top, what one unit keeps while it is computed again: the largest is given.
"""

import argparse
import dataclasses
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dist_resnet.data.input.batch import Batch
from dist_resnet.model import build_model
from dist_resnet.recipe import Augment, Data, Execution, Model, Performance, Recipe
from dist_resnet.train.loop import create_state
from dist_resnet.train.precision import autocast
from dist_resnet.train.recompute import recompute_units
from dist_resnet.train.step import TrainStep
from dist_resnet.worker import Worker

CPU = torch.device("cpu")
# (name, depth, classes, side of the pictures)
NETWORKS = (
    ("CIFAR ResNet-164", 164, 10, 32),
    ("CIFAR ResNet-1001", 1001, 10, 32),
    ("ImageNet ResNet-200", 200, 1000, 224),
)


def main() -> None:
    """Counts and times, and prints a table; writes it to a file where --result is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=56, help="CIFAR network whose steps are timed")
    parser.add_argument("--batch", type=int, default=32, help="pictures per timed step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only-time", action="store_true", help="leave out the counting")
    parser.add_argument("--result", type=Path, help="Markdown file to append the figures to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    text = timed(options) if options.only_time else f"{counted()}\n{timed(options)}"
    print(text)
    if options.result:
        with options.result.open("a") as file:
            file.write(text)


def counted() -> str:
    """A table of MiB per picture."""
    lines = [
        "| network | precision | kept, MiB per picture | recomputed | largest unit on top | kept over recomputed |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, depth, classes, size in NETWORKS:
        model = Model(depth=depth, num_classes=classes)
        for precision in ("fp32", "bf16"):
            plain = bytes_per_picture(model, size, precision, recompute=False)
            recomputed = bytes_per_picture(model, size, precision, recompute=True)
            unit = largest_unit(model, size, precision)
            ratio = plain / (recomputed + unit)
            lines.append(
                f"| {name}, {size} px | {precision} | {plain / 2**20:.2f} | {recomputed / 2**20:.2f} | "
                f"{unit / 2**20:.2f} | {ratio:.1f} |"
            )
            print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def bytes_per_picture(model: Model, size: int, precision: str, *, recompute: bool) -> float:
    """What a forward pass of the network and its loss keeps for each picture."""
    network = build_model(model).to(memory_format=torch.channels_last).train()
    if recompute:
        recompute_units(network)
    execution = Execution(precision=precision)  # pyrefly: ignore

    def kept(batch: int) -> int:
        images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
        saved = Saved()
        with saved.hooks(), autocast(execution, CPU):
            logits = network(images)
            loss = nn.functional.cross_entropy(logits.float(), torch.zeros(batch, dtype=torch.int64))
        del loss
        return saved.nbytes

    return (kept(4) - kept(2)) / 2


def largest_unit(model: Model, size: int, precision: str) -> float:
    """The most that a single unit keeps for each picture, besides its input."""
    network = build_model(model).to(memory_format=torch.channels_last).train()
    execution = Execution(precision=precision)  # pyrefly: ignore
    kept: dict[int, list[int]] = {2: [], 4: []}
    for batch, found in kept.items():
        images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
        with autocast(execution, CPU):
            with torch.no_grad():
                x = network.stem(images)
            for unit in network.units:
                saved = Saved(besides=x)
                with saved.hooks():
                    y = unit(x.requires_grad_())
                found.append(saved.nbytes)
                x = y.detach()
    return max(more - fewer for fewer, more in zip(kept[2], kept[4], strict=True)) / 2


class Saved:
    """Counts the bytes of the storages that autograd is handed to save, each once."""

    def __init__(self, besides: torch.Tensor | None = None) -> None:
        self._besides = set() if besides is None else {besides.untyped_storage().data_ptr()}
        # Kept alive, so that no address is used twice.
        self._storages: dict[int, torch.UntypedStorage] = {}

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        return torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter) and storage.data_ptr() not in self._besides:
            self._storages[storage.data_ptr()] = storage
        return tensor

    @property
    def nbytes(self) -> int:
        return sum(storage.nbytes() for storage in self._storages.values())


def timed(options: argparse.Namespace) -> str:
    """CPU seconds of the loop's step with and without recomputation, turn by turn, and the median of their ratios."""
    recipe = Recipe(
        model=Model(depth=options.depth, num_classes=10),
        data=Data(train="none", validation="none", dataset="cifar10"),
        augment=Augment(kind="pad", size=32),
        global_batch=options.batch,
        ghost_batch=options.batch,
    )
    worker = Worker(rank=0, world_size=1, device=CPU)
    batch = Batch(
        torch.randn(options.batch, 3, 32, 32).to(memory_format=torch.channels_last),
        torch.zeros(options.batch, dtype=torch.int64),
        np.arange(options.batch),
        0,
        torch.ones(options.batch),
    )
    lines = []
    for precision in ("fp32", "bf16"):
        steps = {}
        for recompute in (False, True):
            execution = Execution(precision=precision, performance=Performance(recompute=recompute))
            steps[recompute] = TrainStep(recipe, execution, worker, create_state(recipe, execution, worker))
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(options.rounds + 1):
            for recompute, step in steps.items():
                start = time.process_time()
                step([dataclasses.replace(batch)], 0.01)
                if turn:
                    seconds[recompute].append(time.process_time() - start)
        ratio = statistics.median(more / less for less, more in zip(seconds[False], seconds[True], strict=True))
        plain, recomputed = (statistics.median(seconds[key]) for key in (False, True))
        lines.append(
            f"ResNet-{options.depth}, {options.batch} pictures a step, {precision}: {plain:.3f} CPU seconds, with "
            f"recomputation {recomputed:.3f}, {ratio:.2f} times (median over {options.rounds} interleaved rounds)."
        )
    versions = (
        f"Python {platform.python_version()}, torch {torch.__version__}, {options.threads} threads, load average "
        f"{os.getloadavg()[0]:.1f} at the end."
    )
    return "\n".join([*lines, "", versions]) + "\n"


if __name__ == "__main__":
    main()
