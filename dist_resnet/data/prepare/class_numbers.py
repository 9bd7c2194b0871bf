"""Numbers the classes that a table or WebDataset archives state in words or numbers."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dist_resnet.data.shards import classes
from dist_resnet.data.shards.spelling import key, nearest

MOST_CLASSES = 1_000_000
"""More than any set has: a larger number is not a class."""
# As written in text: pandas writes whole numbers beside missing ones as 3.0.
_WHOLE = re.compile(r"(-?(?:0|[1-9]\d{0,17}))(?:\.0*)?")


@dataclass(frozen=True, kw_only=True)
class Stated:
    """The classes of a split's images, as stated."""

    texts: Sequence[str]
    place: Callable[[int], str]
    """Where the class of image i is stated, for messages: `labels.csv line 7`."""


@dataclass(frozen=True, kw_only=True)
class Numbered:
    """The classes of a set, and their numbers for each split's images, int64."""

    class_names: tuple[str, ...]
    labels: dict[str, np.ndarray]
    by_number: bool
    """Whether the source states numbers, which are then the labels."""


def number_classes(splits: dict[str, Stated], class_names: Sequence[str] | None = None) -> Numbered:
    """The classes of some splits: whole numbers are the labels, other texts are sorted.

    `class_names`: the classes of the set, if known; otherwise those of the first split. Raises ValueError for a class
    that is not one of them and for numbers that cannot be labels.
    """
    if class_names is None and all(_WHOLE.fullmatch(text) for one in splits.values() for text in one.texts):
        labels = {split: _numbers(one) for split, one in splits.items()}
        count = 1 + max((int(found.max(initial=0)) for found in labels.values()), default=0)
        return Numbered(class_names=tuple(classes.numbers(count)), labels=labels, by_number=True)
    if class_names is None:
        class_names = tuple(sorted({key(text) for text in next(iter(splits.values())).texts}))
    labels = {split: _places(one, class_names) for split, one in splits.items()}
    return Numbered(class_names=tuple(class_names), labels=labels, by_number=False)


def _numbers(stated: Stated) -> np.ndarray:
    found = np.array([int(text.partition(".")[0]) for text in stated.texts], np.int64)
    beyond = np.flatnonzero((found < 0) | (found >= MOST_CLASSES))
    if len(beyond):
        row = int(beyond[0])
        if found[row] < 0:
            raise ValueError(f"{stated.place(row)} has label {found[row]}, which means no label; give it a class")
        raise ValueError(
            f"{stated.place(row)} has label {found[row]}, which is not a class number, 0 .. {MOST_CLASSES - 1}; "
            "number the classes from 0, or state them as text"
        )
    return found


def _places(stated: Stated, class_names: Sequence[str]) -> np.ndarray:
    numbers = {key(name): number for number, name in enumerate(class_names)}
    found = []
    for row, text in enumerate(stated.texts):
        number = numbers.get(key(text))
        if number is None:
            near = nearest(text, class_names)
            raise ValueError(
                f"{stated.place(row)} has class {text}, which is not one of the {len(class_names)} classes of the "
                f"training images{f', but {near!r} is' if near else ''}; correct it, or complete the training images"
            )
        found.append(number)
    return np.array(found, np.int64)
