"""Decoded windows brought to a request's size by torch's uint8 kernel: an antialiased triangle filter, as PIL's is."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from dist_resnet.data.input.batch import Request

# torch's at::internal::GRAIN_SIZE. For more numbers at once torch starts threads of its own, as many for each thread of
# ours as the worker has cores: N x N of them.
_SERIAL = 32768


def resize(
    windows: Sequence[torch.Tensor], request: Request, pool: ThreadPoolExecutor, num_threads: int
) -> torch.Tensor:
    """The windows, uint8 [h, w, 3] each, resized and mirrored: uint8 [N, size, size, 3]."""
    num, size = len(windows), request.size
    pixels = torch.empty((num, size, size, 3), dtype=torch.uint8)
    # A few parts per thread, so that their ends come together.
    parts = [range(first, num, 4 * num_threads) for first in range(min(num, 4 * num_threads))]
    for _ in pool.map(lambda part: _resize_part(windows, request.flips, pixels, part), parts):
        pass
    return pixels


def _resize_part(windows: Sequence[torch.Tensor], flips: np.ndarray, pixels: torch.Tensor, part: range) -> None:
    """Writes some of the windows, uint8 [h, w, 3], to their places in `pixels`: uint8 [N, size, size, 3]."""
    size = pixels.shape[1]
    rows = max(_SERIAL // (3 * size), 1)
    for place in part:
        picture = windows[place][None].permute(0, 3, 1, 2)
        if picture.shape[2:] != (size, size):
            picture = torch.nn.functional.interpolate(picture, (size, size), mode="bilinear", antialias=True)
        picture = picture[0].permute(1, 2, 0)
        if flips[place]:
            for target, source in zip(pixels[place].split(rows), picture.split(rows), strict=True):
                target.copy_(source.flip(1))
        else:
            np.copyto(pixels[place].numpy(), picture.numpy())
