"""The images of ghost batch k of step s: a pure function of (seed, epoch, s, k), independent of the world size.

Every permutation sorts the raw 64-bit output of a Philox generator, which is the same in all NumPy versions and on all
machines.
"""

import bisect
from dataclasses import dataclass

import numpy as np

WINDOW_ROW_GROUPS = 8
_MASK = (1 << 64) - 1
_ROW_GROUPS, _ROTATION, _WINDOW, _FULL = range(4)


@dataclass(frozen=True)
class Window:
    """Some row groups of a stream, shuffled together."""

    row_groups: np.ndarray
    """int64 [pieces]: its row groups, at most `WINDOW_ROW_GROUPS`."""
    pieces: np.ndarray
    """int64 [images]: the position in `row_groups` of each image's row group, in shuffled order."""
    rows: np.ndarray
    """int64 [images]: its row there."""
    copies: np.ndarray
    """int64 [images]: how often the epoch has this image before; always 0 unless it draws some repeatedly."""


def steps_per_epoch(num_images: int, global_batch: int) -> int:
    """The number of whole global batches in an epoch. Raises ValueError if there is none."""
    if num_images < global_batch:
        raise ValueError(
            f"{num_images} training images do not fill one global batch of {global_batch}; "
            "lower --global-batch or give more images"
        )
    return num_images // global_batch


