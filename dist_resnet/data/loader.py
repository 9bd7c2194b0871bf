"""Batches of normalised pictures for a worker, from shards or from pictures that live on the device.

Which pictures, crops, flips and colours make ghost batch k of step s depends on the recipe and the split alone; the
execution and the rank decide which worker makes them, where and how far ahead.
"""

import os
import weakref
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from dist_resnet.data.datasets import DATASETS
from dist_resnet.data.input import augment as augmentation
from dist_resnet.data.input.decoders import open_decoder
from dist_resnet.data.input.normalize import Normalizer
from dist_resnet.data.input.order import FullOrder, steps_per_epoch
from dist_resnet.data.input.prefetch import Prefetched
from dist_resnet.data.input.request import Request
from dist_resnet.data.input.resident import centre_crop, crop_pictures, load_pictures
from dist_resnet.data.input.streams import evaluation_requests, training_requests
from dist_resnet.data.shards.split import ShardReader, Split
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.storage.ranges import Access


@dataclass(frozen=True)
class Damaged:
    """A picture that cannot be decoded."""

    index: int
    """Its index in the split."""
    file: str
    row: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file} row {self.row} ({self.reason})"


@dataclass
class Batch:
    """N pictures, ready for the network."""

    images: torch.Tensor
    """float32 [N, 3, S, S], normalised, on the loader's device."""
    labels: torch.Tensor
    """int64 [N], on the loader's device."""
    indices: np.ndarray
    """int64 [N]: the pictures' indices in the split."""
    ghost: int
    """Which ghost batch of the step it is; -1 in evaluation."""
    weights: torch.Tensor
    """float32 [N], on the loader's device: 1, or 0 where the picture cannot be decoded and is all zeros."""
    damaged: tuple[Damaged, ...] = ()
    """The pictures of weight 0."""


