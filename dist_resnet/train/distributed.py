"""Data parallelism: the gradients of all workers, summed once per step while the backward pass continues.

Not torch's DistributedDataParallel: its hooks run in every backward pass, which a CUDA graph records and does not run
again. Here a backward pass ends in parts, which may be recorded, and the sums are outside of the recordings.
"""

import contextlib
from collections.abc import Generator, Sequence

import torch
import torch.distributed as dist
from torch import nn

from dist_resnet.worker import Worker

# As DDP's buckets: a sum of this size uses the network fully, and the last one, of which nothing is hidden, is short.
_PART_BYTES = 25 << 20
# Gradients begin at multiples of so many numbers (128 bytes), as tensors of their own do.
_ALIGNMENT = 32


def in_parts(layers: Sequence[nn.Module], worker: Worker, part_bytes: int | None = None) -> list[list[nn.Module]]:
    """Layers, given in order, in parts of at least so many bytes of trained weights (25 MiB); the first may have less.

    With one worker there is nothing to sum and one part.

    >>> import torch
    >>> two = Worker(rank=0, world_size=2, device=torch.device("cpu"))
    >>> [len(part) for part in in_parts([nn.Linear(8, 8, bias=False) for _ in range(5)], two, part_bytes=512)]
    [1, 2, 2]
    """
    if worker.world_size == 1:
        return [list(layers)]
    parts: list[list[nn.Module]] = [[]]
    for layer in reversed(layers):
        # Frozen layers, which come first, have no gradients: their output has no backward pass of its own.
        if _num_bytes(parts[0]) >= (part_bytes or _PART_BYTES) and _num_bytes([layer]):
            parts.insert(0, [])
        parts[0].insert(0, layer)
    return parts


class Gradients:
    """The gradients of a network's parts, each part's in one tensor whose address never changes."""

    def __init__(self, parts: Sequence[Sequence[nn.Module]], worker: Worker) -> None:
        self._worker = worker
        self._parts = [_joined(_parameters(part)) for part in parts]
        self._pending: list[dist.Work] = []
        self._share_weights(parts)

    def reduce(self, number: int) -> None:
        """Begins to sum a part's gradients over the workers; all workers call this in the same order."""
        if self._worker.world_size > 1:
            # Sums: an average would weight all workers equally, however many ghost batches each has.
            work = dist.all_reduce(self._parts[number], async_op=True)
            assert work is not None
            self._pending.append(work)

    def wait(self) -> None:
        """Lets the following operations wait for all sums; a GPU waits, not the host."""
        for work in self._pending:
            work.wait()
        self._pending.clear()

    @torch.no_grad()
    def zero(self) -> None:
        """Sets all gradients to zero."""
        for part in self._parts:
            part.zero_()

    @contextlib.contextmanager
    def unchanged(self) -> Generator[None]:
        """After the block, all gradients are again what they were before it."""
        copies = [part.clone() for part in self._parts]
        yield
        with torch.no_grad():
            for part, copy in zip(self._parts, copies, strict=True):
                part.copy_(copy)

    @torch.no_grad()
    def _share_weights(self, parts: Sequence[Sequence[nn.Module]]) -> None:
        """Gives every worker rank 0's weights: those drawn from one seed may differ between kinds of CPUs."""
        if self._worker.world_size == 1:
            return
        for part, joined in zip(parts, self._parts, strict=True):
            for parameter in _parameters(part):
                assert parameter.grad is not None
                parameter.grad.copy_(parameter)
            self._worker.broadcast(joined)
            for parameter in _parameters(part):
                assert parameter.grad is not None
                parameter.copy_(parameter.grad)
        self.zero()


def _parameters(part: Sequence[nn.Module]) -> list[nn.Parameter]:
    return [parameter for layer in part for parameter in layer.parameters() if parameter.requires_grad]


def _num_bytes(part: Sequence[nn.Module]) -> int:
    return sum(parameter.nbytes for parameter in _parameters(part))


def _joined(parameters: Sequence[nn.Parameter]) -> torch.Tensor:
    """Zero gradients of the parameters in one tensor; the parameters keep views of it, in their own memory formats."""
    lengths = [-(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT for parameter in parameters]
    joined = torch.zeros(sum(lengths), dtype=parameters[0].dtype, device=parameters[0].device)
    for parameter, room in zip(parameters, joined.split(lengths), strict=True):
        parameter.grad = room.as_strided(parameter.shape, parameter.stride())
    return joined
