"""Recomputation: residual units keep only their input and are computed again in the backward pass.

Activations grow by one tensor per unit instead of about ten, and a step costs one more forward pass of the units. The
numbers do not change: the second forward pass uses the same dropout mask and does not update BN's running statistics.
"""

import contextlib
import functools
from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dist_resnet.model.resnet import ResNet


def recompute_units(network: ResNet) -> None:
    """Makes every residual unit of a network recompute itself; the names of its weights do not change."""
    for unit in network.units:
        unit.forward = functools.partial(_recomputed, unit.forward, unit.shortcut.draws_masks)


def _recomputed(forward: Callable[[Tensor], Tensor], draws: bool, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(x)
    # Saving and restoring the generator's state costs time, so only for units that draw a mask.
    return checkpoint(forward, x, use_reentrant=False, preserve_rng_state=draws)


@contextlib.contextmanager
def held_statistics(norms: Sequence[torch.nn.BatchNorm2d]) -> Generator[None]:
    """Within the block, such as a backward pass, forward passes do not update BN's running statistics.

    The forward pass still needs them: torch compares the tensors that it saves with those of the first pass.
    """
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # (1 - 0) * running + 0 * batch is the running statistic, bit for bit.
        norm.momentum = 0.0
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, momentum, counter in kept:
            norm.momentum, norm.num_batches_tracked = momentum, counter
