"""ImageNet's own archives: images as byte ranges of the tar files, found by walking the headers.

`ILSVRC2012_img_train.tar` holds a tar for each class, `n01440764.tar` and so on; `ILSVRC2012_img_val.tar` holds all
validation images. Their classes are in the devkit, `ILSVRC2012_devkit_t12.tar.gz`: a text file with a class id for
each image, and a MATLAB file with the synset of each id. The classes are the sorted synset ids.
"""

import io
import itertools
import re
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow.fs as pafs

from dist_resnet.data.image.kinds import HEAD_BYTES, IMAGES, is_named_image, kind_of
from dist_resnet.data.prepare.clutter import find_clutter
from dist_resnet.data.prepare.index import Container, Index, IndexBuilder, Source
from dist_resnet.data.prepare.left_out import LeftOut
from dist_resnet.data.prepare.tree import list_files
from dist_resnet.storage.uri import is_local
from dist_resnet.terminal import escaped

_TRAIN, _VALIDATION, _DEVKIT = "_img_train.tar", "_img_val.tar", "_devkit_t12.tar.gz"
_THREADS, _THREADS_REMOTE = 2, 64
# A header has 512 bytes; tarfile reads the byte before it too.
_READ_BYTES = 2048
_BLOCK = 512


def find_archives(filesystem: pafs.FileSystem, root: str) -> dict[str, str]:
    """The paths of the archives in a folder, by `train`, `validation` and `devkit`.

    Raises ValueError if two have the same name.
    """
    files = list_files(filesystem, root)
    found: dict[str, str] = {}
    for kind, ending in {"train": _TRAIN, "validation": _VALIDATION, "devkit": _DEVKIT}.items():
        same = [f"{root}/{name}" for name in files if name.endswith(ending)]
        if len(same) > 1:
            raise ValueError(f"{same[0]} and {same[1]} have the name of the same archive; move one elsewhere")
        if same:
            found[kind] = same[0]
    return found


def index_archives(
    filesystem: pafs.FileSystem, uri: str, archives: dict[str, str], advance: Callable[[int], None]
) -> Source:
    """The index of the archives, by their headers. Raises ValueError if one is cut short or holds something else."""
    class_names: tuple[str, ...] = ()
    indexes: dict[str, Index] = {}
    left = LeftOut()
    if "train" in archives:
        class_names, indexes["train"] = _index_train(filesystem, uri, archives["train"], left, advance)
    if "validation" in archives:
        if "devkit" not in archives:
            raise ValueError(
                f"{archives['validation']} needs ILSVRC2012{_DEVKIT}, which has the classes of its images; put it "
                "into the same folder"
            )
        synsets, truth = _read_devkit(filesystem, archives["devkit"])
        class_names = class_names or tuple(sorted(synsets.values()))
        indexes["validation"] = _index_validation(
            filesystem, uri, archives["validation"], [synsets[number] for number in truth], class_names, left
        )
        advance(len(indexes["validation"]))
    return Source("tar", class_names, indexes, tuple(left.lines()))


def _index_train(
    filesystem: pafs.FileSystem, uri: str, path: str, left: LeftOut, advance: Callable[[int], None]
) -> tuple[tuple[str, ...], Index]:
    """(sorted synset ids, index)"""
    base = path.rpartition("/")[2]
    with filesystem.open_input_file(path) as file:
        classes = sorted(walk_members(file, path, 0, file.size(), left))
        for name, _, _ in classes:
            if not name.endswith(".tar"):
                raise ValueError(f"{path} holds {name}; it should hold a tar of each class, such as n01440764.tar")
        class_names = tuple(name.removesuffix(".tar") for name, _, _ in classes)
        if twice := [name for name, following in itertools.pairwise(class_names) if name == following]:
            raise ValueError(f"{path} holds {twice[0]}.tar twice; download it again")
        builder = IndexBuilder(uri)
        with ThreadPoolExecutor(_THREADS if is_local(filesystem) else _THREADS_REMOTE) as pool:
            walks = pool.map(lambda one: _images(file, f"{path} in {one[0]}", one[1], one[2]), classes)
            for label, (images, left_here) in enumerate(walks):
                left.add(left_here)
                container = Container(path, f"{base}/{classes[label][0]}/")
                names, offsets, sizes = zip(*images, strict=True) if images else ((), (), ())
                builder.add(container, np.array(offsets), np.array(sizes), label, names)
                advance(len(images))
    return class_names, builder.build()


