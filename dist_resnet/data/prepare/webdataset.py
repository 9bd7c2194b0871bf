"""WebDataset archives: images as byte ranges of tar files, with their classes in files beside them.

A sample is the files with one key, which is the path up to the first dot of the file's name: `0001.jpg` is the image,
`0001.cls` has its class in words or as a number, and so has a field of `0001.json`.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.fs as pafs

from dist_resnet.data.image.kinds import HEAD_BYTES, kind_of
from dist_resnet.data.prepare import class_map
from dist_resnet.data.prepare.archives import walk_members
from dist_resnet.data.prepare.class_numbers import Stated, number_classes
from dist_resnet.data.prepare.index import Container, IndexBuilder, Source, check_no_split, named_apart
from dist_resnet.data.prepare.left_out import LeftOut
from dist_resnet.data.prepare.other_layouts import decompress
from dist_resnet.data.prepare.request import SourceRequest
from dist_resnet.data.prepare.tree import list_folder
from dist_resnet.data.prepare.webdataset_tar import Tar, is_image, key_of, read_tar
from dist_resnet.data.shards.split_names import ORDER
from dist_resnet.storage.files import read_bytes
from dist_resnet.storage.uri import is_local
from dist_resnet.wording import some

_THREADS, _THREADS_REMOTE = 2, 64
_SAMPLED_MEMBERS = 30
_ENDINGS = {"gzip": "gz", "xz": "xz"}
_NUMBER = re.compile(r"(\d+)(?:-of-(\d+))?\.tar$")


def find_tars(request: SourceRequest) -> dict[str, list[str]]:
    """The paths of each split's tars in the source or in its split folders; empty if there are none of WebDataset.

    Raises ValueError if no name says which split a tar is of and --split is not given.
    """
    filesystem, root = request.filesystem, request.root
    folders, files = list_folder(filesystem, root, LeftOut())
    found: dict[str, list[str]] = {}
    if tars := [name for name in files if name.endswith(".tar")]:
        if folders or not _has_samples(filesystem, f"{root}/{tars[0]}"):
            return {}
        for name in (name for name in tars if not any(map(request.choice.is_replaced, _words(name)))):
            found.setdefault(_split_of_tar(request, f"{root}/{name}"), []).append(f"{root}/{name}")
    for folder in folders:
        split = request.choice.split_of(folder)
        inner, files = list_folder(filesystem, f"{root}/{folder}", LeftOut()) if split else ([], [])
        tars = [f"{root}/{folder}/{name}" for name in files if name.endswith(".tar")]
        if split is None or inner or not tars or not _has_samples(filesystem, tars[0]):
            continue
        check_no_split(request.split, f"{root}/{folder}", split)
        if split in found:
            raise ValueError(f"{root} has two folders of the split {split}, one is {folder}; move one elsewhere")
        found[split] = tars
    return {split: found[split] for split in [*(one for one in ORDER if one in found), *sorted(found.keys() - ORDER)]}


def index_tars(request: SourceRequest, tars: dict[str, list[str]]) -> Source:
    """The index of WebDataset archives, by their headers.

    Raises ValueError for an archive that is cut short, images without a class, keys that are given twice, and classes
    that validation has and train does not.
    """
    left, notes = LeftOut(), []
    read: dict[str, list[Tar]] = {}
    for split, paths in tars.items():
        notes += _missing_numbers(paths)
        found = list(_read_tars(request, paths))
        if split == "test" and not any(text is not None for tar in found for text in tar.texts):
            notes.append(f"the {sum(len(tar.images) for tar in found)} images of test, which have no class")
        else:
            read[split] = found
            _check_stated(found)
        for tar in found:
            left.add(tar.left)
        notes += _other_files(found)
    if not read:
        raise ValueError(f"{request.uri} has no labeled images; give the train and validation archives")
    numbered = number_classes({split: _stated(found) for split, found in read.items()})
    indexes = {}
    for split, found in read.items():
        builder, first = IndexBuilder(request.uri), 0
        for tar in found:
            labels = numbered.labels[split][first : first + len(tar.images)]
            names, offsets, sizes = zip(*tar.images, strict=True) if tar.images else ((), (), ())
            container = Container(tar.path, f"{tar.path.rpartition('/')[2]}/")
            builder.add(container, np.array(offsets), np.array(sizes), labels, names)
            first += len(tar.images)
        indexes[split] = named_apart(builder.build())
    notes += _beside(request, [path for paths in tars.values() for path in paths])
    source = Source("webdataset", numbered.class_names, indexes, (*notes, *left.lines()), listed=numbered.by_number)
    beside = (
        class_map.find_beside(request.filesystem, request.root)
        if numbered.by_number and not request.has_class_map
        else None
    )
    if beside is None:
        return source
    request.progress.say(f"the names of the classes are those in {beside[0]}")
    return class_map.apply(source, beside[1], beside[0])


def _split_of_tar(request: SourceRequest, path: str) -> str:
    """The split of a tar by its name, as in `train-0001.tar` or `imagenet1k-train-0001.tar`, else that of --split."""
    named = {split for word in _words(path.rpartition("/")[2]) if (split := request.choice.split_of(word))}
    if len(named) == 1:
        check_no_split(request.split, path, next(iter(named)))
        return next(iter(named))
    if request.split is None:
        raise ValueError(
            f"{path} does not name its split; begin the name with train-, validation- or test-, or give --split for "
            "archives of one split"
        )
    return request.split


def _words(name: str) -> list[str]:
    return re.split(r"[^A-Za-z]+", name.removesuffix(".tar"))


def _missing_numbers(paths: Sequence[str]) -> list[str]:
    """A line about the numbers that are missing among archives. Raises ValueError if their names give the total."""
    series: dict[str, dict[int, str]] = {}
    for path in paths:
        if match := _NUMBER.search(path):
            series.setdefault(path[: match.start()], {})[int(match[1])] = path
    for begin, numbers in series.items():
        total = _NUMBER.search(next(iter(numbers.values())))
        wanted = range(int(total[2])) if total and total[2] else range(min(numbers), max(numbers))
        missing = sorted(set(wanted) - numbers.keys())
        if missing and total and total[2]:
            raise ValueError(
                f"{begin}* are {len(numbers)} of {int(total[2])} archives, the first missing one is number "
                f"{missing[0]}; download the rest"
            )
        if missing:
            return [f"{len(missing)} archives {begin}*.tar that do not exist, the first is number {missing[0]}"]
    return []


def _has_samples(filesystem: pafs.FileSystem, path: str) -> bool:
    """Whether a tar begins with files that share a key, one of them an image.

    Raises ValueError if it is compressed although its name does not say so.
    """
    if (kind := kind_of(path, read_bytes(filesystem, path, size=HEAD_BYTES))) in ("gzip", "xz"):
        raise ValueError(
            f"{path} is compressed ({kind}), so that its images cannot be read one by one; if the archives are "
            f"WebDataset's, rename them to .tar.{_ENDINGS[kind]} and {decompress(f'.{_ENDINGS[kind]}')}"
        )
    endings: dict[str, list[str]] = {}
    try:
        with filesystem.open_input_file(path) as file:
            members = walk_members(file, path, 0, file.size(), LeftOut())
            for (name, _, _), _ in zip(members, range(_SAMPLED_MEMBERS), strict=False):
                key, ending = key_of(name)
                endings.setdefault(key, []).append(ending)
    except ValueError:
        return bool(endings)  # cut short: reading it will say so
    return any(len(one) > 1 and any(map(is_image, one)) for one in endings.values())


def _read_tars(request: SourceRequest, paths: Sequence[str]) -> Iterator[Tar]:
    with ThreadPoolExecutor(_THREADS if is_local(request.filesystem) else _THREADS_REMOTE) as pool:
        for tar in pool.map(lambda path: read_tar(request.filesystem, path, request.columns.label), paths):
            request.progress.advance(len(tar.images))
            yield tar


def _check_stated(tars: Sequence[Tar]) -> None:
    """Raises ValueError for an image without a class, and if there is no image at all."""
    for tar in tars:
        for (name, _, _), text in zip(tar.images, tar.texts, strict=True):
            if text is None:
                raise ValueError(
                    f"{tar.path} has no class for {name}: neither a file {key_of(name)[0]}.cls nor a label in "
                    f"{key_of(name)[0]}.json; write one, choose its field with --label-column, or unpack the images "
                    "into class folders"
                )


def _stated(tars: Sequence[Tar]) -> Stated:
    names = [(tar.path, name) for tar in tars for name, _, _ in tar.images]
    texts = [text for tar in tars for text in tar.texts if text is not None]
    return Stated(texts=texts, place=lambda row: f"{names[row][1]} in {names[row][0]}")


def _beside(request: SourceRequest, tars: Sequence[str]) -> list[str]:
    """A line about other files and folders beside the archives, or beside their folders."""
    folders, files = list_folder(request.filesystem, request.root, LeftOut())
    used = {path[len(request.root) + 1 :].partition("/")[0] for path in tars}
    others = [f"{name}/" for name in folders if name not in used] + [
        name for name in files if name not in used and name.lower() not in class_map.NAMES
    ]
    return [f"{some(others)} next to the archives"] if others else []


def _other_files(tars: Sequence[Tar]) -> list[str]:
    """Lines about the files of archives that are not used."""
    lonely = [f"{key} in {tar.path.rpartition('/')[2]}" for tar in tars for key in tar.lonely]
    others: Counter[str] = sum((tar.others for tar in tars), Counter())
    listed = ", ".join(f"{ending} ({count})" for ending, count in sorted(others.items())[:10])
    notes = [f"{len(lonely)} classes without an image, such as of {lonely[0]}"] if lonely else []
    return notes + ([f"{others.total()} other files of samples: {listed}"] if others else [])
