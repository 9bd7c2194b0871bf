"""Finds the shards that a folder or a glob names, on a disk or an object store.

A wildcard (`*`, `?`, `[...]`) matches within one folder. It matches no name that begins with a dot or, unless it is a
shard or an image, with `_`, such as Spark's `_SUCCESS`; `**` matches any number of folders. A file or folder with
exactly the given name is taken, even if that contains wildcards.
"""

import fnmatch
import glob
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.fs as pafs

from dist_resnet.data.image.kinds import is_named_image
from dist_resnet.data.shards import hive
from dist_resnet.storage.uri import list_entries, lists_folders, path_of
from dist_resnet.terminal import escaped, not_text
from dist_resnet.wording import one_line

_SHARDS = "*.parquet"
_ADVICE = "run jobs/prepare_imagenet.py or give --data.train and --data.validation"
_LOOKED_INTO = 20


def find_shards(filesystem: pafs.FileSystem, path: str, uri: str) -> tuple[list[str], str]:
    """(sorted paths of the files, pattern that their names match) of a folder's *.parquet or of a glob.

    Lists only folders that the glob can match, and everything below them only for `**`. Raises FileNotFoundError if
    nothing matches, ValueError if a folder cannot be listed or the name of a shard is not UTF-8.
    """
    shards, names = find_files(filesystem, path, uri)
    if not shards:
        below = _shard_below(filesystem, path)
        todo = f"some are in subfolders, such as {below}; give {_glob_of(path, below)}" if below else _ADVICE
        raise FileNotFoundError(f"no Parquet shards match {uri}; {todo}")
    return shards, names


def find_files(filesystem: pafs.FileSystem, path: str, uri: str, *, inside: str = _SHARDS) -> tuple[list[str], str]:
    """As `find_shards`, but of any name: of a folder, and after a last `**`, those that match `inside`; may be none."""
    try:
        return _find(filesystem, path, inside)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{uri} cannot be listed ({one_line(error)}); check the address and the access") from error


def _find(filesystem: pafs.FileSystem, path: str, inside: str) -> tuple[list[str], str]:
    kind = filesystem.get_file_info(path).type
    if kind == pafs.FileType.File:
        return [path], glob.escape(path.rpartition("/")[2])
    parts = path.split("/")
    if kind == pafs.FileType.Directory or not _is_glob(path):
        first, parts = len(parts), [*parts, inside]
    else:
        first = next(number for number, part in enumerate(parts) if _is_glob(part))
        parts += [inside] if parts[-1] == "**" else []
    return sorted(set(_files(filesystem, "/".join(parts[:first]), parts[first:]))), parts[-1]


def _files(filesystem: pafs.FileSystem, folder: str, parts: Sequence[str]) -> Iterator[str]:
    """The files below a folder whose relative paths match the parts: one part for each level, or `**`."""
    part, rest = parts[0], parts[1:]
    wanted = pafs.FileType.Directory if rest else pafs.FileType.File
    literal = f"{folder}/{part}"
    if part != "**" and ((rest and not _is_glob(part)) or filesystem.get_file_info(literal).type == wanted):
        yield from _files(filesystem, literal, rest) if rest else [literal]
    elif part == "**" or (rest and not lists_folders(filesystem)):
        yield from _files_below(filesystem, folder, parts)
    elif _is_glob(part):
        for entry in list_entries(filesystem, folder, folders=bool(rest)):
            if entry.kind == wanted and _fits([entry.name], [part]):
                path = _text(f"{folder}/{entry.name}")
                yield from _files(filesystem, path, rest) if rest else [path]


def _files_below(filesystem: pafs.FileSystem, folder: str, parts: Sequence[str]) -> Iterator[str]:
    selector = pafs.FileSelector(folder or "/", allow_not_found=True, recursive=True)
    for path in sorted(path_of(info) for info in filesystem.get_file_info(selector) if info.is_file):
        if _fits(path[len(folder) + 1 :].split("/"), parts):
            yield _text(path)


def _text(path: str) -> str:
    """The path. Raises ValueError if it is not UTF-8, which Arrow cannot open."""
    if escaped(path) != path:
        raise ValueError(not_text(path))
    return path


def _fits(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether the names of a file's folders and of the file match the parts of a glob.

    >>> _fits(["a", "b", "x"], ["**", "x"]), _fits(["x"], ["**", "x"]), _fits(["a", "b", "x"], ["*", "x"])
    (True, True, False)
    """
    if not parts or not names:
        return not parts and not names
    is_hidden = names[0].startswith((".", "_")) and names[0][0] != parts[0][0] and not _is_data(names[0])
    if parts[0] == "**":
        return _fits(names, parts[1:]) or (not is_hidden and _fits(names[1:], parts))
    return not is_hidden and fnmatch.fnmatchcase(names[0], parts[0]) and _fits(names[1:], parts[1:])


def _glob_of(folder: str, shard: str) -> str:
    """The glob for a shard in a subfolder: the shards of the subfolder, or of all partitions."""
    below = shard.rpartition("/")[0]
    return f"{folder}/*/{_SHARDS}" if hive.is_partition(below.rpartition("/")[2]) else f"{below}/{_SHARDS}"


def _is_data(name: str) -> bool:
    """Whether a file whose name begins with `_` is a shard or an image, such as a camera's `_DSC0001.JPG`."""
    return name.startswith("_") and (name.endswith(".parquet") or is_named_image(name))


def _shard_below(filesystem: pafs.FileSystem, path: str) -> str | None:
    """A shard in one of the first subfolders, if there is one."""
    if filesystem.get_file_info(path).type != pafs.FileType.Directory:
        return None
    folders = [one.name for one in list_entries(filesystem, path) if one.kind == pafs.FileType.Directory]
    found = (next(_files(filesystem, f"{path}/{name}", [_SHARDS]), None) for name in folders[:_LOOKED_INTO])
    return next(filter(None, found), None)


def _is_glob(part: str) -> bool:
    return any(mark in part for mark in "*?[")
