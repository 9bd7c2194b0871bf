"""Row groups read ahead of use, and the decoder's requests made from them.

Memory: a training stream holds the row groups of its window and, toward the window's end, more and more of the next:
at most 2 x `order.WINDOW_ROW_GROUPS` row groups of encoded images per stream of the worker. Evaluation holds the row
groups of its batch and `_EVALUATION_AHEAD` more. Row groups of local prepared shards are in the kernel's page cache.
"""

import contextlib
import functools
import logging
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NoReturn

import numpy as np

from dist_resnet.data.image.headers import check_megapixels, check_whole, image_size, oddity
from dist_resnet.data.image.ingest import ingest
from dist_resnet.data.input.augment import Augmentation, evaluation_windows
from dist_resnet.data.input.balance import epoch_repeats
from dist_resnet.data.input.batch import Request
from dist_resnet.data.input.order import WindowedOrder, draw_numbers
from dist_resnet.data.shards.reader import RowGroup, ShardReader
from dist_resnet.data.shards.split import Split
from dist_resnet.recipe import Recipe

logger = logging.getLogger(__name__)

_READERS = 8
_EVALUATION_AHEAD = 4
_MOST_OF_ANOTHER_SIZE = 100


class _Window:
    """A window of a stream: its shuffled order, and its row groups that have been requested so far."""

    def __init__(
        self, pool: ThreadPoolExecutor, reader: ShardReader, order: WindowedOrder, stream: int, number: int
    ) -> None:
        self.number = number
        self._pool, self._reader = pool, reader
        self._content = order.window(stream, number)
        self._groups: list[Future[RowGroup]] = []

    def read_ahead(self, share: float) -> None:
        """Requests this share of the row groups, rounded up."""
        groups = self._content.row_groups
        for number in range(len(self._groups), int(np.ceil(share * len(groups)))):
            self._groups.append(self._pool.submit(self._reader.read, int(groups[number])))

    def images(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray, int]]:
        """(draw, encoded bytes, label) of the images at positions start .. stop - 1; waits for their row groups."""
        self.read_ahead(1.0)
        content, here = self._content, slice(start, stop)
        pieces, rows = content.pieces[here], content.rows[here]
        firsts = self._reader.split.group_first[content.row_groups[pieces]]
        draws = draw_numbers(firsts + rows, content.copies[here], self._reader.split.num_images)
        for piece, row, draw in zip(pieces.tolist(), rows.tolist(), draws.tolist(), strict=True):
            group = self._groups[piece].result()
            yield draw, group.images[row], int(group.labels[row])

    def __len__(self) -> int:
        return len(self._content.rows)


class _Stream:
    """The images of one ghost batch of every step, from a given step on."""

    def __init__(self, pool: ThreadPoolExecutor, reader: ShardReader, order: WindowedOrder, ghost: int) -> None:
        self._source = (pool, reader, order, ghost)
        self._order, self._ghost = order, ghost
        self._window: _Window | None = None
        self._following: _Window | None = None

    def ghost_batch(self, step: int) -> list[tuple[int, np.ndarray, int]]:
        """(draw, encoded bytes, label) of each image of the stream's ghost batch in `step`."""
        images = []
        for number, start, stop in self._order.spans(step, self._ghost):
            window = self._at(number)
            images += window.images(start, stop)
            if self._following is not None:
                self._following.read_ahead(stop / len(window))
        return images

    def start(self, step: int) -> None:
        """Asks for the row groups of `step`, without waiting for them."""
        self._at(self._order.spans(step, self._ghost)[0][0]).read_ahead(1.0)

    def _at(self, number: int) -> _Window:
        if self._window is None or self._window.number != number:
            moved = self._following is not None and self._following.number == number
            self._window = self._following if moved else _Window(*self._source, number)
            last = number + 1 == self._order.num_windows(self._ghost)
            self._following = None if last else _Window(*self._source, number + 1)
        assert self._window is not None
        return self._window


def training_requests(
    recipe: Recipe, reader: ShardReader, epoch: int, start_step: int, ghosts: Sequence[int]
) -> Generator[Request]:
    """Yields the requests of the given ghost batches of each step from `start_step` on, step by step.

    Here and below, damaged images are replaced with a neutral one and listed in the request's `damaged`.
    """
    order = WindowedOrder(
        reader.split.group_rows,
        global_batch=recipe.global_batch,
        ghost_batch=recipe.ghost_batch,
        seed=recipe.seed,
        epoch=epoch,
        repeats=epoch_repeats(recipe, reader.split, epoch),
    )
    if start_step >= order.steps_per_epoch:
        return
    augmentation = Augmentation(recipe.augment, recipe.seed, epoch)
    with _readers() as pool:
        streams = {ghost: _Stream(pool, reader, order, ghost) for ghost in ghosts}
        for stream in streams.values():
            stream.start(start_step)
        for step in range(start_step, order.steps_per_epoch):
            for ghost, stream in streams.items():
                yield _training_request(augmentation, ghost, stream.ghost_batch(step), reader.split.num_images)


def evaluation_requests(
    reader: ShardReader, share: range, batch: int, *, crop: int, shorter_side: int
) -> Generator[Request]:
    """Yields requests for a share of the split's images, in order, at most `batch` in each."""
    for rows in _batches(reader, share, batch):
        indices, images, labels = _columns(rows)
        heights, widths, damaged = image_sizes(images)
        windows = evaluation_windows(heights, widths, crop, shorter_side)
        request = Request(images, windows, np.zeros(len(images), bool), crop, indices, labels, -1)
        yield request.without(damaged)


