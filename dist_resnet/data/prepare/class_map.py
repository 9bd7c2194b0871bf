"""Class maps: text files with one class per line, whose order is the order of the labels."""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow.fs as pafs

from dist_resnet.data.prepare.index import Source
from dist_resnet.data.prepare.tree import list_files
from dist_resnet.data.shards.spelling import key, nearest
from dist_resnet.storage.files import read_bytes
from dist_resnet.storage.uri import open_uri
from dist_resnet.wording import some

_SYNSET = re.compile(r"(n\d{8})(\s.*)?")
_WHOLE = re.compile(r"0|[1-9]\d{0,17}")
_NUMBERED = re.compile(r"\d+[\s,:.]+\S")
NAMES = ("classes", "classes.txt", "classnames.txt", "class_names.txt")
"""How a class map beside WebDataset archives is called."""
_MOST_BYTES = 64 << 20


def read_class_map(uri: str) -> tuple[str, ...]:
    """The classes in a class map, in the order of their labels.

    A line is a class, or begins with its synset id, as in `LOC_synset_mapping.txt`. Raises FileNotFoundError or
    ValueError for a file that is none.
    """
    filesystem, path = open_uri(uri)
    kind = filesystem.get_file_info(path).type
    if kind != pafs.FileType.File:
        missing = kind == pafs.FileType.NotFound
        raise FileNotFoundError(
            f"the class map {uri} {'does not exist' if missing else 'is a folder'}; give a text file with one class "
            "per line"
        )
    return parse(read_bytes(filesystem, path, size=_MOST_BYTES), uri)


def parse(content: bytes, where: str) -> tuple[str, ...]:
    """The classes in the content of a class map; `where` names it in messages."""
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the class map {where} is not UTF-8 text; give a text file with one class per line"
        ) from error
    if not lines or "\0" in "".join(lines):
        raise ValueError(f"the class map {where} is not a list of classes; give a text file with one class per line")
    if "" in lines:
        raise ValueError(
            f"line {1 + lines.index('')} of the class map {where} is empty; a class's label is the number of its line, "
            "so remove the line, or fill in its class"
        )
    synsets = [_SYNSET.fullmatch(line) for line in lines]
    if all(synsets):
        return tuple(found[1] for found in synsets if found)
    if all(_NUMBERED.match(line) for line in lines):
        raise ValueError(
            f"the lines of the class map {where} begin with numbers, such as {lines[0]!r}; a class's label is the "
            "number of its line, counted from 0: sort the lines, and remove the numbers"
        )
    return tuple(lines)


def find_beside(filesystem: pafs.FileSystem, folder: str) -> tuple[str, tuple[str, ...]] | None:
    """(path, classes) of the class map in a folder, called `classes.txt` or similar; None without one.

    Raises ValueError if there are several.
    """
    found = [f"{folder}/{name}" for name in list_files(filesystem, folder) if name.lower() in NAMES]
    if len(found) > 1:
        raise ValueError(f"{found[0]} and {found[1]} both name the classes; choose one with --class-map")
    return (found[0], parse(read_bytes(filesystem, found[0], size=_MOST_BYTES), found[0])) if found else None


def apply(source: Source, names: Sequence[str], where: str) -> Source:
    """The source with the classes of a class map, in their order; labels are mapped by name.

    If the source has numbers for classes and the map has none of them as a name, number k is the map's line k, counted
    from 0. Raises ValueError for a class of the source that the map does not have.
    """
    numbers = {key(name): number for number, name in enumerate(names)}
    if all(map(_WHOLE.fullmatch, source.class_names)) and not numbers.keys() & set(source.class_names):
        labels = [int(name) for name in source.class_names]
        if max(labels) >= len(names):
            raise ValueError(
                f"the images have the class {max(labels)}, but the class map {where} names {len(names)} classes, "
                f"0 .. {len(names) - 1}; complete it"
            )
    else:
        if twice := [name for name, count in Counter(map(key, names)).items() if count > 1]:
            raise ValueError(f"the class map {where} names {twice[0]} twice; remove one of the lines")
        _check_known(source.class_names, names, where)
        labels = [numbers[key(name)] for name in source.class_names]
    mapping = np.array(labels, np.int64)
    splits = {split: dataclasses.replace(index, label=mapping[index.label]) for split, index in source.splits.items()}
    return dataclasses.replace(source, class_names=tuple(names), splits=splits, listed=True)


def _check_known(class_names: Sequence[str], names: Sequence[str], where: str) -> None:
    known = set(map(key, names))
    for name in class_names:
        if key(name) not in known:
            near = nearest(name, names)
            raise ValueError(
                f"class {name} of the source is not in the class map {where}, which has {some(names)}"
                f"{f', but {near!r} is' if near else ''}; add it, or correct the source"
            )
