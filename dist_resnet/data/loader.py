"""Batches for the network: a worker's ghost batches in training, its share of a split in evaluation.

The images, crops, flips and colors of ghost batch k of step s depend only on the recipe and the split. The options and
the worker decide where and how far ahead they are made.
"""

import contextlib
import weakref
from collections.abc import Generator, Sequence
from dataclasses import replace

import torch

from dist_resnet.data.input.augment import Augmentation
from dist_resnet.data.input.batch import Batch, BatchMaker, Request
from dist_resnet.data.input.decoders import Decoder, InputOptions, open_decoder
from dist_resnet.data.input.normalize import on_device
from dist_resnet.data.input.order import steps_per_epoch
from dist_resnet.data.input.prefetch import Prefetched
from dist_resnet.data.input.resident import ResidentImages
from dist_resnet.data.input.streams import evaluation_requests, training_requests
from dist_resnet.data.shards.reader import ShardReader
from dist_resnet.data.shards.split import Split
from dist_resnet.recipe import Recipe
from dist_resnet.worker import Worker

# Batches decoded ahead of use; in training as many as a step has, so that its first one never waits for decoding.
_AHEAD, _MOST_AHEAD = 2, 16


class TrainingImages:
    """The ghost batches of a worker, epoch by epoch."""

    def __init__(self, recipe: Recipe, split: Split, worker: Worker, options: InputOptions) -> None:
        """Raises ValueError for too few images, labels outside the classes and more workers than ghost batches."""
        if not 0 <= worker.rank < worker.world_size <= recipe.num_ghost_batches:
            raise ValueError(
                f"rank {worker.rank} of {worker.world_size} workers is impossible with {recipe.num_ghost_batches} "
                "ghost batches"
            )
        self.steps_per_epoch = steps_per_epoch(split.num_images, recipe.global_batch)
        """Steps in an epoch: whole global batches."""
        self.num_images = split.num_images
        """Images of the split."""
        self._ghosts = worker.share(recipe.num_ghost_batches)
        self._source = open_source(recipe, split, worker, options)

    @property
    def ghosts_per_step(self) -> int:
        """The worker's ghost batches of a step."""
        return len(self._ghosts)

    def epoch(self, epoch: int, start_step: int = 0) -> Generator[Batch]:
        """Yields the worker's ghost batches (k % world_size == rank), ascending in each step, from `start_step` on.

        On a GPU, each becomes the network's input when it is asked for. An image that cannot be decoded is all zeros
        with weight 0. Raises ValueError, naming the file, if a shard cannot be read.
        """
        return self._source.ghost_batches(epoch, start_step, self._ghosts)

    def close(self) -> None:
        """Stops the background threads, so that iterators end, and frees the images."""
        self._source.close()


