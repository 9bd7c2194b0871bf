"""Options of a worker's input, and its decoder: DALI, or Pillow if DALI is not installed.

They change neither which images make a batch nor how these are cut.
"""

import functools
import importlib.util
import logging
import os
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol, Self

import torch

from dist_resnet.data.input.batch import Request
from dist_resnet.data.input.pillow import PillowDecoder
from dist_resnet.recipe import Decode, Execution
from dist_resnet.storage.ranges import Access

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """Options of an execution for a worker's input."""

    decode: Decode
    num_threads: int
    """Threads of the decoder."""
    prefetch: int | None
    """Batches that are decoded ahead of use. None: the loader chooses."""
    evaluation_batch: int
    channels_last: bool
    access: Access
    """How shards on an object store are read."""

    @classmethod
    def of(cls, execution: Execution, alive: Callable[[], None] = lambda: None) -> Self:
        """The input options of an execution; `alive` is called at each retry while an object store fails."""
        return cls(
            decode=execution.decode_on,
            # If a launcher has set torch's number of threads, it is the process's share of the machine.
            num_threads=execution.cpus_per_worker or min(torch.get_num_threads(), os.cpu_count() or 1),
            prefetch=execution.performance.prefetch,
            evaluation_batch=execution.performance.evaluation_batch,
            channels_last=execution.performance.channels_last,
            access=Access(
                patience_seconds=execution.recovery.storage_seconds,
                cache=execution.cache.folder,
                cache_bytes=round(execution.cache.gigabytes * 1e9),
                alive=alive,
            ),
        )


class Decoder(Protocol):
    """Makes pixels of requests, one call after another."""

    def decode(self, requests: Generator[Request]) -> Generator[tuple[Request, torch.Tensor]]:
        """Yields each request, in order, with its pixels: uint8 [N, size, size, 3].

        It can be called again unless the last call raised an exception.
        """
        ...


def open_decoder(
    decode: Decode, *, max_batch: int, num_threads: int, device: torch.device, alike: bool = False
) -> Decoder:
    """The decoder for `execution.decode_on`; `device`: where the model trains. Warns once if DALI is missing.

    `alike`: an image's pixels do not depend on its place in a batch, which makes GPUs slower. A GPU's pixels are filled
    on another stream than the caller's. Raises ValueError as `check` does.
    """
    check(decode)
    if decode == "pillow" or _falls_back():
        return PillowDecoder(num_threads=num_threads)
    from dist_resnet.data.input.dali import DaliDecoder  # late, so that everything else works without DALI

    decode_device = device if decode != "cpu" else torch.device("cpu")
    return DaliDecoder(max_batch=max_batch, num_threads=num_threads, device=decode_device, alike=alike)


def check(decode: Decode) -> None:
    """Raises ValueError if the GPU is to decode and DALI is not installed."""
    if decode == "gpu" and not _is_installed():
        raise ValueError(
            "execution.decode_on gpu needs NVIDIA DALI, which is not installed here; install nvidia-dali-cuda130, or "
            "let Pillow decode with --execution.decode-on auto"
        )


@functools.cache
def _falls_back() -> bool:
    if _is_installed():
        return False
    logger.warning("NVIDIA DALI is not installed: Pillow decodes, which is slower and gives slightly different pixels")
    return True


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # there is no package nvidia
        return False
