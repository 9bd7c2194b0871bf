"""Recomputation: residual units keep only their input, and are computed again when the backward pass needs them.

Of each unit only its input stays in memory, so activations grow by one tensor a unit and not by some ten, and a step
costs one more forward pass of the units. Numbers stay as they are: the second forward pass is the first one's, with
the dropout mask of the first, and leaves BN's running statistics alone.
"""

import contextlib
import functools
from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dist_resnet.model.resnet import ResNet


def recompute_units(network: ResNet) -> None:
    """Makes every residual unit of a network recompute itself; the names of its weights stay."""
    for unit in network.units:
        unit.forward = functools.partial(_recomputed, unit.forward, unit.shortcut.draws_masks)


def _recomputed(forward: Callable[[Tensor], Tensor], draws: bool, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(x)
    # The generator's state is kept and put back around the second pass only where a mask is drawn: that costs time.
    return checkpoint(forward, x, use_reentrant=False, preserve_rng_state=draws)


@contextlib.contextmanager
def held_statistics(norms: Sequence[torch.nn.BatchNorm2d]) -> Generator[None]:
    """Within the block, such as a backward pass, forward passes leave BN's running statistics as they are.

    The forward pass must still be given them: the tensors that it saves are compared with those of the first pass.
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
