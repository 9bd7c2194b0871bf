"""Pictures as files: a folder for each class, as torchvision's ImageFolder reads them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.fs as pafs

from dist_resnet.data.ranges import filesystem_of
from dist_resnet.data.sources import Container, Index, IndexBuilder, Source

SPLIT_FOLDERS = {"train": "train", "val": "validation", "validation": "validation"}
"""The split that each folder name stands for."""
_ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")
_LISTING_THREADS = 16
_NAMED = 3


def find_splits(filesystem: pafs.FileSystem, root: str) -> dict[str, str]:
    """The folder of each split: {"train": ".../train", "validation": ".../val"}, as far as they are there.

    Raises ValueError where two folders are of one split.
    """
    splits: dict[str, str] = {}
    for name in _list(filesystem, root)[0]:
        if split := SPLIT_FOLDERS.get(name):
            if split in splits:
                raise ValueError(f"{splits[split]} and {root}/{name} are both of the split {split}; keep one elsewhere")
            splits[split] = f"{root}/{name}"
    return splits


def has_class_folders(filesystem: pafs.FileSystem, root: str) -> bool:
    """Whether there are folders in the folder."""
    return bool(_list(filesystem, root)[0])


def index_folders(
    filesystem: pafs.FileSystem, uri: str, splits: dict[str, str], advance: Callable[[int], None]
) -> Source:
    """Lists every split's class folders; the classes are the sorted folder names of the first split.

    Raises ValueError for a split without class folders, an empty class, or a class that the first split has not.
    """
    class_names: tuple[str, ...] = ()
    indexes: dict[str, Index] = {}
    ignored = 0
    notes = _beside_splits(filesystem, uri, splits)
    for split, folder in splits.items():
        here, loose = _list(filesystem, folder)
        if not here:
            raise ValueError(
                f"{folder} has no class folders; put each class's pictures into a folder of its own, or give the "
                "folder of the original tar archives as --source"
            )
        class_names = class_names or tuple(here)
        if unknown := sorted(set(here) - set(class_names)):
            raise ValueError(
                f"{folder}/{unknown[0]} is no class of {next(iter(splits.values()))}, which has {len(class_names)}; "
                "both splits need the same class folders"
            )
        indexes[split], others = _index_split(filesystem, uri, folder, class_names, advance)
        ignored += others
        notes += [f"{_some(loose)} in no class folder of {split}"] if loose else []
    notes += [f"{ignored} files that are no pictures by their names"] if ignored else []
    return Source("folder", class_names, indexes, tuple(notes))


def _beside_splits(filesystem: pafs.FileSystem, uri: str, splits: dict[str, str]) -> list[str]:
    """A line on what lies beside the split folders, if anything does."""
    _, root = filesystem_of(uri)
    if root in splits.values():
        return []
    folders, files = _list(filesystem, root)
    others = [f"{name}/" for name in folders if f"{root}/{name}" not in splits.values()] + files
    return [f"{_some(others)} beside the split folders"] if others else []


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _list(filesystem: pafs.FileSystem, folder: str) -> tuple[list[str], list[str]]:
    """(folders, files) right in a folder, sorted, without those whose names begin with a dot."""
    # Of Google's store Arrow lists such folders alone as an empty object stands for: there the files tell of them.
    selector = pafs.FileSelector(folder, recursive=filesystem.type_name == "gcs", allow_not_found=True)
    folders, files = set(), set()
    for entry in filesystem.get_file_info(selector):
        name, _, below = entry.path[len(folder) + 1 :].partition("/")
        if name and name[0] != ".":
            (folders if below or entry.type == pafs.FileType.Directory else files).add(name)
    return sorted(folders), sorted(files)


def _index_split(
    filesystem: pafs.FileSystem, uri: str, folder: str, class_names: tuple[str, ...], advance: Callable[[int], None]
) -> tuple[Index, int]:
    """(index, files that are no pictures)"""
    builder, ignored = IndexBuilder(uri), 0
    with ThreadPoolExecutor(_LISTING_THREADS) as pool:
        listings = pool.map(lambda name: _pictures(filesystem, f"{folder}/{name}"), class_names)
        for label, (names, sizes, others) in enumerate(listings):
            origin = f"{folder.rpartition('/')[2]}/{class_names[label]}/"
            builder.add(Container(f"{folder}/{class_names[label]}/", origin), None, np.array(sizes), label, names)
            ignored += others
            advance(len(names))
    return builder.build(), ignored


def _pictures(filesystem: pafs.FileSystem, folder: str) -> tuple[list[str], list[int], int]:
    """(names within the class folder, sizes, files that are no pictures), by name."""
    entries = filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True, recursive=True))
    files = sorted((one.path[len(folder) + 1 :], one.size) for one in entries if one.type == pafs.FileType.File)
    pictures = [file for file in files if file[0].lower().endswith(_ENDINGS)]
    return [name for name, _ in pictures], [size for _, size in pictures], len(files) - len(pictures)
