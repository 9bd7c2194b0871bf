"""Maps the labels of a set to a model's classes by name.

A model's classes are those of its training images, in the order of its outputs. Another set may have them in another
order or lack some; its labels are mapped. Names that the model does not know are refused.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dist_resnet.data.shards.spelling import key, nearest
from dist_resnet.data.shards.split import Split, open_split
from dist_resnet.recipe import MatchClasses, Recipe
from dist_resnet.wording import some

_MOST_NAMED = 5
_UNNAMED = "unnamed {}"


@dataclass(frozen=True, kw_only=True)
class Matched:
    """A split whose labels are mapped to a model's classes."""

    split: Split
    notes: tuple[str, ...] = ()
    """What a reader of the numbers should know, one line each."""
    lacking: tuple[str, ...] = ()
    """The model's classes that the split has no images of, as far as the footers show."""


def of_training(train: Split, num_classes: int, *, spare_outputs: bool) -> tuple[str, ...] | None:
    """The names of a model's classes in the order of its outputs; None if its training images have no class names.

    `spare_outputs` allows more outputs than classes. Raises ValueError for a label without an output or a name, and
    for outputs without a class.
    """
    names = train.class_names
    _check_named(train)
    train.check_labels(num_classes)
    count = count_of(train)
    if count < num_classes and not spare_outputs:
        way_out = f"give --model.num-classes {count}" if count > 1 else "give images of two classes or more"
        raise ValueError(
            f"the model has {num_classes} outputs, the training images at {train.uri} have "
            f"{count} class{'es' * (count > 1)}; {way_out}, or keep spare outputs with --execution.spare-outputs"
        )
    return names and names[:num_classes]


def count_of(train: Split) -> int:
    """The number of classes of training images: of their names, otherwise of the labels from 0 to the greatest."""
    return len(train.class_names) if train.class_names is not None else train.label_range[1] + 1


def match(
    split: Split,
    names: Sequence[str] | None,
    num_classes: int,
    *,
    by: MatchClasses = "names",
    option: str | None = "--data.match-classes",
    what: str = "validation images",
) -> Matched:
    """Maps a split's labels to the classes of a model with `num_classes` outputs, whose class names are `names`.

    For messages: `option` sets `by`, if there is such an option, and `what` is the split's role. Raises ValueError for
    the first image of a class that the model does not know, and for labels that cannot be its classes.
    """
    what = f"{what} at {split.uri}"
    _check_named(split)
    if by == "numbers":
        return _by_number(split, names, num_classes, what, _describe_by_number(split, names, what, option))
    if names is None or split.class_names is None:
        _check_count(split, names, num_classes, what, option)
        return _by_number(split, names, num_classes, what, _describe_no_names(split, names, what))
    label_map = _label_map(split.class_names, names)
    mapped = split.mapped(label_map if (label_map != np.arange(len(label_map))).any() else None)
    _refuse_unknown(split, mapped, names, what, option)
    notes = [*_describe_order(split.class_names, names, label_map, what), *_describe_unused(split, label_map, what)]
    return _finish(mapped, notes, names, label_map, what)


def recorded(record: dict[str, Any], recipe: Recipe) -> tuple[str, ...] | None:
    """The names of a run's classes from its `recipe.json`, or from its training shards if that does not have them.

    None if the training images had no class names, or if the shards of an old run are unreachable or were replaced.
    """
    if "classes" in record:
        names = record["classes"]["names"]
        return names and tuple(names)
    try:
        train = open_split(recipe.data.train, label_column=recipe.data.label_column)
    except (OSError, ValueError):
        return None
    is_same = train.digest == recipe.data.train_digest
    return train.class_names[: recipe.model.num_outputs] if is_same and train.class_names else None


def as_recorded(validation: Split, record: dict[str, Any], num_classes: int) -> Matched:
    """A run's validation images with the label mapping that the run started with, from its `recipe.json`.

    Raises ValueError for a label that is not one of the model's classes.
    """
    labels = record["classes"]["validation_labels"]
    split = dataclasses.replace(validation, label_map=None if labels is None else np.array(labels, np.int64))
    _check_labels(split, num_classes)
    return Matched(split=split)


