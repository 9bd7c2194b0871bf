"""Pillow as a decoder of the same windows, for machines without DALI: slower, and only on the CPU.

The pixels of a cropped JPEG are within 2 levels of DALI's, and within 24 at the border of the crop (tests/data): DALI
does not see the pixels outside. So a run's numbers differ slightly. Whole images, such as CIFAR's, are identical.
"""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from dist_resnet.data.image.pixels import DamagedError, decode
from dist_resnet.data.input.batch import Request, resize


class PillowDecoder:
    """Decodes requests in order, the images of each in several threads."""

    def __init__(self, *, num_threads: int) -> None:
        self._num_threads = num_threads

    def decode(self, requests: Generator[Request]) -> Generator[tuple[Request, torch.Tensor]]:
        """Yields each request with its pixels on the CPU, uint8 [N, size, size, 3].

        An image that cannot be decoded is replaced with a neutral one and listed in the yielded request's `damaged`.
        """
        with ThreadPoolExecutor(self._num_threads, "dist_resnet-pillow") as pool:
            for request in requests:
                windows = list(pool.map(_window, request.images, request.windows))
                damaged = {number: str(one) for number, one in enumerate(windows) if isinstance(one, DamagedError)}
                decodable = request.without(damaged)
                for number in damaged:
                    windows[number] = _window(decodable.images[number], decodable.windows[number])
                pixels = [window for window in windows if isinstance(window, torch.Tensor)]
                yield decodable, resize(pixels, decodable, pool, self._num_threads)


def _window(encoded: np.ndarray, window: np.ndarray) -> torch.Tensor | DamagedError:
    """The window (top, left, height, width) of an image, uint8 [h, w, 3], or the error of a damaged image."""
    top, left, height, width = (int(number) for number in window)
    try:
        return torch.from_numpy(np.array(decode(bytes(encoded)).crop((left, top, left + width, top + height))))
    except DamagedError as error:
        return error
