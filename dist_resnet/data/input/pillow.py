"""Pillow as a decoder of the windows that DALI would cut, for machines that have no DALI: slower, and on the CPU alone.

Where a JPEG is cut, its pixels are within two levels of DALI's, and within 24 at the border of the cut (tests/data):
DALI does not see what lies outside. So a run's numbers are its own; whole images, as of CIFAR, are the same.
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

        An image that cannot be decoded is replaced by a neutral one and told of in the request that is yielded.
        """
        with ThreadPoolExecutor(self._num_threads, "dist_resnet-pillow") as pool:
            for request in requests:
                windows = list(pool.map(_window, request.images, request.windows))
                damaged = {place: str(found) for place, found in enumerate(windows) if isinstance(found, DamagedError)}
                whole = request.without(damaged)
                for place in damaged:
                    windows[place] = _window(whole.images[place], whole.windows[place])
                pixels = [window for window in windows if isinstance(window, torch.Tensor)]
                yield whole, resize(pixels, whole, pool, self._num_threads)


def _window(encoded: np.ndarray, window: np.ndarray) -> torch.Tensor | DamagedError:
    """The window (top, left, height, width) of an image, uint8 [h, w, 3], or what is wrong with its bytes."""
    top, left, height, width = (int(number) for number in window)
    try:
        return torch.from_numpy(np.array(decode(bytes(encoded)).crop((left, top, left + width, top + height))))
    except DamagedError as error:
        return error