def for_outputs(names: Sequence[str], num_classes: int) -> list[str]:
    """A name for each output; outputs without a class in the training images are called unnamed.

    >>> for_outputs(["cat", "dog"], 3)
    ['cat', 'dog', 'unnamed 2']
    """
    return [*names, *(_UNNAMED.format(number) for number in range(len(names), num_classes))]


def of_outputs(names: Sequence[str]) -> tuple[str, ...]:
    """The class names among the names of outputs.

    >>> of_outputs(['cat', 'dog', 'unnamed 2'])
    ('cat', 'dog')
    """
    count = len(names)
    while count and names[count - 1] == _UNNAMED.format(count - 1):
        count -= 1
    return tuple(names[:count])


def describe_absent_classes(split: Split, what: str) -> list[str]:
    """A line about classes of which a split has no image, as far as its footers show; `what`: the split's role."""
    least, greatest = split.label_range
    names = numbers(greatest + 1) if split.class_names is None else split.class_names
    present = split.classes_present()
    absent = set(range(len(names))).difference(range(least, greatest + 1) if present is None else present.tolist())
    if not absent:
        return []
    return [
        f"the {what} at {split.uri}, whose labels run from {least} to {greatest}, have {len(names) - len(absent)} of "
        f"{len(names)} classes; without images: {_listed([names[label] for label in sorted(absent)])}"
    ]


def numbers(num_classes: int) -> list[str]:
    """Numbers in place of class names."""
    return [str(number) for number in range(num_classes)]


def _check_named(split: Split) -> None:
    """Raises ValueError for an image whose label has no name; labels below 0 are left to the check against a model."""
    names = split.class_names
    if names is None or split.label_map is not None or split.label_range[1] < len(names):
        return
    found = split.find_outside(len(names))
    if found is None:
        return  # the range in the statistics may be wider than the labels
    shard, row, label = found
    raise ValueError(
        f"label {label} in {shard} row {row} has no class name: the shards name {len(names)} classes, 0 .. "
        f"{len(names) - 1}; "
        + (
            "subtract 1 from every label"
            if split.label_range == (1, len(names))
            else "fix the labels or the class names"
        )
    )


def _check_labels(split: Split, num_classes: int) -> None:
    if found := split.find_outside(num_classes):
        shard, row, label = found
        what_to_do = "give images of the model's classes"
        if split.label_map is None and split.label_range == (1, num_classes):
            what_to_do = "labels must start at 0, these start at 1: subtract 1 from every label"
        if label < 0:
            what_to_do = "a label below 0 means no label; give shards in which every image has a label"
        raise ValueError(
            f"label {label} in {shard} row {row} is not one of the model's classes, 0 .. {num_classes - 1}; "
            f"{what_to_do}"
        )


def _check_count(split: Split, names: Sequence[str] | None, num_classes: int, what: str, option: str | None) -> None:
    """Raises ValueError if a set with class names has another number of classes than a model without names."""
    if names is None and split.class_names is not None and len(split.class_names) != num_classes:
        raise ValueError(
            f"the {what} name {len(split.class_names)} classes, the model has {num_classes} classes without names, so "
            f"they cannot be matched; give images with {num_classes} classes{_escape(option)}"
        )


def _by_number(split: Split, names: Sequence[str] | None, num_classes: int, what: str, notes: list[str]) -> Matched:
    _check_labels(split, num_classes if names is None else len(names))
    present = split.classes_present()
    if present is None:
        return Matched(split=split, notes=tuple(notes))
    every = numbers(num_classes) if names is None else names
    return _finish(split, notes, every, present, what)


def _finish(split: Split, notes: list[str], names: Sequence[str], known: np.ndarray, what: str) -> Matched:
    """`known`: the classes that the split may have, if its footers do not list those that it has."""
    present = split.classes_present()
    absent = set(range(len(names))).difference((known if present is None else present).tolist())
    lacking = tuple(names[label] for label in sorted(absent))
    if lacking:
        notes = [
            *notes,
            f"the {what} have {len(names) - len(lacking)} of the model's {len(names)} classes; without images: "
            f"{_listed(lacking)}",
        ]
    return Matched(split=split, notes=tuple(notes), lacking=lacking)


