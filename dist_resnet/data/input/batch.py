"""A batch of images: the request for the decoder, the resized pixels, and the network's input."""

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image

from dist_resnet.data.datasets import normalization_of
from dist_resnet.data.input.augment import Augmentation
from dist_resnet.data.input.normalize import Normalizer
from dist_resnet.data.shards.split import Split
from dist_resnet.recipe import Recipe

# torch's at::internal::GRAIN_SIZE. For more numbers at once, torch starts its own threads: one per core for each of our
# threads, N x N in all.
_SERIAL = 32768


@dataclass(frozen=True)
class Request:
    """A batch of N encoded images, and the windows to cut from them."""

    images: list[np.ndarray]
    """Encoded images: uint8 [num_bytes] each."""
    windows: np.ndarray
    """int [N, 4]: top, left, height, width in source pixels, within the image."""
    flips: np.ndarray
    """bool [N]: which images are mirrored."""
    size: int
    """Side of the output in pixels."""
    indices: np.ndarray
    """int64 [N]: the images' indices in the split."""
    labels: np.ndarray
    """int64 [N]"""
    ghost: int
    """Which ghost batch of the step it is, -1 in evaluation."""
    damaged: Mapping[int, str] = field(default_factory=dict)
    """The reason for each damaged image, by position; `without` replaced these with a neutral image."""
    draws: np.ndarray | None = None
    """int64 [N]: the number of each image's random draws, which differs between repeats of an image; None in
    evaluation."""

    def without(self, damaged: Mapping[int, str]) -> "Request":
        """The request with the damaged images, given as reasons by position, replaced with a neutral image."""
        if not damaged:
            return self
        images, windows = list(self.images), self.windows.copy()
        for position in damaged:
            images[position] = _NEUTRAL
            windows[position] = (0, 0, *_NEUTRAL_SIZE)
        return replace(self, images=images, windows=windows, damaged={**self.damaged, **damaged})


def _neutral() -> np.ndarray:
    encoded = io.BytesIO()
    Image.new("RGB", _NEUTRAL_SIZE, "gray").save(encoded, "PNG")
    return np.frombuffer(encoded.getvalue(), np.uint8)


_NEUTRAL_SIZE = (8, 8)
_NEUTRAL = _neutral()


def resize(
    windows: Sequence[torch.Tensor], request: Request, pool: ThreadPoolExecutor, num_threads: int
) -> torch.Tensor:
    """The decoded windows, uint8 [h, w, 3] each, resized and mirrored: uint8 [N, size, size, 3].

    Uses torch's uint8 kernel, whose filter is an antialiased triangle, like PIL's.
    """
    num, size = len(windows), request.size
    pixels = torch.empty((num, size, size, 3), dtype=torch.uint8)
    # Several parts per thread, so that all threads end at about the same time.
    parts = [range(first, num, 4 * num_threads) for first in range(min(num, 4 * num_threads))]
    for _ in pool.map(lambda part: _resize_part(windows, request.flips, pixels, part), parts):
        pass
    return pixels


def _resize_part(windows: Sequence[torch.Tensor], flips: np.ndarray, pixels: torch.Tensor, part: range) -> None:
    """Resizes some of the windows, uint8 [h, w, 3], into `pixels`: uint8 [N, size, size, 3]."""
    size = pixels.shape[1]
    rows = max(_SERIAL // (3 * size), 1)
    for number in part:
        image = windows[number][None].permute(0, 3, 1, 2)
        if image.shape[2:] != (size, size):
            image = torch.nn.functional.interpolate(image, (size, size), mode="bilinear", antialias=True)
        image = image[0].permute(1, 2, 0)
        if flips[number]:
            for target, source in zip(pixels[number].split(rows), image.split(rows), strict=True):
                target.copy_(source.flip(1))
        else:
            np.copyto(pixels[number].numpy(), image.numpy())


@dataclass(frozen=True)
class Damaged:
    """An image that cannot be decoded."""

    index: int
    """Its index in the split."""
    file: str
    row: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file} row {self.row} ({self.reason})"


@dataclass
class Batch:
    """N images, ready for the network."""

    images: torch.Tensor
    """float32 [N, 3, S, S], normalized, on the worker's device."""
    labels: torch.Tensor
    """int64 [N], on the worker's device."""
    indices: np.ndarray
    """int64 [N]: the images' indices in the split."""
    ghost: int
    """Which ghost batch of the step it is; -1 in evaluation."""
    weights: torch.Tensor
    """float32 [N], on the worker's device: 1, or 0 for an image that cannot be decoded and is all zeros."""
    damaged: tuple[Damaged, ...] = ()
    """The images of weight 0."""


class BatchMaker:
    """Makes batches from the pixels of a split's images, on a device."""

    def __init__(self, recipe: Recipe, split: Split, device: torch.device, *, channels_last: bool) -> None:
        self._split, self._device = split, device
        self._normalize = Normalizer(normalization_of(recipe.data), device, channels_last=channels_last)

    def normalized(
        self, pixels: torch.Tensor, draws: np.ndarray | None = None, augmentation: Augmentation | None = None
    ) -> torch.Tensor:
        """The network's input of uint8 [N, S, S, 3], its colors augmented by the images' draws in training."""
        factors = None if augmentation is None or draws is None else augmentation.color_factors(draws)
        return self._normalize(pixels, factors)

    def batch(
        self, images: torch.Tensor, labels: torch.Tensor, indices: np.ndarray, ghost: int, damaged: Mapping[int, str]
    ) -> Batch:
        """The batch of normalized images and labels, both on the device, with the damaged images (reasons by position)
        zeroed and of weight 0."""
        weights = torch.ones(len(labels), device=self._device)
        reported = []
        for position, reason in sorted(damaged.items()):
            images[position], weights[position] = 0, 0
            index = int(indices[position])
            reported.append(Damaged(index, *self._split.locate(index), reason))
        return Batch(images, labels, indices, ghost, weights, tuple(reported))
