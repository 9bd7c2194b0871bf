"""Finds classes without an intact image, before hours are spent on the others.

Images of each class are decoded until one is intact, nearly always the first.
"""

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dist_resnet.data.image.ingest import DamagedError, ingest
from dist_resnet.data.prepare.index import Index, Source
from dist_resnet.data.prepare.read_blocks import read_blocks
from dist_resnet.data.prepare.request import PrepareProgress

_THREADS = 16
_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class DamagedClass:
    """A class of a split without an intact image, and one of its images as an example."""

    split: str
    name: str
    image: str
    reason: str


def find_damaged_classes(source: Source, progress: PrepareProgress) -> list[DamagedClass]:
    """The classes without an intact image. Raises ValueError if a whole split has none."""
    progress.begin(
        "checking an image of each class", sum(len(set(one.label.tolist())) for one in source.splits.values())
    )
    damaged: list[DamagedClass] = []
    for split, index in source.splits.items():
        by_class = _rows_by_class(index)
        here = [
            DamagedClass(split=split, name=source.class_names[index.label[rows[0]]], image=found[0], reason=found[1])
            for rows, found in zip(by_class, _look_at_each(index, by_class, progress), strict=True)
            if found
        ]
        if len(here) == len(by_class):
            raise ValueError(
                f"every {split} image is damaged, such as {here[0].image} ({here[0].reason}); give an intact --source"
            )
        damaged += here
    return damaged


def refusal(damaged: Sequence[DamagedClass]) -> str:
    """The complaint about damaged classes, which names the first."""
    first = damaged[0]
    others = f" (and of {len(damaged) - 1} other classes)" if len(damaged) > 1 else ""
    return f"every {first.split} image of class {first.name} is damaged, such as {first.image} ({first.reason}){others}"


def _rows_by_class(index: Index) -> list[np.ndarray]:
    """The rows of each class that has images."""
    rows = np.argsort(index.label, kind="stable")
    return np.split(rows, np.flatnonzero(np.diff(index.label[rows])) + 1)


def _look_at_each(
    index: Index, by_class: list[np.ndarray], progress: PrepareProgress
) -> Iterator[tuple[str, str] | None]:
    with ThreadPoolExecutor(_THREADS) as pool:
        for found in pool.map(functools.partial(_look, index), by_class):
            progress.advance(1)
            yield found


def _look(index: Index, rows: np.ndarray) -> tuple[str, str] | None:
    """(name of the first image, its damage), or None if one of the images is intact."""
    first = None
    # The first one alone: an intact class needs no other.
    for some in (rows[:1], *np.array_split(rows[1:], max(1, len(rows) // _AT_ONCE))):
        if not len(some):
            continue
        taken = index.take(some)
        for block, images in read_blocks(taken):
            for row, encoded in zip(block, images, strict=True):
                try:
                    ingest(encoded)
                except DamagedError as error:
                    first = first or (taken.describe(row), str(error))
                else:
                    return None
    return first
