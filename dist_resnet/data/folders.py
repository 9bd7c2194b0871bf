"""Pictures as files: a folder for each class, as torchvision's ImageFolder reads them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.fs as pafs

from dist_resnet.data.sources import Container, Index, IndexBuilder, Source

SPLIT_FOLDERS = {"train": "train", "val": "validation", "validation": "validation"}
"""The split that each folder name stands for."""
_ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")
_LISTING_THREADS = 16


def find_splits(filesystem: pafs.FileSystem, root: str) -> dict[str, str]:
    """The folder of each split: {"train": ".../train", "validation": ".../val"}, as far as they are there."""
    return {SPLIT_FOLDERS[name]: f"{root}/{name}" for name in _folders(filesystem, root) if name in SPLIT_FOLDERS}


def has_class_folders(filesystem: pafs.FileSystem, root: str) -> bool:
    """Whether there are folders in the folder."""
    return bool(_folders(filesystem, root))


def index_folders(
    filesystem: pafs.FileSystem, uri: str, splits: dict[str, str], advance: Callable[[int], None]
) -> Source:
    """Lists every split's class folders; the classes are the sorted folder names of the first split.

    Raises ValueError for a split without class folders, an empty class, or a class that the first split has not.
    """
    class_names: tuple[str, ...] = ()
    indexes: dict[str, Index] = {}
    ignored = 0
    for split, folder in splits.items():
        here = _folders(filesystem, folder)
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
    notes = (f"{ignored} files that are no pictures by their names",) if ignored else ()
    return Source("folder", class_names, indexes, notes)


def _folders(filesystem: pafs.FileSystem, folder: str) -> list[str]:
    # Of Google's store Arrow lists such folders alone as an empty object stands for: there the files tell of them.
    selector = pafs.FileSelector(folder, recursive=filesystem.type_name == "gcs", allow_not_found=True)
    found = set()
    for entry in filesystem.get_file_info(selector):
        name, _, below = entry.path[len(folder) + 1 :].partition("/")
        if name and name[0] != "." and (below or entry.type == pafs.FileType.Directory):
            found.add(name)
    return sorted(found)


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
