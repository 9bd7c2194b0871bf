"""Layouts of image sets that are not read, and the commands that make ones that are: Kaggle's ImageNet, WebDataset."""

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
# How far above the folder of images Kaggle's archive has the file.
_LEVELS = 4
_PACKED = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
_CLASS_KEYS = ("label", "cls", "class", "class_id", "class_name", "synset", "wnid")
_MEMBERS = 30
_TABLES = (".csv", ".tsv", ".txt")
_TABLE_BYTES = 1 << 16


def refuse_file(filesystem: pafs.FileSystem, root: str) -> None:
    """Raises ValueError where the source is a file and no folder."""
    if filesystem.get_file_info(root).type != pafs.FileType.File:
        return
    todo = "give the folder that holds it"
    if root.lower().endswith(_PACKED) and not root.endswith(("_img_train.tar", "_img_val.tar")):
        todo = "unpack it and give the folder with what was in it"
    raise ValueError(f"the source {root} is a file; {todo}")


def refuse_kaggle(filesystem: pafs.FileSystem, root: str) -> None:
    """Raises ValueError for ImageNet as Kaggle has it, whose validation images are in no class folders."""
    folder = next((path for name in _KAGGLE_FOLDERS if exists(filesystem, path := f"{root}/{name}")), None)
    validation = f"{folder or root}/val"
    files = [name for name in list_files(filesystem, validation) if is_named_image(name)]
    classes = _find_above(filesystem, root, _KAGGLE_CLASSES)
    if files and (classes or files[0].startswith("ILSVRC2012_val_")):
        moving = (
            f"cd {shlex.quote(validation)} && tail -n +2 {shlex.quote(classes or f'WHERE_IT_IS/{_KAGGLE_CLASSES}')} | "
            "while IFS=', ' read -r name synset rest; do "
            'mkdir -p "$synset" && mv "$name.JPEG" "$synset/"; done'
        )
        where = "" if is_local(filesystem) else " (on a disk, where the set has to be copied first)"
        raise ValueError(
            f"{validation} holds {len(files)} images in no class folders, as Kaggle has ImageNet; {_KAGGLE_CLASSES} "
            f"tells their classes: move them into class folders{where} by: {moving}; then give --source "
            f"{_address(filesystem, folder or root)}"
        )
    if folder:
        raise ValueError(
            f"{root} is ImageNet as Kaggle has it; give its folder of images, --source {_address(filesystem, folder)}"
        )


def refuse_archives(filesystem: pafs.FileSystem, root: str, splits: Sequence[str]) -> None:
    """Raises ValueError where the images are in archives that are not read: WebDataset's, or some others.

    `splits`: folders that may be such a source too, one for each split.
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
                f"{folder} holds {some(packed, most=1)}, the inner archives of ImageNet's; give the folder of "
                "ILSVRC2012_img_train.tar as it was, or unpack each by: "
                f'cd {shlex.quote(folder)} && for t in n*.tar; do mkdir -p "${{t%.tar}}" && tar -xf "$t" -C '
                '"${t%.tar}" && rm "$t"; done'
            )
        raise ValueError(
            f"{folder} holds the archive {some(packed, most=1)}, which is not read (ILSVRC2012_img_train.tar and "
            "ILSVRC2012_img_val.tar are); unpack it and give the folder with what was in it"
        )


def refuse_tables(filesystem: pafs.FileSystem, root: str, splits: Sequence[str]) -> None:
    """Raises ValueError where images are in no class folders and a table beside them, or above, has their classes.

    So are those of Tiny ImageNet's `val`, and many of Kaggle's sets.
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
    """What is between an image's name and its class in a table, as bash writes it; None if it has no such lines."""
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
        f"{folder} holds {count} images in no class folders; {table.rpartition('/')[2]} tells their classes: move them "
        f"into class folders, in bash, by: cd {shlex.quote(folder)} && tr -d '\\r' < {shlex.quote(table)} | {loop}"
    )


