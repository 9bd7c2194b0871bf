"""Bytes of activations kept for the backward pass, per image, with and without recomputation, and its cost in time.

    python benchmarks/memory.py --result benchmarks/results/memory_cpu_20261121.md

Counted, not estimated: autograd's saved-tensor hooks see every tensor that a forward pass keeps on the CPU; storages
count once. Two passes of different batches give the bytes per image, so weights and their bf16 copies drop out. With
recomputation the backward pass holds, on top, what one unit keeps while it is computed again: the largest is given.
"""

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import clock
import harness
import subject
import torch
from torch import nn

from dist_resnet.model import build_model
from dist_resnet.recipe import Execution, Model, Performance
from dist_resnet.train.precision import autocast
from dist_resnet.train.recompute import recompute_units

CPU = subject.CPU
COLUMNS = {
    "network": "",
    "precision": "",
    "kept, MiB per image": ".2f",
    "recomputed": ".2f",
    "largest unit on top": ".2f",
    "kept over recomputed": ".1f",
}
# (name, depth, classes, side of the images)
NETWORKS = (
    ("CIFAR ResNet-164", 164, 10, 32),
    ("CIFAR ResNet-1001", 1001, 10, 32),
    ("ImageNet ResNet-200", 200, 1000, 224),
)


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    depth: int = harness.sized(56, quick=8)  # CIFAR network whose steps are timed.
    batch: int = harness.sized(32, quick=4)  # Images per timed step.
    rounds: int = harness.sized(7, quick=1)
    threads: int = os.cpu_count() or 1
    networks: int = harness.sized(len(NETWORKS), quick=1)
    """Networks whose activations are counted, from the smallest on."""
    only_time: bool = False  # Leave out the counting.


def measure(options: Options) -> Iterator[str]:
    """Counts and times."""
    torch.set_num_threads(options.threads)
    if not options.only_time:
        yield from harness.table(COLUMNS, counted(NETWORKS[: options.networks]))
        yield ""
    yield from timed(options)


def counted(networks: Sequence[tuple[str, int, int, int]]) -> Iterator[Sequence[object]]:
    """A row for each network and precision."""
    for name, depth, classes, size in networks:
        model = Model(depth=depth, num_classes=classes)
        for precision in ("fp32", "bf16"):
            plain = bytes_per_image(model, size, precision, recompute=False)
            recomputed = bytes_per_image(model, size, precision, recompute=True)
            unit = largest_unit(model, size, precision)
            mebibytes = (value / 2**20 for value in (plain, recomputed, unit))
            yield f"{name}, {size} px", precision, *mebibytes, plain / (recomputed + unit)


def bytes_per_image(model: Model, size: int, precision: str, *, recompute: bool) -> float:
    """What a forward pass of the network and its loss keeps for each image."""
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
    """The most that a single unit keeps for each image, besides its input."""
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


def timed(options: Options) -> Iterator[str]:
    """CPU seconds of the loop's step with and without recomputation, turn by turn, and the median of their ratios."""
    recipe = subject.cifar_recipe(depth=options.depth, batch=options.batch)
    yield f"ResNet-{options.depth}, {options.batch} images a step:\n"
    steps = {}
    for precision, recompute in itertools.product(("fp32", "bf16"), (False, True)):
        execution = Execution(precision=precision, performance=Performance(recompute=recompute))  # pyrefly: ignore
        step, _ = subject.step_on_random_images(recipe, execution, CPU)
        name = f"{precision}, recomputed" if recompute else precision
        steps[name] = lambda step=step: (clock.timed(step, now=time.process_time),)
    found = harness.interleaved(steps, options.rounds, warm_up=1)
    yield from harness.comparison(found, {"CPU seconds": ".3f"}, "fp32", "bf16")


if __name__ == "__main__":
    harness.main(measure, Options, __doc__)
