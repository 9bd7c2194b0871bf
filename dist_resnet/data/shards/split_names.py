"""The names of splits: train, validation and test, in the forms that people write."""

import os
import re
from collections.abc import Sequence

ORDER = ("train", "validation", "test")
"""The known splits; the first one that a source has defines the classes."""
_WORDS = {
    "train": ("train", "training", "trainset", "traindata", "trainingset"),
    "validation": (
        "val",
        "valid",
        "validate",
        "validation",
        "valset",
        "validset",
        "validationset",
        "dev",
        "devel",
        "eval",
        "evaluation",
    ),
    "test": ("test", "testing", "testset", "testdata", "testingset"),
}
_SPLITS = {word: split for split, words in _WORDS.items() for word in words}
# Words that do not change a split's name, as in train_images or Test-Set.
_FILLERS = frozenset({"set", "data", "dataset", "image", "images", "imgs", "photos", "pictures", "split", "folder"})
# A word in capitals, or one that begins with at most one: TRAIN, Train, trainSet.
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def split_of(name: str) -> str | None:
    """The split that a name stands for, or None.

    Case, years and words such as "set" and "images" do not matter.

    >>> [split_of(name) for name in ("train", "TRAIN", "Valid", "val2017", "test_images", "TrainingSet", "test_tube")]
    ['train', 'train', 'validation', 'validation', 'test', 'train', None]
    """
    for form in (name, name.lower()):
        words = [word for word in _words(form) if word not in _FILLERS]
        if len(words) == 1 and words[0] in _SPLITS:
            return _SPLITS[words[0]]
    return None


def resembled_split(name: str) -> str | None:
    """The split that a name mentions among other words, as `seg_train` does, or None."""
    return next((_SPLITS[word] for word in _words(name) if word in _SPLITS), None)


def check_one_split(uri: str, shards: Sequence[str]) -> None:
    """Raises ValueError if the files of an address are named after different splits.

    A file's name counts before the names of its folders, and these only below the folder that has all files.
    """
    common = os.path.commonpath([shard.rpartition("/")[0] for shard in shards]) if shards else ""
    named: dict[str, str] = {}
    for shard in shards:
        below = reversed(shard[len(common) :].split("/"))
        if found := next(filter(None, map(resembled_split, below)), None):
            named.setdefault(found, shard)
    if len(named) > 1:
        first, second = [split for split in ORDER if split in named][:2]
        raise ValueError(
            f"{uri} matches shards of several splits: {named[first]} is of {first}, {named[second]} of {second}; "
            f"give one of them, as in {_stem(named[first])}*, or link them under other names to use them as one split"
        )


def _stem(path: str) -> str:
    """A file's path up to the first digit of its name."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/{re.split('[0-9]', name)[0]}"


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)] if name.isascii() else []
