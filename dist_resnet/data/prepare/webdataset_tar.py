"""One WebDataset archive: the byte ranges of its images, and the class that each sample states."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow.fs as pafs

from dist_resnet.data.image.kinds import is_named_image
from dist_resnet.data.prepare.archives import walk_members
from dist_resnet.data.prepare.left_out import LeftOut
from dist_resnet.data.shards.columns import is_label_name
from dist_resnet.wording import some

_CLASS_ENDINGS = ("cls", "cls.txt")
_JSON = "json"
_MOST_BYTES = 1 << 20
_ONE = "give each key one image and one class"


@dataclass
class _Sample:
    """A key's files: (member, offset, bytes) of each."""

    image: tuple[str, int, int] | None = None
    classes: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    """Those that may state the class, by their endings."""


@dataclass(frozen=True, kw_only=True)
class Tar:
    """The images of one tar, and their classes; None for those that state none."""

    path: str
    images: Sequence[tuple[str, int, int]]
    texts: Sequence[str | None]
    lonely: Sequence[str]
    """Keys that have no image."""
    others: Counter[str]
    """Endings of the files that are neither images nor state a class, with their numbers."""
    left: LeftOut


def key_of(name: str) -> tuple[str, str]:
    """(key, ending) of a file: `a/1.cls.txt` has the key `a/1` and the ending `cls.txt`."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return f"{folder}{slash}{stem}", ending.lower()


def is_image(ending: str) -> bool:
    """Whether a sample's file is its image: `jpg` is, `mask.png` is not."""
    return "." not in ending and is_named_image(f".{ending}")


def read_tar(filesystem: pafs.FileSystem, path: str, column: str | None) -> Tar:
    """Reads an archive's headers and classes; `column` is the field of the JSON that states the class, if chosen.

    Raises ValueError if it is cut short, for two images or classes of one key, and for a class that cannot be read.
    """
    left, others = LeftOut(), Counter()
    with filesystem.open_input_file(path) as file:
        samples: dict[str, _Sample] = {}
        for name, offset, size in walk_members(file, path, 0, file.size(), left):
            key, ending = key_of(name)
            sample = samples.setdefault(key, _Sample())
            if is_image(ending):
                if sample.image is not None:
                    raise ValueError(f"{path} has {sample.image[0]} and {name} of one key; {_ONE}")
                sample.image = (name, offset, size)
            elif ending == _JSON or ending in _CLASS_ENDINGS:
                if ending in sample.classes:
                    raise ValueError(f"{path} has {name} twice; {_ONE}")
                sample.classes[ending] = (name, offset, size)
            else:
                others[f".{ending}" if ending else "no ending"] += 1
        images = {key: sample for key, sample in samples.items() if sample.image is not None}
        return Tar(
            path=path,
            images=[sample.image for sample in images.values() if sample.image is not None],
            texts=[_class_of(file, path, sample, column) for sample in images.values()],
            lonely=[key for key, sample in samples.items() if sample.image is None and sample.classes],
            others=others,
            left=left,
        )


def _class_of(file: Any, path: str, sample: _Sample, column: str | None) -> str | None:
    """The class of a sample as text; None if no file states it. `column`: the field of its JSON, if chosen."""
    for ending in _CLASS_ENDINGS if column is None else ():
        if ending in sample.classes:
            name, offset, size = sample.classes[ending]
            text = _text(file.read_at(min(size, _MOST_BYTES), offset), path, name).strip()
            if "\n" in text:
                raise ValueError(f"{path} has several lines in {name}; a class is one line")
            return text or None
    return _class_in_json(file, path, sample.classes[_JSON], column) if _JSON in sample.classes else None


def _text(content: bytes, path: str, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} has {name}, which is not UTF-8 text; write the class as text or as a number"
        ) from error


def _class_in_json(file: Any, path: str, member: tuple[str, int, int], column: str | None) -> str | None:
    name, offset, size = member
    try:
        content = json.loads(file.read_at(min(size, _MOST_BYTES), offset))
    except ValueError as error:
        raise ValueError(f"{path} has {name}, which is not JSON ({error}); write it again") from error
    fields = content if isinstance(content, dict) else {}
    named = [column or "label"] if column or "label" in fields else list(filter(is_label_name, fields))
    if len(named) > 1:
        raise ValueError(
            f"{path} has several fields that may be the class in {name}, {some(named)}; choose one with --label-column"
        )
    if column is not None and column not in fields:
        raise ValueError(f"{path} has no field {column} in {name}, it has {some(list(fields), most=8)}; choose another")
    value = fields.get(named[0]) if named else None
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
        raise ValueError(
            f"{path} has {named[0]} {str(value)[:80]} in {name}; a class is a text or a whole number: choose another "
            "field with --label-column"
        )
    return None if value is None else str(value).strip() or None