class EvaluationImages:
    """A worker's share of a split; all workers' shares together have each image once."""

    def __init__(self, recipe: Recipe, split: Split, worker: Worker, options: InputOptions) -> None:
        """Raises ValueError for labels outside the classes."""
        self.num_images = split.num_images
        """Images of the split, over all workers."""
        start, stop = (split.num_images * rank // worker.world_size for rank in (worker.rank, worker.rank + 1))
        self._share = range(start, stop)
        self._source = open_source(recipe, split, worker, options)

    def center_crops(self, crop: int, shorter_side: int) -> Generator[Batch]:
        """Yields the center crops of the worker's images.

        An image that cannot be decoded is all zeros with weight 0. Raises ValueError, naming the file, if a shard
        cannot be read.
        """
        yield from self._source.center_crops(self._share, crop, shorter_side)

    def close(self) -> None:
        """Stops the background threads, so that iterators end, and frees the images."""
        self._source.close()


class StreamedImages:
    """Images of a split that are read from its shards and decoded ahead of use."""

    def __init__(self, recipe: Recipe, reader: ShardReader, device: torch.device, options: InputOptions) -> None:
        self._recipe, self._reader, self._device, self._options = recipe, reader, device, options
        self._maker = BatchMaker(recipe, reader.split, device, channels_last=options.channels_last)
        self._running: weakref.WeakSet[Prefetched] = weakref.WeakSet()
        # Decoders that no iteration uses: to build one takes 0.1 s, on a GPU seconds.
        self._idle: dict[tuple[int, bool], list[Decoder]] = {}

    def ghost_batches(self, epoch: int, start_step: int, ghosts: Sequence[int]) -> Generator[Batch]:
        """Yields the given ghost batches of each step from `start_step` on, step by step."""
        recipe = self._recipe
        requests = training_requests(recipe, self._reader, epoch, start_step, ghosts)
        ahead = self._options.prefetch or min(max(len(ghosts), _AHEAD), _MOST_AHEAD)
        return self._batches(requests, recipe.ghost_batch, Augmentation(recipe.augment, recipe.seed, epoch), ahead)

    def center_crops(self, share: range, crop: int, shorter_side: int) -> Generator[Batch]:
        """Yields the center crops of the images with these indices."""
        batch = self._options.evaluation_batch
        requests = evaluation_requests(self._reader, share, batch, crop=crop, shorter_side=shorter_side)
        return self._batches(requests, batch, None, self._options.prefetch or _AHEAD)

    def close(self) -> None:
        """Stops the background threads, so that iterators end, and frees the decoders."""
        for running in list(self._running):
            running.close()
        self._idle.clear()

    def _batches(
        self, requests: Generator[Request], max_batch: int, augmentation: Augmentation | None, ahead: int
    ) -> Generator[Batch]:
        """The batches of the requests, up to `ahead` of them decoded by a background thread that ends with the
        iteration."""
        running = Prefetched(self._decode(requests, max_batch, augmentation), ahead)
        self._running.add(running)
        try:
            for request, output in running:
                images = output
                if self._device.type == "cuda":
                    if output.is_cuda:
                        output.record_stream(torch.cuda.current_stream(self._device))  # from the decoder's stream
                    pixels = output.to(self._device, non_blocking=True)
                    images = self._maker.normalized(pixels, request.draws, augmentation)
                labels = on_device(request.labels, self._device)
                yield self._maker.batch(images, labels, request.indices, request.ghost, request.damaged)
        finally:
            running.close()

    def _decode(
        self, requests: Generator[Request], max_batch: int, augmentation: Augmentation | None
    ) -> Generator[tuple[Request, torch.Tensor]]:
        """Each request with its pixels if the network is on a GPU, otherwise with the network's input."""
        gpu = self._device.type == "cuda"
        alike = augmentation is None
        with self._decoder(max_batch, alike=alike) as decoder, contextlib.closing(decoder.decode(requests)) as decoded:
            for request, pixels in decoded:
                # The encoded images are views, which would keep whole row groups in memory.
                request = replace(request, images=[])
                if not gpu:
                    yield request, self._maker.normalized(pixels, request.draws, augmentation)
                else:
                    yield request, pixels if pixels.is_cuda else pixels.pin_memory()

    @contextlib.contextmanager
    def _decoder(self, max_batch: int, *, alike: bool) -> Generator[Decoder]:
        """An idle decoder, or a new one; it is idle again after the block unless this raises an exception."""
        options, idle = self._options, self._idle.setdefault((max_batch, alike), [])
        decoder = (
            idle.pop()
            if idle
            else open_decoder(
                options.decode,
                max_batch=max_batch,
                num_threads=options.num_threads,
                device=self._device,
                alike=alike,
            )
        )
        try:
            yield decoder
        except GeneratorExit:
            idle.append(decoder)
            raise
        idle.append(decoder)


def open_source(recipe: Recipe, split: Split, worker: Worker, options: InputOptions) -> StreamedImages | ResidentImages:
    """The images of a split for a recipe: augment.kind pad keeps them on the device, the other kinds stream them.

    Raises ValueError for labels outside the classes.
    """
    split.check_labels(recipe.model.num_outputs)
    kind = ResidentImages if recipe.augment.kind == "pad" else StreamedImages
    return kind(recipe, ShardReader(split, options.access), worker.device, options)
