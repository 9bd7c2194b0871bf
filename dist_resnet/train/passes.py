"""How many ghost batches of a worker go through the network together."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch

from dist_resnet.data.input.batch import Batch
from dist_resnet.model.resnet import ResNet
from dist_resnet.model.shortcuts import SHORTCUTS
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.train.recompute import recompute_units
from dist_resnet.worker import Worker

# Of a GPU's memory, the part for activations kept for the backward pass. The rest is for weights, gradients,
# momentum, what a unit computes meanwhile, cuDNN's workspace and a decoder.
_FRACTION_KEPT = 0.5


def passes(recipe: Recipe, execution: Execution, worker: Worker) -> list[range]:
    """The ghost batches of each of a worker's passes in a step; the last pass may have fewer.

    With `auto`, all workers call it together.
    """
    ghosts, together = worker.share(recipe.num_ghost_batches), ghosts_per_pass(recipe, execution, worker)
    return [ghosts[first : first + together] for first in range(0, len(ghosts), together)]


def ghosts_per_pass(recipe: Recipe, execution: Execution, worker: Worker) -> int:
    """The ghost batches that a pass may have: those of the execution, 1 if the network draws masks.

    `auto` depends on the recipe, the precision, recomputation and the card alone, so that a restart takes the same:
    the largest power of two whose kept activations, counted, take up to half of the smallest card's memory.
    """
    wanted = execution.performance.ghosts_per_pass
    if SHORTCUTS[recipe.model.shortcut].draws_masks:
        return 1  # a ghost batch's masks depend on its number alone
    if wanted != "auto":
        return wanted
    if worker.device.type != "cuda":
        return 1
    memory = torch.cuda.get_device_properties(worker.device).total_memory
    return min(worker.gather([fitting(kept_bytes(recipe, execution), memory)]))


def fitting(kept: int, memory: int) -> int:
    """The ghost batches, a power of two, whose activations of `kept` bytes each fit into a card's memory.

    >>> fitting(3_700 << 20, 80 << 30), fitting(7_400 << 20, 16 << 30), fitting(20 << 30, 16 << 30)
    (8, 1, 1)
    """
    most = int(_FRACTION_KEPT * memory / kept)
    return 1 << max(most.bit_length() - 1, 0)


def kept_bytes(recipe: Recipe, execution: Execution) -> int:
    """Bytes that the forward pass of a ghost batch keeps for the backward pass, counted without computing it."""
    with torch.device("meta"):
        network = ResNet(recipe.model).train()
        images = torch.empty(recipe.ghost_batch, 3, recipe.augment.size, recipe.augment.size)
    if execution.performance.recompute:
        recompute_units(network)
    # By identity: without memory, all have the address 0.
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[id(storage)] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(images)
    nbytes = sum(storage.nbytes() for storage in kept.values())
    return nbytes // 2 if execution.precision in ("bf16", "fp16") else nbytes


def joined(batches: Iterator[Batch], ghosts: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The next ghost batches as one: images, labels and weights. Raises ValueError unless they are `ghosts`."""
    taken = list(itertools.islice(batches, len(ghosts)))
    if [batch.ghost for batch in taken] != list(ghosts):
        raise ValueError(f"a pass needs the ghost batches {list(ghosts)}, got {[batch.ghost for batch in taken]}")
    return (
        _concatenated(batch.images for batch in taken),
        _concatenated(batch.labels for batch in taken),
        _concatenated(batch.weights for batch in taken),
    )


def _concatenated(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    first, *others = tensors
    return torch.cat((first, *others)) if others else first