class WindowedOrder:
    """The order for shards: nearly sequential reads, with a separate stream of row groups for each ghost batch.

    The row groups are permuted, and the sequence of their images is rotated by a random offset, so that a few large
    row groups mix too and each epoch drops another tail. The sequence is cut into one equal span (stream) per ghost
    batch, and each stream is shuffled within windows of `WINDOW_ROW_GROUPS` row groups.
    """

    def __init__(
        self,
        group_rows: np.ndarray,
        *,
        global_batch: int,
        ghost_batch: int,
        seed: int,
        epoch: int,
        repeats: np.ndarray | None = None,
    ) -> None:
        """`group_rows`: int64 [R], images of each row group; `repeats`: int64 [images], how often each is drawn, with
        the number of images as their sum, by default once. Raises ValueError for too few images.
        """
        self._repeats, self._firsts = repeats, np.cumsum(group_rows) - group_rows
        drawn = np.arange(len(group_rows))
        if repeats is not None:  # a row group then counts as many images as are drawn from it
            group_rows = np.add.reduceat(repeats, self._firsts)
            drawn = np.flatnonzero(group_rows)
        self.num_images = int(group_rows.sum())
        self.steps_per_epoch = steps_per_epoch(self.num_images, global_batch)
        self.num_streams = global_batch // ghost_batch
        self._ghost_batch = ghost_batch
        self._key = (seed, epoch)
        order = drawn[_permutation(len(drawn), self._key, _ROW_GROUPS)]
        offset = int(_generator(self._key, _ROTATION).random_raw()) % self.num_images
        self._groups, self._rows, self._lengths = _rotate(order, group_rows[order], offset)
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._bounds: dict[int, list[int]] = {}

    def spans(self, step: int, ghost: int) -> list[tuple[int, int, int]]:
        """The parts of a ghost batch: (window of its stream, first position, last position + 1) of each window."""
        bounds = self._window_bounds(ghost)
        begin, end = step * self._ghost_batch, (step + 1) * self._ghost_batch
        spans = []
        number = bisect.bisect_right(bounds, begin) - 1
        while begin < end:
            stop = min(end, bounds[number + 1])
            spans.append((number, begin - bounds[number], stop - bounds[number]))
            begin, number = stop, number + 1
        return spans

    def num_windows(self, stream: int) -> int:
        """The number of windows of a stream."""
        return len(self._window_bounds(stream)) - 1

    def window(self, stream: int, number: int) -> Window:
        """Window `number` of a stream."""
        groups, firsts, lengths = self._pieces(stream)
        here = slice(number * WINDOW_ROW_GROUPS, (number + 1) * WINDOW_ROW_GROUPS)
        groups, firsts, lengths = groups[here], firsts[here], lengths[here]
        pieces = np.repeat(np.arange(len(groups)), lengths)
        rows = np.arange(len(pieces)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + firsts[pieces]
        shuffle = _permutation(len(pieces), self._key, _WINDOW, stream, number)
        copies = np.zeros_like(rows)
        if self._repeats is not None:
            rows, copies = self._drawn(groups[pieces], rows)
        return Window(groups, pieces[shuffle], rows[shuffle], copies[shuffle])

    def _drawn(self, groups: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The row of each draw of a row group, and which of its repeats it is."""
        assert self._repeats is not None
        rows, copies = np.empty_like(draws), np.empty_like(draws)
        for group in np.unique(groups):
            first = self._firsts[group]
            last = self._firsts[group + 1] if group + 1 < len(self._firsts) else len(self._repeats)
            row_of, copy_of = _repeated(self._repeats[first:last])
            here = groups == group
            rows[here], copies[here] = row_of[draws[here]], copy_of[draws[here]]
        return rows, copies

    def _window_bounds(self, stream: int) -> list[int]:
        """The positions in the stream where its windows start, and its end."""
        if stream not in self._bounds:
            lengths = self._pieces(stream)[2]
            sums = np.add.reduceat(lengths, np.arange(0, len(lengths), WINDOW_ROW_GROUPS))
            self._bounds[stream] = [0, *np.cumsum(sums).tolist()]
        return self._bounds[stream]

    def _pieces(self, stream: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The parts of row groups in a stream: (row groups, first rows, lengths), each int64 [pieces]."""
        span = self.steps_per_epoch * self._ghost_batch
        begin, end = stream * span, (stream + 1) * span
        low = int(np.searchsorted(self._starts, begin, side="right")) - 1
        high = int(np.searchsorted(self._starts, end, side="left"))
        starts, lengths = self._starts[low:high], self._lengths[low:high]
        cut = np.maximum(begin - starts, 0)
        return self._groups[low:high], self._rows[low:high] + cut, np.minimum(starts + lengths, end) - starts - cut


class FullOrder:
    """The order for device-resident images: one permutation of all draws."""

    def __init__(
        self,
        num_images: int,
        *,
        global_batch: int,
        ghost_batch: int,
        seed: int,
        epoch: int,
        repeats: np.ndarray | None = None,
    ) -> None:
        """`repeats` as for `WindowedOrder`. Raises ValueError for too few images."""
        self.steps_per_epoch = steps_per_epoch(num_images, global_batch)
        draws = _permutation(num_images, (seed, epoch), _FULL)
        if repeats is not None:
            images, copies = _repeated(repeats)
            draws = draw_numbers(images, copies, num_images)[draws]
        self._batches = draws[: self.steps_per_epoch * global_batch].reshape(
            self.steps_per_epoch, global_batch // ghost_batch, ghost_batch
        )

    def draws(self, step: int, ghost: int) -> np.ndarray:
        """Draw numbers of ghost batch `ghost` of step `step`: int64 [ghost_batch], as of `draw_numbers`."""
        return self._batches[step, ghost]


def draw_numbers(images: np.ndarray, copies: np.ndarray, num_images: int) -> np.ndarray:
    """A number for each draw of an epoch: the image's index, plus `num_images` for each time it was drawn before."""
    return images + copies * num_images


def _repeated(repeats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The image of each draw, in the images' order, and which of its repeats it is: int64 [draws] each."""
    images = np.repeat(np.arange(len(repeats)), repeats)
    return images, np.arange(len(images)) - np.repeat(np.cumsum(repeats) - repeats, repeats)


def _rotate(groups: np.ndarray, lengths: np.ndarray, offset: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The sequence of row groups from its image `offset` on: (row groups, first rows, lengths)."""
    ends = np.cumsum(lengths)
    turn = int(np.searchsorted(ends, offset, side="right"))
    inside = offset - int(ends[turn] - lengths[turn])
    rows = np.zeros(len(groups) + (inside > 0), np.int64)
    rows[0] = inside
    lengths = np.roll(lengths, -turn)
    groups = np.roll(groups, -turn)
    if inside:
        groups = np.append(groups, groups[0])
        lengths = np.append(lengths, inside)
        lengths[0] -= inside
    return groups, rows, lengths


def _generator(key: tuple[int, int], purpose: int, first: int = 0, second: int = 0) -> np.random.Philox:
    # The first counter word counts the generator's own blocks.
    words = np.array([0, purpose, first, second], dtype=np.uint64)
    return np.random.Philox(key=np.array([key[0] & _MASK, key[1] & _MASK], dtype=np.uint64), counter=words)


def _permutation(length: int, key: tuple[int, int], purpose: int, first: int = 0, second: int = 0) -> np.ndarray:
    return np.argsort(random_words(length, key, purpose, first, second), kind="stable")


def random_words(length: int, key: tuple[int, int], purpose: int, first: int = 0, second: int = 0) -> np.ndarray:
    """Random uint64 [length] for a key (seed, epoch) and a purpose, the same everywhere."""
    return _generator(key, purpose, first, second).random_raw(length)