def _label_map(theirs: Sequence[str], ours: Sequence[str]) -> np.ndarray:
    """int64 [len(theirs)]: the label in `ours` of each name; -1 if the name is missing there or ambiguous.

    A name that several labels have is ambiguous unless it has the same labels on both sides.
    """
    labels_of = {side: _labels_by_name(names) for side, names in (("theirs", theirs), ("ours", ours))}
    found = np.full(len(theirs), -1, np.int64)
    for label, name in enumerate(theirs):
        mine, yours = labels_of["theirs"][key(name)], labels_of["ours"].get(key(name), [])
        if mine == yours:
            found[label] = label
        elif len(mine) == len(yours) == 1:
            found[label] = yours[0]
    return found


def _labels_by_name(names: Sequence[str]) -> dict[str, list[int]]:
    labels: dict[str, list[int]] = {}
    for label, name in enumerate(names):
        labels.setdefault(key(name), []).append(label)
    return labels


def _refuse_unknown(split: Split, mapped: Split, names: Sequence[str], what: str, option: str | None) -> None:
    """Raises ValueError for the first image whose class is unknown to the model or ambiguous."""
    assert split.class_names is not None
    found = mapped.find_outside(len(names))
    if found is None:
        return
    shard, row, label = found
    place = int(split.classes(np.array([label]))[0])
    if place < 0:
        _check_labels(mapped, len(names))
    name = split.class_names[place]
    escape = _escape(option)
    if (times := Counter(map(key, names))[key(name)]) or split.class_names.count(name) > 1:
        raise ValueError(
            f"class {name!r} of the {what} cannot be matched by name: {split.class_names.count(name)} of its labels "
            f"and {times} of the model's classes have that name; give each class a different name{escape}"
        )
    near = f"; {nearest(name, names)!r} is" if nearest(name, names) else ""
    raise ValueError(
        f"class {name!r} of the {what} (label {label}, first in {shard} row {row}) is not one of the model's "
        f"{len(names)} classes, {_listed(names)}{near}; give images of the model's classes{escape}"
    )


def _escape(option: str | None) -> str:
    return f", or {option} numbers if equal labels are equal classes" if option else ""


def _describe_order(theirs: Sequence[str], ours: Sequence[str], label_map: np.ndarray, what: str) -> list[str]:
    moved = np.flatnonzero((label_map >= 0) & (label_map != np.arange(len(label_map))))
    if not len(moved):
        return []
    first = int(moved[0])
    return [
        f"the {what} have their classes in another order than the model; they are matched by name: label {first}, "
        f"{theirs[first]!r}, is the model's class {label_map[first]}"
    ]


def _describe_unused(split: Split, label_map: np.ndarray, what: str) -> list[str]:
    assert split.class_names is not None
    unknown = [split.class_names[label] for label in np.flatnonzero(label_map < 0)]
    return [f"the {what} name classes that the model does not know, but have no image of them: {_listed(unknown)}"] * (
        len(unknown) > 0
    )


def _describe_no_names(split: Split, names: Sequence[str] | None, what: str) -> list[str]:
    if names is None and split.class_names is None:
        return []
    lack = "the model's classes have" if names is None else "they have"
    return [
        f"the classes of the {what} cannot be compared with the model's, because {lack} no names; equal labels are "
        "taken as equal classes"
    ]


def _describe_by_number(split: Split, names: Sequence[str] | None, what: str, option: str | None) -> list[str]:
    if names is None or split.class_names is None or [*map(key, names)] == [*map(key, split.class_names)]:
        return []
    return [
        f"the class names of the {what} differ from the model's; equal labels are taken as equal classes because of "
        f"{option} numbers"
    ]


def _listed(names: Sequence[str]) -> str:
    """The first names, and the number of others."""
    return some([repr(name if len(name) <= 40 else name[:37] + "...") for name in names], most=_MOST_NAMED)
