"""Small images in one uint8 tensor on the device; the crops of many ghost batches are one indexing operation."""

from collections.abc import Generator, Sequence

import numpy as np
import torch

from dist_resnet.data.input.augment import Augmentation, evaluation_windows
from dist_resnet.data.input.balance import epoch_repeats
from dist_resnet.data.input.batch import Batch, BatchMaker
from dist_resnet.data.input.decoders import InputOptions, open_decoder
from dist_resnet.data.input.normalize import on_device
from dist_resnet.data.input.order import FullOrder
from dist_resnet.data.input.streams import whole_requests
from dist_resnet.data.shards.reader import ShardReader
from dist_resnet.recipe import Decode, Recipe

_BATCH = 256
# Crops that are made at once. On a GPU, draws, copies and launches for each ghost batch would take the host as long as
# a step of ResNet-20 takes the GPU.
_CROPS = 2048


class ResidentImages:
    """Small images such as CIFAR's: decoded at first use, kept on the device and cropped there."""

    def __init__(self, recipe: Recipe, reader: ShardReader, device: torch.device, options: InputOptions) -> None:
        self._recipe, self._reader, self._device, self._options = recipe, reader, device, options
        self._maker = BatchMaker(recipe, reader.split, device, channels_last=options.channels_last)
        self._loaded: tuple[torch.Tensor, torch.Tensor, dict[int, str]] | None = None

    def ghost_batches(self, epoch: int, start_step: int, ghosts: Sequence[int]) -> Generator[Batch]:
        """Yields the given ghost batches of each step from `start_step` on, step by step, fully shuffled."""
        recipe = self._recipe
        order = FullOrder(
            self._reader.split.num_images,
            global_batch=recipe.global_batch,
            ghost_batch=recipe.ghost_batch,
            seed=recipe.seed,
            epoch=epoch,
            repeats=epoch_repeats(recipe, self._reader.split, epoch),
        )
        augmentation = Augmentation(recipe.augment, recipe.seed, epoch)
        places = [(step, ghost) for step in range(start_step, order.steps_per_epoch) for ghost in ghosts]
        at_once = max(1, _CROPS // recipe.ghost_batch)
        for first in range(0, len(places), at_once):
            here = places[first : first + at_once]
            draws = np.stack([order.draws(step, ghost) for step, ghost in here])
            yield from self._cropped(draws, [ghost for _, ghost in here], augmentation)

    def center_crops(self, share: range, crop: int, shorter_side: int) -> Generator[Batch]:
        """Yields the center crops of the images with these indices."""
        images, labels, _ = self._load()
        heights, widths = (np.array([side]) for side in images.shape[1:3])
        (window,) = evaluation_windows(heights, widths, crop, shorter_side)
        for first in share[:: self._options.evaluation_batch]:
            indices = np.arange(first, min(first + self._options.evaluation_batch, share.stop))
            here = slice(first, first + len(indices))
            pixels = center_crop(images[here], window, crop)
            yield self._batch(self._maker.normalized(pixels), labels[here], indices, -1)

    def close(self) -> None:
        """Frees the images."""
        self._loaded = None

    def _cropped(self, draws: np.ndarray, ghosts: Sequence[int], augmentation: Augmentation) -> Generator[Batch]:
        """The ghost batches with these draws, int64 [ghosts, N]; their crops are made together."""
        images, labels, _ = self._load()
        together = draws.reshape(-1)
        heights, widths = (np.full(len(together), side) for side in images.shape[1:3])
        windows, flips = augmentation.windows(together, heights, widths), augmentation.flips(together)
        index = on_device(together % len(images), self._device)
        crops = crop_images(images, index, windows, flips, self._recipe.augment.padding)
        parts = zip(*(each.split(draws.shape[1]) for each in (*crops, labels[index])), strict=True)
        for (pixels, inside, own), part, ghost in zip(parts, draws, ghosts, strict=True):
            # One ghost batch at a time: sums of colors depend on how many images there are.
            normalized = self._maker.normalized(pixels, part, augmentation)
            batch = self._batch(normalized, own, part % len(images), ghost)
            # The padding is zero after normalization, as in facebook/fb.resnet.torch: the mean color, not black.
            batch.images.mul_(inside.permute(0, 3, 1, 2))
            yield batch

    def _batch(self, images: torch.Tensor, labels: torch.Tensor, indices: np.ndarray, ghost: int) -> Batch:
        *_, damaged = self._load()
        here = {number: damaged[index] for number, index in enumerate(indices.tolist()) if index in damaged}
        return self._maker.batch(images, labels, indices, ghost, here)

    def _load(self) -> tuple[torch.Tensor, torch.Tensor, dict[int, str]]:
        if self._loaded is None:
            self._loaded = load_images(
                self._reader,
                self._recipe.augment.size,
                decode=self._options.decode,
                device=self._device,
                num_threads=self._options.num_threads,
            )
        return self._loaded


def load_images(
    reader: ShardReader, size: int, *, decode: Decode, device: torch.device, num_threads: int
) -> tuple[torch.Tensor, torch.Tensor, dict[int, str]]:
    """Decodes a whole split: (uint8 [num_images, size, size, 3], labels int64 [num_images], both on the device; the
    reason for each damaged image by its index; these are replaced with a neutral one)."""
    split = reader.split
    images = torch.empty((split.num_images, size, size, 3), dtype=torch.uint8)
    labels = np.empty(split.num_images, np.int64)
    decoder = open_decoder(decode, max_batch=_BATCH, num_threads=num_threads, device=torch.device("cpu"))
    damaged = {}
    for request, pixels in decoder.decode(whole_requests(reader, size, _BATCH)):
        images[torch.from_numpy(request.indices)] = pixels
        labels[request.indices] = request.labels
        damaged |= {int(request.indices[number]): reason for number, reason in request.damaged.items()}
    return images.to(device), torch.from_numpy(labels).to(device), damaged


def crop_images(
    images: torch.Tensor, index: torch.Tensor, windows: np.ndarray, flips: np.ndarray, padding: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops windows from padded images: (uint8 [N, S, S, 3], bool [N, S, S, 1]: whether a pixel is in the image).

    `images`: uint8 [M, H, W, 3]; `index`: int64 [N], on their device; `windows`: int64 [N, 4], all S x S, counted from
    the padding's corner; `flips`: bool [N]. Padding has the value of some border pixel and is marked False.
    """
    device = images.device
    size = int(windows[0, 2])
    reach = np.arange(size)
    rows = windows[:, :1] + reach - padding
    columns = windows[:, 1:2] + np.where(flips[:, None], reach[::-1], reach) - padding
    rows, columns = on_device(rows, device), on_device(columns, device)
    height, width = images.shape[1:3]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    return images[index[:, None, None], rows[:, :, None], columns[:, None, :]], inside[..., None]


def center_crop(images: torch.Tensor, window: np.ndarray, crop: int) -> torch.Tensor:
    """The same window (top, left, height, width) of every image, resized to crop x crop: uint8 [N, crop, crop, 3]."""
    top, left, height, width = (int(number) for number in window)
    pixels = images[:, top : top + height, left : left + width]
    if (height, width) == (crop, crop):
        return pixels
    values = torch.nn.functional.interpolate(
        pixels.permute(0, 3, 1, 2).float(), (crop, crop), mode="bilinear", antialias=True, align_corners=False
    )
    return values.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
