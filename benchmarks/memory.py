"""Bytes of activations kept for the backward pass, per image, with and without recomputation, and its cost in time.

    python benchmarks/memory.py --result benchmarks/results

Counted, not estimated: autograd's saved-tensor hooks see every tensor that a forward pass keeps on the CPU; storages
count once. Two passes of different batches give the bytes per image, so weights and their bf16 copies drop out. With
recomputation the backward pass holds, on top, what one unit keeps while it is computed again: the largest is given.
"""

import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
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
MEBIBYTES = ("kept, MiB per image", "recomputed", "largest unit on top")
COLUMNS = {"network": "", "precision": ""} | dict.fromkeys(MEBIBYTES, ".2f") | {"kept over recomputed": ".1f"}
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

    def loss(batch: int) -> torch.Tensor:
        images, _ = subject.random_images(batch, size, 2, CPU)
        with autocast(Execution(precision=precision), CPU):  # pyrefly: ignore
            logits = network(images)
            return nn.functional.cross_entropy(logits.float(), torch.zeros(batch, dtype=torch.int64))

    more, fewer = (kept(functools.partial(loss, batch))[0] for batch in (4, 2))
    return (more - fewer) / 2


def largest_unit(model: Model, size: int, precision: str) -> float:
    """The most that a single unit keeps for each image, besides its input."""
    network = build_model(model).to(memory_format=torch.channels_last).train()
    found: dict[int, list[int]] = {2: [], 4: []}
    for batch, of_units in found.items():
        with autocast(Execution(precision=precision), CPU):  # pyrefly: ignore
            with torch.no_grad():
                x = network.stem(subject.random_images(batch, size, 2, CPU)[0])
            for unit in network.units:
                nbytes, y = kept(lambda unit=unit, x=x: unit(x.requires_grad_()), besides=x)
                of_units.append(nbytes)
                x = y.detach()
    return max(more - fewer for fewer, more in zip(found[2], found[4], strict=True)) / 2


def kept(act: Callable[[], torch.Tensor], besides: torch.Tensor | None = None) -> tuple[int, torch.Tensor]:
    """Bytes of the storages that autograd is handed to save in a call, each once, and what the call returns."""
    # The storages are kept alive, so that no address is used twice.
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = act()
    if besides is not None:
        storages.pop(besides.untyped_storage().data_ptr(), None)
    return sum(storage.nbytes() for storage in storages.values()), result


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
