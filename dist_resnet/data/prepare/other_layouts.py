"""Layouts that are not supported, such as Kaggle's ImageNet and WebDataset, and the commands that convert them."""

import json
import re
import shlex
from collections.abc import Sequence
from typing import Any

import pyarrow.fs as pafs

from dist_resnet.data.image.kinds import is_named_image
from dist_resnet.data.prepare.archives import walk_members
from dist_resnet.data.prepare.left_out import LeftOut
from dist_resnet.data.prepare.tree import list_files, list_folder
from dist_resnet.data.shards import hive
from dist_resnet.data.shards.split_names import resembled_split
from dist_resnet.storage.files import exists
from dist_resnet.storage.uri import is_local, uri_of
from dist_resnet.wording import some

_KAGGLE_FOLDERS = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
_KAGGLE_CLASSES = "LOC_val_solution.csv"
# Folders between the images and the file in Kaggle's archive.
_LEVELS = 4
_PACKED = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
_CLASS_KEYS = ("label", "cls", "class", "class_id", "class_name", "synset", "wnid")
_MEMBERS = 30
_TABLES = (".csv", ".tsv", ".txt")
_TABLE_BYTES = 1 << 16


def refuse_file(filesystem: pafs.FileSystem, root: str) -> None:
    """Raises ValueError if the source is a file."""
    if filesystem.get_file_info(root).type != pafs.FileType.File:
        return
    todo = "give the folder that holds it"
    if root.lower().endswith(_PACKED) and not root.endswith(("_img_train.tar", "_img_val.tar")):
        todo = "unpack it and give the folder with its content"
    raise ValueError(f"the source {root} is a file; {todo}")


def refuse_kaggle(filesystem: pafs.FileSystem, root: str) -> None:
    """Raises ValueError for Kaggle's copy of ImageNet, whose validation images have no class folders."""
    folder = next((path for name in _KAGGLE_FOLDERS if exists(filesystem, path := f"{root}/{name}")), None)
    validation = f"{folder or root}/val"
    files = [name for name in list_files(filesystem, validation) if is_named_image(name)]
    classes = _find_above(filesystem, root, _KAGGLE_CLASSES)
    if files and (classes or files[0].startswith("ILSVRC2012_val_")):
        moving = (
            f"cd {shlex.quote(validation)} && tail -n +2 {shlex.quote(classes or f'FOLDER/{_KAGGLE_CLASSES}')} | "
            "while IFS=', ' read -r name synset rest; do "
            'mkdir -p "$synset" && mv "$name.JPEG" "$synset/"; done'
        )
        where = "" if is_local(filesystem) else " (on a disk: copy the set there first)"
        raise ValueError(
            f"{validation} holds {len(files)} images without class folders, as in Kaggle's ImageNet; "
            f"{_KAGGLE_CLASSES} has their classes: move them into class folders{where} with: {moving}; then give "
            f"--source {_address(filesystem, folder or root)}"
        )
    if folder:
        raise ValueError(
            f"{root} is Kaggle's ImageNet; give its folder of images, --source {_address(filesystem, folder)}"
        )


def refuse_archives(filesystem: pafs.FileSystem, root: str, splits: Sequence[str]) -> None:
    """Raises ValueError if the images are in archives that are not supported, such as WebDataset's.

    `splits`: the folder of each split, which may also hold such archives.
    """
    for folder in (root, *splits):
        packed = [name for name in list_files(filesystem, folder) if name.lower().endswith(_PACKED)]
        if not packed or list_folder(filesystem, folder, LeftOut())[0]:
            continue
        first = f"{folder}/{packed[0]}"
        if members := _sample_group(filesystem, first):
            raise ValueError(_webdataset(folder, packed[0], members, is_local(filesystem)))
        if re.fullmatch(r"n\d{8}\.tar", packed[0]):
            raise ValueError(
                f"{folder} holds {some(packed, most=1)}, the inner archives of ImageNet; give the folder with the "
                "original ILSVRC2012_img_train.tar, or unpack each with: "
                f'cd {shlex.quote(folder)} && for t in n*.tar; do mkdir -p "${{t%.tar}}" && tar -xf "$t" -C '
                '"${t%.tar}" && rm "$t"; done'
            )
        raise ValueError(
            f"{folder} holds the archive {some(packed, most=1)}; only ILSVRC2012_img_train.tar and "
            "ILSVRC2012_img_val.tar are read as archives; unpack it and give the folder with its content"
        )


def refuse_tables(filesystem: pafs.FileSystem, root: str, splits: Sequence[str]) -> None:
    """Raises ValueError if images have no class folders but a table of their classes, in their folder or the source.

    Tiny ImageNet's `val` and many sets on Kaggle are like this.
    """
    for folder in splits or (root,):
        folders = list_folder(filesystem, folder, LeftOut())[0]
        below = "images" if folders == ["images"] else ""
        images = [name for name in list_files(filesystem, f"{folder}/{below}".rstrip("/")) if is_named_image(name)]
        if not images or (folders and not below):
            continue
        for place in dict.fromkeys((folder, root)):
            for name in list_files(filesystem, place):
                separator = _separator(filesystem, f"{place}/{name}", images) if name.endswith(_TABLES) else None
                if separator:
                    raise ValueError(_moving(folder, below, f"{place}/{name}", separator, len(images)))


def _separator(filesystem: pafs.FileSystem, table: str, images: Sequence[str]) -> str | None:
    """The separator of image name and class in a table, in bash's notation; None if the table has no such lines."""
    with filesystem.open_input_file(table) as file:
        lines = file.read(_TABLE_BYTES).decode(errors="replace").splitlines()
    known = set(images)
    for separator, written in (("\t", "$'\\t'"), (",", ","), (" ", "' '")):
        if any(len(parts := line.split(separator)) > 1 and parts[0] in known for line in lines):
            return written
    return None


