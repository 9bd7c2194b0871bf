"""A worker's GPU before its first tensor: chosen, free of its predecessor, and bounded to the worker's share."""

import logging
import time
from collections.abc import Callable

import torch

logger = logging.getLogger(__name__)

# The usable part of a GPU's memory; the rest is for fragmentation and other programs.
USABLE = 0.92
# What a process holds on a GPU before its first tensor: the CUDA context and cuDNN's and cuBLAS's workspaces.
CONTEXT_BYTES = 3 << 28
_GIB = 1 << 30


def take(device: torch.device, *, share: float = 1.0) -> None:
    """Waits until about this share of the GPU's memory is free and bounds a process of several on a GPU to its share.

    The device has to have a number. Does nothing on the CPU.
    """
    if device.type != "cuda":
        return
    total = torch.cuda.get_device_properties(device).total_memory
    wait_for_memory(lambda: _free_bytes(device), wanted=int(USABLE * share * total) - CONTEXT_BYTES)
    if share < 1:
        torch.cuda.set_per_process_memory_fraction(memory_fraction(share, total), device)


def memory_fraction(share: float, total_bytes: int) -> float:
    """The part of a GPU's memory for the tensors of a process with this share, so that all have room beside each other.

    >>> round(memory_fraction(0.25, 80 << 30), 3)
    0.221
    """
    return max(0.0, USABLE * share - CONTEXT_BYTES / total_bytes)


def wait_for_memory(free_bytes: Callable[[], int], *, wanted: int, patience_seconds: float = 10.0) -> None:
    """Returns once as much is free, or with a warning once nothing more has become free for `patience_seconds`.

    A killed process holds its memory for some seconds, in which its successor starts.
    """
    free, since = free_bytes(), time.monotonic()
    while free < wanted:
        if time.monotonic() - since >= patience_seconds:
            logger.warning(
                "only %.1f GiB of the GPU's memory are free: another process uses it; end it if training runs out of "
                "memory",
                free / _GIB,
            )
            return
        time.sleep(0.1)
        now = free_bytes()
        if now > free:
            since = time.monotonic()
        free = max(free, now)


def _free_bytes(device: torch.device) -> int:
    try:
        return torch.cuda.mem_get_info(device)[0]
    except torch.AcceleratorError:
        return 0  # no room even for the context, without which CUDA does not answer
