"""Copies of tensors on the CPU. Copies from a GPU are made while it and the host continue."""

import functools
import itertools
from collections.abc import Sequence

import torch

# Of a tensor's first byte within a packed buffer.
_ALIGNMENT = 64


class HostCopy:
    """A copy of tensors on the CPU in the default memory format, of no meaning before `wait` has returned.

    On a GPU the tensors are packed into one buffer there, in its order of work, which a stream of its own copies to
    pinned memory: the copy is of now, whatever changes the tensors afterwards.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._done: torch.cuda.Event | None = None
        device = next((tensor.device for tensor in tensors if tensor.is_cuda), None)
        self.tensors = self._begin(tensors, device) if device else [portable(tensor) for tensor in tensors]
        """The copies, in the same order."""

    def wait(self) -> None:
        """Returns once the copy is there."""
        if self._done is not None:
            self._done.synchronize()

    def _begin(self, tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
        packed, stream = pack(tensors, device), _stream(device)
        pinned = torch.empty(packed.shape, dtype=packed.dtype, device="cpu", pin_memory=True)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            pinned.copy_(packed, non_blocking=True)
        self._done = torch.cuda.Event()
        self._done.record(stream)
        packed.record_stream(stream)
        return unpack(pinned, tensors)


def portable(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of one tensor on the CPU in the default memory format."""
    return tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True).contiguous()


def pack(tensors: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """The tensors in the default memory format, one after the other in a tensor of bytes on the device."""
    packed = torch.empty(sum(map(_room, tensors)), dtype=torch.uint8, device=device)
    for view, tensor in zip(unpack(packed, tensors), tensors, strict=True):
        view.copy_(tensor.detach())
    return packed


def unpack(packed: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Views of a packed tensor with the shapes and types of the tensors that it was made of."""
    starts = itertools.accumulate(map(_room, like), initial=0)
    return [
        packed[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for start, tensor in zip(starts, like, strict=False)
    ]


def _room(tensor: torch.Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
