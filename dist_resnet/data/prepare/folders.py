"""Images as files in a folder for each class, as torchvision's ImageFolder reads them.

A file is an image by its ending or, whatever its name, by its first bytes (`kinds`). Hidden and tools' files
(`clutter`) are neither images nor classes, links are followed to folders not read yet (`tree`), and a folder that
should be a class but looks like a split is refused.
"""

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.fs as pafs

from dist_resnet.data.image.kinds import HEAD_BYTES, IMAGES, is_named_image, kind_of
from dist_resnet.data.prepare import tables
from dist_resnet.data.prepare.files_below import FilesBelow
from dist_resnet.data.prepare.index import Container, Index, IndexBuilder, Source
from dist_resnet.data.prepare.label_table import Table
from dist_resnet.data.prepare.left_out import LeftOut
from dist_resnet.data.prepare.request import SourceRequest
from dist_resnet.data.prepare.tree import Folder, leads_back, list_files, list_folder, walk
from dist_resnet.data.shards.spelling import key, nearest
from dist_resnet.data.shards.split_names import ORDER, resembled_split, split_of
from dist_resnet.storage.uri import is_local
from dist_resnet.wording import some

_THREADS = 16
_FEW = 3

Classes = dict[str, list[Folder]]
"""The folders of each class, by its name."""


def find_splits(request: SourceRequest) -> dict[str, str]:
    """The folder of each split: {"train": ".../train", "validation": ".../Valid"}.

    Empty if all folders are class folders of --split: none that is named like a split holds folders, and there are
    others. Raises ValueError if two folders are of one split, or one is a broken link.
    """
    filesystem, root, split, split_of = request.filesystem, request.root, request.split, request.choice.split_of
    left = LeftOut()
    names = list_folder(filesystem, root, left)[0]
    for link in left.broken:
        if found := split_of(link.rpartition("/")[2]):
            raise ValueError(f"{link}, by its name the split {found}, is a broken link; repair or remove it")
    named: dict[str, list[str]] = {}
    for name in names:
        if found := split_of(name):
            named.setdefault(found, []).append(name)
    of_split = [name for same in named.values() for name in same]
    if split and len(of_split) < len(names) and not any(has_folders(filesystem, f"{root}/{name}") for name in of_split):
        return {}
    for found, same in named.items():
        if len(same) > 1:
            raise ValueError(
                f"{root}/{same[0]} and {root}/{same[1]} are both the split {found}; move one elsewhere, or merge them"
            )
    return {found: f"{root}/{named[found][0]}" for found in ORDER if found in named}


def find_flat(request: SourceRequest, splits: dict[str, str]) -> dict[str, str]:
    """The splits whose folder has images but no class folders; test only if its name is chosen.

    The images are in the folder itself or in its only folder, `images`.
    """
    chosen = {split: folder for split, folder in splits.items() if split != "test" or request.choice.test}
    flat = {}
    for split, folder in chosen.items():
        inner = list_folder(request.filesystem, folder, LeftOut())[0]
        if not inner or inner == ["images"]:
            files = list_files(request.filesystem, f"{folder}/{inner[0]}" if inner else folder)
            flat |= {split: folder} if any(map(is_named_image, files)) else {}
    return flat


def may_be_classes(request: SourceRequest) -> bool:
    """Whether the source's folders may be class folders of --split, and not folders of images that a table lists."""
    folders, files = list_folder(request.filesystem, request.root, LeftOut())
    if request.split is None or len(folders) < 2 or any(map(is_named_image, files)):
        return False
    few = folders if len(folders) <= _FEW else ()
    return sum(any(map(is_named_image, list_files(request.filesystem, f"{request.root}/{one}"))) for one in few) != 1


def has_folders(filesystem: pafs.FileSystem, root: str) -> bool:
    """Whether there are folders in the folder."""
    return bool(list_folder(filesystem, root, LeftOut())[0])