class Loader:
    """Pictures from Parquet shards, decoded ahead of their use."""

    def __init__(
        self,
        recipe: Recipe,
        execution: Execution,
        train: Split,
        validation: Split,
        *,
        rank: int,
        world_size: int,
        device: torch.device,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """`rank` of `world_size` workers. `alive` is called again and again while an object store fails the loader.

        Raises ValueError for too few pictures or labels past the classes.
        """
        if not 0 <= rank < world_size <= recipe.num_ghost_batches:
            raise ValueError(
                f"rank {rank} of {world_size} workers is impossible with {recipe.num_ghost_batches} ghost batches"
            )
        for split in (train, validation):
            split.check_labels(recipe.model.num_classes)
        self.steps_per_epoch = steps_per_epoch(train.num_images, recipe.global_batch)
        """Steps in an epoch: whole global batches."""
        self.num_images = train.num_images
        """Training pictures."""
        self.num_validation_images = validation.num_images
        """Pictures that an evaluation counts, over all workers."""
        self._recipe, self._execution = recipe, execution
        self._validation = validation
        access = Access(
            patience_seconds=60 * execution.storage_minutes,
            cache=execution.cache,
            cache_bytes=round(execution.cache_gigabytes * 1e9),
            alive=alive,
        )
        self._readers = {"train": ShardReader(train, access), "validation": ShardReader(validation, access)}
        self._rank, self._world_size, self._device = rank, world_size, device
        self._ghosts = list(range(rank, recipe.num_ghost_batches, world_size))
        self._normalize = Normalizer(DATASETS[recipe.data.dataset], device, channels_last=execution.channels_last)
        # torch's count is the process's share of the machine where a launcher has set it.
        self._num_threads = execution.cpus_per_worker or min(torch.get_num_threads(), os.cpu_count() or 1)
        self._running: weakref.WeakSet[Prefetched] = weakref.WeakSet()

    def train(self, epoch: int, start_step: int = 0) -> Generator[list[Batch]]:
        """Yields the worker's ghost batches (k % world_size == rank, ascending) of each step from `start_step` on.

        A picture that cannot be decoded is all zeros and of no weight. Raises ValueError, naming the file, where a
        shard cannot be read.
        """
        requests = training_requests(self._recipe, self._readers["train"], epoch, start_step, self._ghosts)
        step: list[Batch] = []
        for batch in self._batches(requests, self._readers["train"].split, self._recipe.ghost_batch, epoch):
            step.append(batch)
            if len(step) == len(self._ghosts):
                yield step
                step = []

    def evaluate(self, crop: int, shorter_side: int) -> Generator[Batch]:
        """Yields the worker's share of the validation pictures, cut at the centre; together the workers' shares hold
        each picture once.

        A picture that cannot be decoded is all zeros and of no weight. Raises ValueError, naming the file, where a
        shard cannot be read.
        """
        start, stop = self._share()
        batch = self._execution.evaluation_batch
        requests = evaluation_requests(self._readers["validation"], start, stop, crop, shorter_side, batch)
        yield from self._batches(requests, self._validation, batch, None)

    def close(self) -> None:
        """Stops what the loader still runs in the background; iterators of it end."""
        for running in list(self._running):
            running.close()

    def _share(self) -> tuple[int, int]:
        """The span of validation pictures that is this worker's."""
        num = self._validation.num_images
        return num * self._rank // self._world_size, num * (self._rank + 1) // self._world_size

    def _batches(
        self, requests: Generator[Request], split: Split, max_batch: int, epoch: int | None
    ) -> Generator[Batch]:
        """The requests as batches, made ahead by a background thread that ends with the iteration."""
        running = Prefetched(self._decode(requests, max_batch, epoch), self._execution.prefetch)
        self._running.add(running)
        try:
            for request, made in running:
                images = made
                if self._device.type == "cuda":
                    if made.is_cuda:
                        made.record_stream(torch.cuda.current_stream(self._device))  # made on the decoder's stream
                    pixels = made.to(self._device, non_blocking=True)
                    images = self._normalize(pixels, self._colors(request.indices, epoch))
                damaged = {int(request.indices[place]): reason for place, reason in request.damaged.items()}
                yield self._batch(images, request.labels, request.indices, request.ghost, split, damaged)
        finally:
            running.close()

    def _decode(
        self, requests: Generator[Request], max_batch: int, epoch: int | None
    ) -> Generator[tuple[Request, torch.Tensor]]:
        """The requests with their pixels, for a GPU; with the network's input, where that lies on the CPU.

        The decoder is made in the thread that runs this and goes with it.
        """
        gpu = self._device.type == "cuda"
        decoder = open_decoder(
            self._execution.decode, max_batch=max_batch, num_threads=self._num_threads, device=self._device
        )
        for request, pixels in decoder.decode(requests):
            # The encoded pictures are views that would keep their whole row groups in memory.
            request = replace(request, images=[])
            if not gpu:
                yield request, self._normalize(pixels, self._colors(request.indices, epoch))
            else:
                yield request, pixels if pixels.is_cuda else pixels.pin_memory()

    def _batch(
        self,
        images: torch.Tensor,
        labels: np.ndarray,
        indices: np.ndarray,
        ghost: int,
        split: Split,
        damaged: Mapping[int, str],
    ) -> Batch:
        """The batch of normalised pictures, those of the damaged indices taken out."""
        weights = torch.ones(len(labels), device=self._device)
        told = []
        for place in np.flatnonzero(np.isin(indices, list(damaged))) if damaged else ():
            images[place], weights[place] = 0, 0
            index = int(indices[place])
            told.append(Damaged(index, *split.locate(index), damaged[index]))
        return Batch(images, torch.from_numpy(labels).to(self._device), indices, ghost, weights, tuple(told))

    def _colors(self, indices: np.ndarray, epoch: int | None) -> augmentation.ColorFactors | None:
        if epoch is None:
            return None
        return augmentation.color_factors(self._recipe.augment, self._recipe.seed, epoch, indices)


class DeviceResidentLoader(Loader):
    """Pictures of the CIFAR kind: decoded once, kept on the device, cut there; in a fully shuffled order."""

    def __init__(
        self,
        recipe: Recipe,
        execution: Execution,
        train: Split,
        validation: Split,
        *,
        rank: int,
        world_size: int,
        device: torch.device,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """As `Loader`; the pictures of a split are decoded when they are first asked for."""
        super().__init__(
            recipe, execution, train, validation, rank=rank, world_size=world_size, device=device, alive=alive
        )
        self._pictures: dict[str, tuple[torch.Tensor, np.ndarray, dict[int, str]]] = {}

    def train(self, epoch: int, start_step: int = 0) -> Generator[list[Batch]]:
        """Yields the worker's ghost batches (k % world_size == rank, ascending) of each step from `start_step` on."""
        recipe = self._recipe
        order = FullOrder(
            self._readers["train"].split.num_images,
            global_batch=recipe.global_batch,
            ghost_batch=recipe.ghost_batch,
            seed=recipe.seed,
            epoch=epoch,
        )
        for step in range(start_step, order.steps_per_epoch):
            yield [self._ghost_batch(order.indices(step, ghost), ghost, epoch) for ghost in self._ghosts]

    def evaluate(self, crop: int, shorter_side: int) -> Generator[Batch]:
        """Yields the worker's share of the validation pictures, cut at the centre; together the workers' shares hold
        each picture once."""
        pictures, *_ = self._resident("validation")
        start, stop = self._share()
        heights, widths = (np.array([side]) for side in pictures.shape[1:3])
        window = augmentation.evaluation_windows(heights, widths, crop, shorter_side)[0]
        for first in range(start, stop, self._execution.evaluation_batch):
            indices = np.arange(first, min(first + self._execution.evaluation_batch, stop))
            pixels = centre_crop(pictures[first : int(indices[-1]) + 1], window, crop)
            yield self._resident_batch("validation", pixels, indices, -1, None)

    def close(self) -> None:
        """Lets go of the pictures."""
        self._pictures.clear()

    def _ghost_batch(self, indices: np.ndarray, ghost: int, epoch: int) -> Batch:
        recipe = self._recipe
        pictures, *_ = self._resident("train")
        heights, widths = (np.full(len(indices), side) for side in pictures.shape[1:3])
        windows = augmentation.crop_windows(recipe.augment, recipe.seed, epoch, indices, heights, widths)
        flips = augmentation.flips(recipe.augment, recipe.seed, epoch, indices)
        pixels, inside = crop_pictures(pictures, indices, windows, flips, recipe.augment.padding)
        batch = self._resident_batch("train", pixels, indices, ghost, epoch)
        # The padding is zero after normalisation, as in facebook/fb.resnet.torch: the colour of the mean, not black.
        batch.images.mul_(inside.permute(0, 3, 1, 2))
        return batch

    def _resident_batch(
        self, name: str, pixels: torch.Tensor, indices: np.ndarray, ghost: int, epoch: int | None
    ) -> Batch:
        _, labels, damaged = self._resident(name)
        images = self._normalize(pixels, self._colors(indices, epoch))
        return self._batch(images, labels[indices], indices, ghost, self._readers[name].split, damaged)

    def _resident(self, name: str) -> tuple[torch.Tensor, np.ndarray, dict[int, str]]:
        if name not in self._pictures:
            size = self._recipe.augment.size
            self._pictures[name] = load_pictures(
                self._readers[name],
                size,
                decode=self._execution.decode,
                device=self._device,
                num_threads=self._num_threads,
            )
        return self._pictures[name]


def open_loader(
    recipe: Recipe,
    execution: Execution,
    train: Split,
    validation: Split,
    *,
    rank: int,
    world_size: int,
    device: torch.device,
    alive: Callable[[], None] = lambda: None,
) -> Loader:
    """The loader that a recipe asks for: augment.kind pad keeps its pictures on the device, the others read shards."""
    kind = DeviceResidentLoader if recipe.augment.kind == "pad" else Loader
    return kind(recipe, execution, train, validation, rank=rank, world_size=world_size, device=device, alive=alive)
