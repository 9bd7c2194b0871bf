"""Which library decodes: DALI, or Pillow on machines that DALI is not built for, such as macOS."""

import functools
import importlib.util
import logging
from collections.abc import Generator
from typing import Protocol

import torch

from dist_resnet.data.input.pillow import PillowDecoder
from dist_resnet.data.input.request import Request
from dist_resnet.recipe import Decode

logger = logging.getLogger(__name__)


class Decoder(Protocol):
    """Makes pixels of requests."""

    def decode(self, requests: Generator[Request]) -> Generator[tuple[Request, torch.Tensor]]:
        """Yields each request, in order, with its pixels: uint8 [N, size, size, 3]."""
        ...


def open_decoder(decode: Decode, *, max_batch: int, num_threads: int, device: torch.device) -> Decoder:
    """The decoder that `execution.decode` asks for; `device`: where the model trains. Says once if DALI is missing.

    A GPU's pixels are filled on another stream than the caller's. Raises ValueError as `check` does.
    """
    check(decode)
    if decode == "pillow" or _falls_back():
        return PillowDecoder(num_threads=num_threads)
    from dist_resnet.data.input.dali import DaliDecoder  # so that all else goes on without DALI

    place = device if decode != "cpu" else torch.device("cpu")
    return DaliDecoder(max_batch=max_batch, num_threads=num_threads, device=place)


def check(decode: Decode) -> None:
    """Raises ValueError where decoding on the GPU is asked for and DALI is not installed."""
    if decode == "gpu" and not _is_installed():
        raise ValueError(
            "execution.decode gpu needs NVIDIA DALI, which is not installed here; install nvidia-dali-cuda130, or have "
            "Pillow decode by --execution.decode auto"
        )


@functools.cache
def _falls_back() -> bool:
    if _is_installed():
        return False
    logger.warning("NVIDIA DALI is not installed: Pillow decodes, which is slower and gives slightly other pixels")
    return True


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # no package of NVIDIA's at all
        return False