def _index_validation(
    filesystem: pafs.FileSystem, uri: str, path: str, synsets: list[str], class_names: tuple[str, ...], left: LeftOut
) -> Index:
    """`synsets`: the class of each image, by the number in its name."""
    with filesystem.open_input_file(path) as file:
        images, left_here = _images(file, path, 0, file.size())
    left.add(left_here)
    if len(images) != len(synsets):
        raise ValueError(
            f"{path} holds {len(images)} images, the devkit has the classes of {len(synsets)}; download both again"
        )
    labels = {name: label for label, name in enumerate(class_names)}
    names, offsets, sizes = zip(*images, strict=True)
    found = []
    for name in names:
        number = re.search(r"_(\d+)\.\w+$", name)
        if number is None or not 1 <= int(number[1]) <= len(synsets):
            raise ValueError(f"{path} holds {name}; its names should end in a number, 1 to {len(synsets)}")
        synset = synsets[int(number[1]) - 1]
        if synset not in labels:
            raise ValueError(
                f"{name} of {path} is of class {synset} in the devkit, which is not one of the {len(labels)} in the "
                "train archive; download the archives again"
            )
        found.append(labels[synset])
    builder = IndexBuilder(uri)
    base = f"{path.rpartition('/')[2]}/"
    builder.add(Container(path, base), np.array(offsets), np.array(sizes), np.array(found), names)
    return builder.build()


def _read_devkit(filesystem: pafs.FileSystem, path: str) -> tuple[dict[int, str], list[int]]:
    """(synset id by class id, class id of each validation image)"""
    from scipy.io import loadmat  # late: it is slow, and workers do not need it

    with filesystem.open_input_file(path) as file:
        content = io.BytesIO(file.read())
    try:
        with tarfile.open(fileobj=content, mode="r:gz") as archive:
            files = {member.name.rpartition("/")[2]: member for member in archive}
            meta, truth = (
                archive.extractfile(files[name]).read()  # pyrefly: ignore
                for name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt")
            )
        synsets = np.atleast_1d(loadmat(io.BytesIO(meta), simplify_cells=True)["synsets"])
        # Inner nodes of the hierarchy have children; the classes are its leaves.
        leaves = {int(one["ILSVRC2012_ID"]): str(one["WNID"]) for one in synsets if not one["num_children"]}
        numbers = [int(line) for line in truth.split()]
    except (tarfile.TarError, EOFError, OSError, KeyError, TypeError, ValueError, IndexError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())
        raise ValueError(f"{path} cannot be read as ImageNet's devkit ({reason}); download it again") from error
    if beyond := [number for number in numbers if number not in leaves]:
        raise ValueError(
            f"{path}: the validation ground truth has label {beyond[0]}, which is not in the class list of "
            f"{len(leaves)}; download it again"
        )
    return leaves, numbers


def _images(file: Any, what: str, start: int, size: int) -> tuple[list[tuple[str, int, int]], LeftOut]:
    """The members of `walk_members` that are images by their ending or first bytes, and a count of the others."""
    images, left = [], LeftOut()
    for name, offset, length in walk_members(file, what, start, size, left):
        kind = None if is_named_image(name) else kind_of(name, file.read_at(min(length, HEAD_BYTES), offset))
        if kind is None or kind in IMAGES:
            images.append((name, offset, length))
        else:
            left.kinds[kind] += 1
    return images, left


def walk_members(file: Any, what: str, start: int, size: int, left: LeftOut) -> Iterator[tuple[str, int, int]]:
    """(name, offset in `file`, bytes) of each regular file of the tar at `start`.

    Hidden files and links, which have no bytes, are counted in `left`. Raises ValueError if the tar is cut short.
    """
    hidden = set()
    window = io.BufferedReader(_Window(file, start, size), _READ_BYTES)
    end = start + size
    try:
        with tarfile.open(fileobj=window, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
            for member in archive:
                if start + member.offset_data + member.size > end or start + member.offset_data > file.size():
                    raise tarfile.ReadError(f"{member.name} reaches beyond its end")
                # Bytes of other encodings are escaped: names only have to differ.
                name = escaped(member.name.removeprefix("./"))
                if skipped := find_clutter(name if name != "." else ""):
                    hidden.add(skipped)
                elif member.isreg():
                    yield name, start + member.offset_data, member.size
                elif not member.isdir():
                    left.kinds["link or device in an archive"] += 1
            for path in hidden:
                left.skip(path)
            # tarfile accepts any end; a complete archive ends in blocks of zeros.
            window.seek(archive.offset)
            if window.read(_BLOCK) != bytes(_BLOCK):
                raise tarfile.ReadError(f"no end mark after {archive.offset} bytes")
    except tarfile.TarError as error:
        raise ValueError(f"{what} is cut short or not a tar archive ({error}); download it again") from error


class _Window(io.RawIOBase):
    """A part of a file, which many threads read, as a separate file."""

    def __init__(self, file: Any, start: int, size: int) -> None:
        self._file, self._start, self._size, self._position = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._position))
        data = self._file.read_at(wanted, self._start + self._position) if wanted else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