def refuse_partitions(filesystem: pafs.FileSystem, root: str, splits: Sequence[str]) -> None:
    """Raises ValueError where the source, or a split's folder, holds folders such as `label=3`."""
    for folder in (root, *splits):
        for name in list_folder(filesystem, folder, LeftOut())[0]:
            if hive.is_partition(name) and any(
                one.endswith(".parquet") for one in list_files(filesystem, f"{folder}/{name}")
            ):
                raise ValueError(f"{folder} holds Parquet in folders of its own; {hive.conversion(f'{folder}/{name}')}")


def refuse_deeper(filesystem: pafs.FileSystem, root: str) -> None:
    """Raises ValueError where a folder in the source, or one that looks like a split, is what should be given."""
    folders, _ = list_folder(filesystem, root, LeftOut())
    alike = [name for name in folders if resembled_split(name)]
    if alike and any(list_folder(filesystem, f"{root}/{name}", LeftOut())[0] for name in alike):
        raise ValueError(
            f"{root} holds {', '.join(alike[:3])}, which are like splits by their names and no known ones; call the "
            "folders train and val, or give one as --source with --split"
        )
    for name in folders[:20]:
        inner = list_folder(filesystem, f"{root}/{name}", LeftOut())[0]
        if any(resembled_split(one) for one in inner):
            raise ValueError(
                f"{root} holds {name}, which holds splits by its folders' names; give --source "
                f"{_address(filesystem, f'{root}/{name}')}"
            )


def _address(filesystem: pafs.FileSystem, path: str) -> str:
    """What to give for a folder on the command line."""
    return shlex.quote(uri_of(filesystem, path))


def _find_above(filesystem: pafs.FileSystem, folder: str, name: str) -> str | None:
    """The file of this name in a folder or those that it is in."""
    for _ in range(_LEVELS):
        if folder and exists(filesystem, f"{folder}/{name}"):
            return f"{folder}/{name}"
        folder = folder.rpartition("/")[0]
    return None


def _sample_group(filesystem: pafs.FileSystem, path: str) -> dict[str, bytes] | None:
    """The files of a WebDataset sample by their endings, without the image's bytes; None where the tar has none."""
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
    """What to say of a folder of WebDataset's archives."""
    image = next(ending for ending in members if is_named_image(f".{ending}"))
    endings = ", ".join(f".{ending}" for ending in members)
    found = f"{folder} holds {name}, of WebDataset's layout (files {endings} of one name)"
    reading = _class_reading(members)
    if reading is None:
        return f"{found}, and none of them tells a class; unpack the images into a folder for each class, train/CLASS"
    ending, command = reading
    split = {"validation": "val"}.get(found_split := resembled_split(name) or "train", found_split)
    pattern = re.sub(r"\d+(-of-\d+)?\.tar$", "*.tar", name)
    where = folder if local else "FOLDER"
    unpacked, images = shlex.quote(f"{where}/unpacked-{split}"), shlex.quote(f"{where}/images")
    return (
        f"{found}, which is not read; unpack it into class folders{'' if local else ' on a disk'} by: "
        f'mkdir -p {unpacked} && for t in {shlex.quote(where)}/{pattern}; do tar -xf "$t" -C {unpacked}; done && '
        f"cd {unpacked} && find . -name '*.{ending}' | while read -r c; do d={images}/{split}/$({command}); "
        f'mkdir -p "$d" && mv "${{c%.{ending}}}.{image}" "$d/"; done; do so for each split, then give --source {images}'
    )


def _class_reading(members: dict[str, bytes]) -> tuple[str, str] | None:
    """(ending of the file that tells the class, command that prints it from "$c"), or None."""
    for ending in ("cls", "cls.txt"):
        if ending in members:
            return ending, 'cat "$c"'
    try:
        told: Any = json.loads(members["json"])
        key = next(key for key in _CLASS_KEYS if isinstance(told.get(key), str | int))
    except (KeyError, ValueError, AttributeError, StopIteration):
        return None
    return "json", f"""python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["{key}"])' "$c\""""
