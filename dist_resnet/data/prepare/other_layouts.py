"""Kaggle's ImageNet, and layouts that are not supported, with what to do about them."""

import re
import shlex
from collections.abc import Sequence

import pyarrow.fs as pafs

from dist_resnet.data.prepare.left_out import LeftOut
from dist_resnet.data.prepare.tree import list_files, list_folder
from dist_resnet.data.shards import hive
from dist_resnet.data.shards.split_names import resembled_split
from dist_resnet.storage.files import exists
from dist_resnet.storage.uri import uri_of
from dist_resnet.wording import some

_KAGGLE_FOLDERS = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
_KAGGLE_CLASSES = "LOC_val_solution.csv"
# Folders between the images and the file in Kaggle's archive.
_LEVELS = 4
_PACKED = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def refuse_file(filesystem: pafs.FileSystem, root: str) -> None:
    """Raises ValueError if the source is a file."""
    if filesystem.get_file_info(root).type != pafs.FileType.File:
        return
    todo = "give the folder that holds it"
    if root.lower().endswith(_PACKED) and not root.endswith(("_img_train.tar", "_img_val.tar")):
        todo = "unpack it and give the folder with its content"
    raise ValueError(f"the source {root} is a file; {todo}")


def find_kaggle(filesystem: pafs.FileSystem, root: str) -> str | None:
    """The folder of images in Kaggle's ImageNet, as a path below the given one; None if there is none."""
    return next((name for name in _KAGGLE_FOLDERS if exists(filesystem, f"{root}/{name}/train")), None)


def find_kaggles_table(filesystem: pafs.FileSystem, folder: str) -> str | None:
    """The classes of the validation images of Kaggle's ImageNet, in a folder or one of its parents."""
    for _ in range(_LEVELS):
        if folder and exists(filesystem, f"{folder}/{_KAGGLE_CLASSES}"):
            return f"{folder}/{_KAGGLE_CLASSES}"
        folder = folder.rpartition("/")[0]
    return None


def refuse_archives(filesystem: pafs.FileSystem, root: str, splits: Sequence[str]) -> None:
    """Raises ValueError if the images are in archives that are not supported, such as WebDataset's.

    `splits`: the folder of each split, which may also hold such archives.
    """
    for folder in (root, *splits):
        packed = [name for name in list_files(filesystem, folder) if name.lower().endswith(_PACKED)]
        if not packed or list_folder(filesystem, folder, LeftOut())[0]:
            continue
        if re.fullmatch(r"n\d{8}\.tar", packed[0]):
            raise ValueError(
                f"{folder} holds {some(packed, most=1)}, the inner archives of ImageNet; give the folder with the "
                "original ILSVRC2012_img_train.tar, or unpack each with: "
                f'cd {shlex.quote(folder)} && for t in n*.tar; do mkdir -p "${{t%.tar}}" && tar -xf "$t" -C '
                '"${t%.tar}" && rm "$t"; done'
            )
        if packed[0].lower().endswith(_COMPRESSED):
            raise ValueError(
                f"{folder} holds {some(packed, most=1)}, whose images cannot be read one by one; if they are "
                f"WebDataset archives, {decompress(packed[0])}; if not, unpack them and give the folder with their "
                "content"
            )
        raise ValueError(
            f"{folder} holds the archive {some(packed, most=1)}; only ILSVRC2012_img_train.tar and "
            "ILSVRC2012_img_val.tar are read as archives; unpack it and give the folder with its content"
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
            f"{root} holds {', '.join(alike[:3])}, which look like splits but are not known names; give them "
            f"as in --train-split {alike[-1]} --validation-split {alike[0]}, rename them to train and val, or give one "
            "as --source with --split"
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


def decompress(name: str) -> str:
    """What to do with a compressed tar, or one whose name does not say so."""
    tool = {".xz": "xz", ".bz2": "bzip2", ".zst": "zstd"}.get(name[name.rfind(".") :].lower(), "gzip")
    return f"decompress them with {tool} -d, so that their names end in .tar"
