"""Duplicate images of a set, byte for byte: in training and in another split, or in two classes.

The error on images that were trained on says nothing about other images. CRC and length of the original bytes are
compared.
"""

import base64
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dist_resnet.data.prepare.index import Index

NONE = 0
"""Instead of a hash, for an image that is not in the set."""
_KIND = "<u8"


def hash_of(encoded: bytes) -> int:
    """A cheap hash of an image's bytes, 1 .. 2**64 - 1: their CRC and their number."""
    return zlib.crc32(encoded) << 32 | len(encoded)


def pack(hashes: Sequence[int]) -> str:
    """Hashes as text."""
    return base64.b64encode(np.array(hashes, _KIND).tobytes()).decode()


def unpack(text: str) -> np.ndarray:
    """The hashes that `pack` packed: uint64 [N]."""
    return np.frombuffer(base64.b64decode(text), _KIND)


def describe(splits: Mapping[str, tuple[Index, np.ndarray]], class_names: Sequence[str]) -> list[str]:
    """A line for each kind of duplicates; `splits`: the index of each split and the hashes of its images."""
    lines = [
        line for split, (index, hashes) in splits.items() for line in _in_two_classes(split, index, hashes, class_names)
    ]
    for split in splits.keys() - {"train"} if "train" in splits else ():
        lines += _in_train(split, *splits[split], *splits["train"])
    return lines


def _in_train(split: str, index: Index, hashes: np.ndarray, train: Index, known: np.ndarray) -> Iterator[str]:
    order = np.argsort(known, kind="stable")
    in_train = order[np.searchsorted(known[order], hashes).clip(max=len(known) - 1)]
    rows = np.flatnonzero((known[in_train] == hashes) & (hashes != NONE))
    if len(rows):
        yield (
            f"{len(rows)} of {len(index)} {split} images are in train too, byte for byte, such as "
            f"{index.describe(rows[0])} as {train.describe(in_train[rows[0]])}; errors on these say nothing about "
            "other images"
        )


def _in_two_classes(split: str, index: Index, hashes: np.ndarray, class_names: Sequence[str]) -> Iterator[str]:
    order = np.lexsort((index.label, hashes))
    first, second = order[:-1], order[1:]
    same = (hashes[first] == hashes[second]) & (hashes[first] != NONE) & (index.label[first] != index.label[second])
    if len(found := np.flatnonzero(same)):
        one, other = first[found[0]], second[found[0]]
        yield (
            f"{len(found)} {split} images are in two classes, such as {index.describe(one)} of "
            f"{class_names[index.label[one]]} as {index.describe(other)} of {class_names[index.label[other]]}"
        )
