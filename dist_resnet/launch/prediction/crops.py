"""Center crops of encoded images, cut as in evaluation.

DALI decodes what it reads as Pillow does. The rest (images to be turned upright, 16-bit or transparent PNG, GIF, TIFF
and others) is decoded by Pillow and cut by the same code as in a served model; so is everything without DALI. The two
differ by rounding: by 1 of 255 levels in 0.2 % of the values, as measured on full-size photographs.
"""

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from dist_resnet.data.image.headers import check_megapixels, check_whole, image_size, oddity
from dist_resnet.data.image.pixels import DamagedError, decode, is_turned
from dist_resnet.data.input.augment import evaluation_windows
from dist_resnet.data.input.batch import Request
from dist_resnet.data.input.decoders import open_decoder
from dist_resnet.data.input.pillow import PillowDecoder
from dist_resnet.data.unlabeled.read import Encoded
from dist_resnet.recipe import Decode
from dist_resnet.registry.predictor import center


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How images are cut."""

    crop: int
    """Side of the crop in pixels."""
    shorter_side: int
    """The shorter side to which an image is resized before, in pixels."""
    upright: bool
    """Whether images are turned by their EXIF orientation."""
    decode: Decode
    """What decodes, as `execution.decode_on`."""


@dataclass(frozen=True, kw_only=True)
class Crops:
    """The crops of N images."""

    pixels: torch.Tensor
    """uint8 [N, crop, crop, 3]; gray where there is an error."""
    errors: dict[int, str]
    """Why an image cannot be read, by its position."""


_Cropped = np.ndarray | str
"""A crop, uint8 [crop, crop, 3], or why there is none."""


class Cropper:
    """Cuts batches of at most `max_batch` images, in several threads."""

    def __init__(self, cut: Cut, *, max_batch: int, num_threads: int, device: torch.device) -> None:
        """`device`: where the network is."""
        self._cut = cut
        decoder = open_decoder(cut.decode, max_batch=max_batch, num_threads=num_threads, device=device)
        self._dali = None if isinstance(decoder, PillowDecoder) else decoder
        self._pool = ThreadPoolExecutor(num_threads, "dist_resnet-pillow")

    def crops(self, batches: Generator[list[Encoded]]) -> Generator[Crops]:
        """Yields the crops of each batch, in order. One call at a time."""
        if self._dali is None:
            for images in batches:
                yield self._filled(self._blank(len(images)), self._by_pillow(dict(enumerate(images))))
            return
        waiting: deque[tuple[list[Encoded], dict[int, Future[_Cropped]]]] = deque()
        for request, pixels in self._dali.decode(self._requests(batches, waiting)):
            images, others = waiting.popleft()
            refused = {number: images[number] for number in request.damaged if number not in others}
            yield self._filled(pixels, others | self._by_pillow(refused))

    def _requests(
        self, batches: Generator[list[Encoded]], waiting: deque[tuple[list[Encoded], dict[int, Future[_Cropped]]]]
    ) -> Generator[Request]:
        """Requests of what DALI decodes; `waiting` gets the images of each, and the crops of those that Pillow does."""
        for images in batches:
            sizes = [_size(image, upright=self._cut.upright) for image in images]
            others = {number: images[number] for number, size in enumerate(sizes) if size is None}
            waiting.append((images, self._by_pillow(others)))
            heights, widths = np.array([size or (1, 1) for size in sizes]).T
            yield Request(
                [image if isinstance(image, np.ndarray) else np.empty(0, np.uint8) for image in images],
                evaluation_windows(heights, widths, self._cut.crop, self._cut.shorter_side),
                np.zeros(len(images), bool),
                self._cut.crop,
                np.arange(len(images)),
                np.zeros(len(images), np.int64),
                -1,
            ).without(dict.fromkeys(others, "Pillow decodes it"))

    def _by_pillow(self, images: dict[int, Encoded]) -> dict[int, Future[_Cropped]]:
        return {number: self._pool.submit(_served, image, self._cut) for number, image in images.items()}

    def _blank(self, count: int) -> torch.Tensor:
        return torch.full((count, self._cut.crop, self._cut.crop, 3), 128, dtype=torch.uint8)

    def _filled(self, pixels: torch.Tensor, others: dict[int, Future[_Cropped]]) -> Crops:
        errors = {}
        for number, future in others.items():
            crop = future.result()
            if isinstance(crop, str):
                errors[number] = crop
            else:
                pixels[number] = torch.from_numpy(crop)
        return Crops(pixels=pixels, errors=errors)


def _served(image: Encoded, cut: Cut) -> _Cropped:
    """The crop as a served model cuts it, or why it cannot."""
    if isinstance(image, str):
        return image
    try:
        return np.array(center(decode(image.tobytes(), upright=cut.upright), cut.crop, cut.shorter_side))
    except DamagedError as error:
        return f"the image cannot be read: {error}"


def _size(image: Encoded, *, upright: bool) -> tuple[int, int] | None:
    """(height, width) of an image that DALI can decode; None if Pillow has to."""
    if isinstance(image, str) or oddity(image) or (upright and is_turned(image.tobytes())):
        return None
    try:
        size = image_size(image)
        check_megapixels(*size)
        check_whole(image)
    except ValueError:
        return None
    return size