def index_folders(request: SourceRequest, splits: dict[str, str], flat: dict[str, tuple[FilesBelow, Table]]) -> Source:
    """The index of every split's class folders; the classes are the sorted folder names of the first split.

    `flat`: the files and the table of classes of splits without class folders. A test split without class folders, or
    with none of the first split's, has no labels and is left out. Raises ValueError for another split without class
    folders, an empty class, a class that the first split does not have, and folders of splits instead of classes.
    """
    filesystem, uri, root, advance = request.filesystem, request.uri, request.root, request.progress.advance
    left, notes = LeftOut(), []
    read: dict[str, Classes] = {}
    for split, folder in splits.items():
        if split in flat and read:
            continue
        names, loose = list_folder(filesystem, folder, left)
        if split == "test" and read and not set(names) & next(iter(read.values())).keys():
            first = next(iter(read))
            notes += [f"{folder}, whose folders ({some(names)}) are not classes of {first}"] if names else []
            continue
        if not names or (names == ["images"] and read and "images" not in next(iter(read.values()))):
            raise ValueError(
                f"{folder} has no class folders; put the images of each class into a separate folder, give a table of "
                "their classes as --labels, or give the folder of the original tar archives as --source"
            )
        read[split] = _read_classes(filesystem, folder, names, left)
        notes += [f"{some(loose)}, outside the class folders of {split}"] if loose else []
    if is_local(filesystem):
        _follow_links(filesystem, {split: splits[split] for split in read}, read, left)
    class_names = tuple(next(iter(read.values())))
    indexes: dict[str, Index] = {}
    for split, classes in read.items():
        _check_classes(splits, split, classes, class_names)
        _check_layout(splits[split], split, classes, named=splits[split] == root)
        index = _index_split(filesystem, uri, splits[split], class_names, classes, left, advance)
        if split != "test" or len(index):
            indexes[split] = index
    for split, (files, table) in flat.items():
        indexes[split], unlisted = tables.index_split(request, files, table, split, class_names)
        notes += unlisted
        left.add(files.left)
    notes = _beside_splits(filesystem, root, [splits[split] for split in indexes], left) + notes
    return Source("folder", class_names, indexes, (*notes, *left.lines()))


def _beside_splits(filesystem: pafs.FileSystem, root: str, splits: Sequence[str], left: LeftOut) -> list[str]:
    """A line about other files and folders next to the split folders, if there are any."""
    if root in splits:
        return []
    folders, files = list_folder(filesystem, root, left)
    others = [f"{name}/" for name in folders if f"{root}/{name}" not in splits] + files
    return [f"{some(others)} next to the split folders"] if others else []


def _read_classes(filesystem: pafs.FileSystem, folder: str, names: Sequence[str], left: LeftOut) -> Classes:
    """The folders of each class, each folder once: if links lead to it again, it belongs to the first name.

    A link to a folder that is already read is not a class.
    """
    linked = {name for name in names if is_local(filesystem) and os.path.islink(f"{folder}/{name}")}
    walked = [name for name in names if name not in linked or not leads_back(f"{folder}/{name}")]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip(walked, pool.map(lambda name: _walk_class(filesystem, folder, name), walked), strict=True))
    classes: Classes = {}
    read: set[str] = set()
    for name in sorted(walked, key=lambda name: (name in linked, name)):
        folders, left_here = found[name]
        kept = [one for one in folders if not one.real or one.real not in read]
        read.update(one.real for one in kept)
        if kept or name not in linked:
            classes[name] = kept
            left.add(left_here)
    left.links += [f"{folder}/{name}" for name in names if name not in classes]
    return dict(sorted(classes.items()))


def _walk_class(filesystem: pafs.FileSystem, folder: str, name: str) -> tuple[list[Folder], LeftOut]:
    left = LeftOut()
    folders = walk(filesystem, f"{folder}/{name}", left)
    return folders, left


def _follow_links(filesystem: pafs.FileSystem, splits: dict[str, str], read: dict[str, Classes], left: LeftOut) -> None:
    """Adds the folders that links within classes lead to, unless some split reads them already."""
    known = {one.real for classes in read.values() for folders in classes.values() for one in folders}
    known |= {os.path.realpath(folder) for folder in splits.values()}
    for split, classes in read.items():
        for name, folders in classes.items():
            waiting = deque(sorted(f"{one.place}{link}" for one in folders for link in one.links))
            while waiting:
                place = waiting.popleft()
                link = f"{splits[split]}/{name}/{place}"
                if os.path.realpath(link) in known or leads_back(link):
                    left.links.append(link)
                    continue
                found = [one for one in walk(filesystem, link, left) if one.real not in known]
                known |= {one.real for one in found}
                folders += [dataclasses.replace(one, place=f"{place}/{one.place}") for one in found]
                waiting += sorted(f"{place}/{one.place}{inner}" for one in found for inner in one.links)