def _moving(folder: str, below: str, table: str, separator: str, count: int) -> str:
    source = f"{below}/$name" if below else "$name"
    loop = f'while IFS={separator} read -r name class rest || [ -n "$name" ]; do if [ -f "{source}" ]; then '
    loop += f'mkdir -p "$class" && mv "{source}" "$class/"; fi; done' + (f" && rmdir {below}" if below else "")
    return (
        f"{folder} holds {count} images without class folders; {table.rpartition('/')[2]} has their classes: move them "
        f"into class folders, in bash, with: cd {shlex.quote(folder)} && tr -d '\\r' < {shlex.quote(table)} | {loop}"
    )


def refuse_partitions(filesystem: pafs.FileSystem, root: str, splits: Sequence[str]) -> None:
    """Raises ValueError if the source, or a split's folder, holds folders such as `label=3`."""
    for folder in (root, *splits):
        for name in list_folder(filesystem, folder, LeftOut())[0]:
            if hive.is_partition(name) and any(
                one.endswith(".parquet") for one in list_files(filesystem, f"{folder}/{name}")
            ):
                raise ValueError(f"{folder} holds partitioned Parquet; {hive.conversion(f'{folder}/{name}')}")


def refuse_deeper(filesystem: pafs.FileSystem, root: str) -> None:
    """Raises ValueError if the split folders have unknown names, or are one folder below the source."""
    folders, _ = list_folder(filesystem, root, LeftOut())
    alike = [name for name in folders if resembled_split(name)]
    if alike and any(list_folder(filesystem, f"{root}/{name}", LeftOut())[0] for name in alike):
        raise ValueError(
            f"{root} holds {', '.join(alike[:3])}, which look like splits but are not known names; rename the "
            "folders to train and val, or give one as --source with --split"
        )
    for name in folders[:20]:
        inner = list_folder(filesystem, f"{root}/{name}", LeftOut())[0]
        if any(resembled_split(one) for one in inner):
            raise ValueError(
                f"{root} holds {name}, whose folders are named like splits; give --source "
                f"{_address(filesystem, f'{root}/{name}')}"
            )


def _address(filesystem: pafs.FileSystem, path: str) -> str:
    """The address of a folder for the command line."""
    return shlex.quote(uri_of(filesystem, path))


def _find_above(filesystem: pafs.FileSystem, folder: str, name: str) -> str | None:
    """The file of this name in a folder or one of its parents."""
    for _ in range(_LEVELS):
        if folder and exists(filesystem, f"{folder}/{name}"):
            return f"{folder}/{name}"
        folder = folder.rpartition("/")[0]
    return None


def _sample_group(filesystem: pafs.FileSystem, path: str) -> dict[str, bytes] | None:
    """The files of a WebDataset sample by their endings, without the image's bytes; None if the tar has no sample."""
    groups: dict[str, dict[str, bytes]] = {}
    try:
        with filesystem.open_input_file(path) as file:
            for number, (name, offset, size) in enumerate(walk_members(file, path, 0, file.size(), LeftOut())):
                stem, _, ending = name.rpartition("/")[2].partition(".")
                content = b"" if is_named_image(name) else file.read_at(min(size, 1 << 20), offset)
                groups.setdefault(f"{name.rpartition('/')[0]}/{stem}", {})[ending] = content
                if number == _MEMBERS:
                    break
    except (ValueError, OSError):
        return None
    return next(
        (one for one in groups.values() if len(one) > 1 and any(is_named_image(f".{key}") for key in one)), None
    )


def _webdataset(folder: str, name: str, members: dict[str, bytes], local: bool) -> str:
    """The complaint about a folder of WebDataset archives, with the command that converts it."""
    image = next(ending for ending in members if is_named_image(f".{ending}"))
    endings = ", ".join(f".{ending}" for ending in members)
    found = f"{folder} holds {name}, in the WebDataset layout (files {endings} with one name)"
    reading = _class_reading(members)
    if reading is None:
        return f"{found}, and none of them has a class; unpack the images into a folder for each class, train/CLASS"
    ending, command = reading
    split = {"validation": "val"}.get(found_split := resembled_split(name) or "train", found_split)
    pattern = re.sub(r"\d+(-of-\d+)?\.tar$", "*.tar", name)
    where = folder if local else "FOLDER"
    unpacked, images = shlex.quote(f"{where}/unpacked-{split}"), shlex.quote(f"{where}/images")
    return (
        f"{found}, which is not supported; unpack it into class folders{'' if local else ' on a disk'} with: "
        f'mkdir -p {unpacked} && for t in {shlex.quote(where)}/{pattern}; do tar -xf "$t" -C {unpacked}; done && '
        f"cd {unpacked} && find . -name '*.{ending}' | while read -r c; do d={images}/{split}/$({command}); "
        f'mkdir -p "$d" && mv "${{c%.{ending}}}.{image}" "$d/"; done; do so for each split, then give --source {images}'
    )


def _class_reading(members: dict[str, bytes]) -> tuple[str, str] | None:
    """(ending of the file that has the class, command that prints the class from "$c"), or None."""
    for ending in ("cls", "cls.txt"):
        if ending in members:
            return ending, 'cat "$c"'
    try:
        content: Any = json.loads(members["json"])
        key = next(key for key in _CLASS_KEYS if isinstance(content.get(key), str | int))
    except (KeyError, ValueError, AttributeError, StopIteration):
        return None
    return "json", f"""python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["{key}"])' "$c\""""