def whole_requests(reader: ShardReader, size: int, batch: int) -> Generator[Request]:
    """Yields requests for every image without cropping; one that is not size x size counts as damaged."""
    for rows in _batches(reader, range(reader.split.num_images), batch):
        indices, images, labels = _columns(rows)
        heights, widths, damaged = image_sizes(images)
        for number in np.flatnonzero((heights != size) | (widths != size)).tolist():
            damaged.setdefault(number, f"it is {widths[number]} x {heights[number]}, not {size} x {size}")
        windows = np.tile(np.array([0, 0, size, size]), (len(images), 1))
        yield Request(images, windows, np.zeros(len(images), bool), size, indices, labels, -1).without(damaged)


def check_some_whole(split: Split, side: int | None = None) -> None:
    """Checks that a split has an intact image, by header and end; nearly always the first one is.

    If `side` is given, that image must be side x side. Raises ValueError, naming the first image, if none is intact,
    or if the first `_MOST_OF_ANOTHER_SIZE` intact ones have another size.
    """
    reader, first, others = ShardReader(split), "", []
    for number in range(split.num_row_groups):
        for row, image in enumerate(reader.read(number).images):
            (height,), (width,), damaged = image_sizes([image])
            if not damaged and side in (None, height) and side in (None, width):
                return
            if damaged:
                first = first or damaged[0]
                continue
            others.append((int(split.group_first[number]) + row, f"{width} x {height}"))
            if len(others) == _MOST_OF_ANOTHER_SIZE:
                _refuse_size(split, side, others)
    if others:
        _refuse_size(split, side, others)
    file, row = split.locate(0)
    raise ValueError(
        f"none of the {split.num_images} images of {split.uri} can be decoded; the first is {file} row {row} "
        f"({first}); give shards of encoded images, such as JPEG or PNG"
    )


def _refuse_size(split: Split, side: int | None, others: list[tuple[int, str]]) -> NoReturn:
    """Raises the ValueError for images of another size; `others`: (index, size) of each that was checked."""
    (index, size), sizes = others[0], {size for _, size in others}
    file, row = split.locate(index)
    alike = len(sizes) == 1 and len(set(size.split(" x "))) == 1
    way = f"--augment.size {size.split(' x ')[0]} or " if alike else ""
    raise ValueError(
        f"augment.kind pad needs images of {side} x {side} (augment.size), but none of the first {len(others)} of "
        f"{split.uri} has that size: {file} row {row} has {size}; give images of that size, or train with {way}"
        "--augment.kind scale"
    )


def image_sizes(images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Heights and widths, int64 [N] each, and the reason for each damaged image, by position.

    An image that is too large counts as damaged: a decoder allocates the memory that the header claims. An image that
    the decoder would read differently from preparing is replaced in `images` by its prepared form.
    """
    sizes = np.ones((len(images), 2), np.int64)
    damaged = {}
    for number, image in enumerate(images):
        try:
            if reason := oddity(image):
                image = images[number] = _converted(image, reason)
            size = image_size(image)
            check_megapixels(*size)
            check_whole(image)
            sizes[number] = size
        except ValueError as error:
            damaged[number] = str(error)
    return sizes[:, 0], sizes[:, 1], damaged


def _converted(image: np.ndarray, reason: str) -> np.ndarray:
    prepared = ingest(image.tobytes()).encoded
    _warn_once(reason)
    return np.frombuffer(prepared, np.uint8)


@functools.cache
def _warn_once(reason: str) -> None:
    """Warns once for each reason, not for every image."""
    logger.warning(
        "the shards have images that are converted each time they are read (%s); prepare the set with "
        "jobs/prepare_imagenet.py to convert them once",
        reason,
    )


def _batches(reader: ShardReader, share: range, batch: int) -> Iterator[list[tuple[int, np.ndarray, int]]]:
    """(index, encoded bytes, label) of a share of the images, in lists of at most `batch`."""
    with _readers() as pool:
        waiting: list[tuple[int, np.ndarray, int]] = []
        for group in _sequential(pool, reader, share):
            low, high = max(share.start - group.first_index, 0), min(share.stop - group.first_index, len(group.labels))
            for row in range(low, high):
                waiting.append((group.first_index + row, group.images[row], int(group.labels[row])))
                if len(waiting) == batch:
                    yield waiting
                    waiting = []
        if waiting:
            yield waiting


def _sequential(pool: ThreadPoolExecutor, reader: ShardReader, share: range) -> Iterator[RowGroup]:
    """The row groups that hold a share of the images, with some read ahead."""
    split = reader.split
    ends = split.group_first + split.group_rows
    wanted = deque(np.flatnonzero((ends > share.start) & (split.group_first < share.stop)).tolist())
    reading: deque[Future[RowGroup]] = deque()
    while wanted or reading:
        while wanted and len(reading) <= _EVALUATION_AHEAD:
            reading.append(pool.submit(reader.read, wanted.popleft()))
        yield reading.popleft().result()


@contextlib.contextmanager
def _readers() -> Iterator[ThreadPoolExecutor]:
    """A pool of reading threads; at the block's end, waiting reads are cancelled and all threads end."""
    pool = ThreadPoolExecutor(_READERS, thread_name_prefix="dist_resnet-read")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _training_request(
    augmentation: Augmentation, ghost: int, rows: list[tuple[int, np.ndarray, int]], num_images: int
) -> Request:
    draws, images, labels = _columns(rows)
    heights, widths, damaged = image_sizes(images)
    windows = augmentation.windows(draws, heights, widths)
    flips, size = augmentation.flips(draws), augmentation.augment.size
    request = Request(images, windows, flips, size, draws % num_images, labels, ghost, draws=draws)
    return request.without(damaged)


def _columns(rows: list[tuple[int, np.ndarray, int]]) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    indices, images, labels = zip(*rows, strict=True)
    return np.array(indices, np.int64), list(images), np.array(labels, np.int64)