def _check_classes(splits: dict[str, str], split: str, classes: Classes, class_names: Sequence[str]) -> None:
    known = set(map(key, class_names))
    if unknown := sorted(name for name in classes if key(name) not in known):
        near = nearest(unknown[0], class_names)
        raise ValueError(
            f"{splits[split]}/{unknown[0]} is not one of the {len(class_names)} classes of "
            f"{next(iter(splits.values()))}{f', but {near!r} is' if near else ''}; both splits need the same class "
            "folders"
        )


def _spellings(folder: str, classes: Classes) -> dict[str, str]:
    """The folder name of each class, by its normalized name. Raises ValueError if one has two Unicode forms."""
    found: dict[str, str] = {}
    for name in classes:
        other = found.setdefault(key(name), name)
        if other != name:
            raise ValueError(
                f"{folder} holds {other!a} and {name!a}, one name in two Unicode forms; merge the two folders"
            )
    return found


def _check_layout(folder: str, split: str, classes: Classes, *, named: bool) -> None:
    """Raises ValueError if folders that should be classes are splits, or hold the class folders.

    `named`: the split is that of --split, so that its class folders may turn out to be other splits.
    """
    for name, folders in classes.items():
        inner = set(_inner_names(folders))
        other = next((one for one in sorted(inner) if split_of(one) not in (None, split)), None)
        if other is not None:
            raise ValueError(
                f"{folder}/{name} should be a class of {split} but holds a folder {other}, by its name the split "
                f"{split_of(other)}; give a source of train/CLASS and val/CLASS, or rename that folder"
            )
        of_split = split_of(name) or (resembled_split(name) if named else None)
        if of_split and inner:
            raise ValueError(
                f"{folder}/{name} should be a class but is by its name the split {of_split} and holds folders "
                f"({some(sorted(inner))}); put the split folders, named train and val, directly into the --source, "
                f"give {folder}/{name} as --source, or rename the class"
            )
        if len(classes) == 1 and len(inner) > 1 and not any(_is_right_in(one) for one in folders):
            raise ValueError(
                f"{folder} has one class, {name}, which holds only folders ({some(sorted(inner))}); "
                f"give {folder}/{name} as --source with --split {split}, or move its folders up"
            )


def _inner_names(folders: Sequence[Folder]) -> Iterator[str]:
    """The names of all folders below a class folder."""
    for folder in folders:
        yield from folder.place.split("/")[:-1]
        for name, _ in folder.files:
            if "/" in name:
                yield from name.split("/")[:-1]


def _is_right_in(folder: Folder) -> bool:
    """Whether a file is directly in the class folder."""
    return not folder.place and any("/" not in name for name, _ in folder.files)


def _index_split(
    filesystem: pafs.FileSystem,
    uri: str,
    folder: str,
    class_names: Sequence[str],
    classes: Classes,
    left: LeftOut,
    advance: Callable[[int], None],
) -> Index:
    builder, spelled = IndexBuilder(uri), _spellings(folder, classes)
    names_here = [spelled.get(key(name), name) for name in class_names]
    with ThreadPoolExecutor(_THREADS) as pool:
        listings = pool.map(lambda name: _images(filesystem, f"{folder}/{name}", classes.get(name, [])), names_here)
        for label, (images, left_here) in enumerate(listings):
            if left_here.kinds and not images:
                raise ValueError(
                    f"{folder}/{names_here[label]} should be a class but holds no image, only {left_here.lines()[0]}; "
                    "complete the source, or move the folder elsewhere"
                )
            origin = f"{folder.rpartition('/')[2]}/{class_names[label]}/"
            container = Container(f"{folder}/{names_here[label]}/", origin)
            names, sizes = zip(*images, strict=True) if images else ((), ())
            builder.add(container, None, np.array(sizes), label, names)
            left.add(left_here)
            advance(len(names))
    return builder.build()


def _images(
    filesystem: pafs.FileSystem, folder: str, folders: Sequence[Folder]
) -> tuple[list[tuple[str, int]], LeftOut]:
    """(name within the class folder, bytes) of each image, sorted by name, and a count of the other files."""
    images, left = [], LeftOut()
    for name, size in sorted((f"{one.place}{name}", size) for one in folders for name, size in one.files):
        kind = None if is_named_image(name) else kind_of(name, _head(filesystem, f"{folder}/{name}"))
        if kind is None or kind in IMAGES:
            images.append((name, size))
        else:
            left.kinds[kind] += 1
    return images, left


def _head(filesystem: pafs.FileSystem, path: str) -> bytes:
    with filesystem.open_input_file(path) as file:
        return file.read(HEAD_BYTES)
