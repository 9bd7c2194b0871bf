"""Finds the shards that a folder or a glob names, on a disk or an object store.

A wildcard (`*`, `?`, `[...]`) stays within its folder and takes no name that begins with a dot or, but for shards, with
`_`, as what Spark leaves beside them does (`_SUCCESS`); `**` stands for any number of folders. What is there under the
very name that was given is taken, even if that looks like a wildcard.
"""

import fnmatch
import glob
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.fs as pafs

from dist_resnet.data.shards import hive
from dist_resnet.storage.uri import list_entries, lists_folders, path_of
from dist_resnet.terminal import escaped, not_text
from dist_resnet.wording import one_line

_SHARDS = "*.parquet"
_ADVICE = "run jobs/prepare_imagenet.py or give --data.train and --data.validation"
_LOOKED_INTO = 20


def find_shards(filesystem: pafs.FileSystem, path: str, uri: str) -> tuple[list[str], str]:
    """(paths of the files, sorted; the pattern that their names match) of a folder's *.parquet or of a glob.

    Lists only the folders that the glob reaches, and what is below them only for `**`. Raises FileNotFoundError if
    nothing matches, ValueError if something cannot be listed or the name of a shard is no UTF-8.
    """
    try:
        shards, names = _find(filesystem, path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{uri} cannot be listed ({one_line(error)}); check the address and the access") from error
    if not shards:
        below = _shard_below(filesystem, path)
        todo = f"there are some below, such as {below}; give {_glob_of(path, below)}" if below else _ADVICE
        raise FileNotFoundError(f"no Parquet shards match {uri}; {todo}")
    return shards, names


def _find(filesystem: pafs.FileSystem, path: str) -> tuple[list[str], str]:
    kind = filesystem.get_file_info(path).type
    if kind == pafs.FileType.File:
        return [path], glob.escape(path.rpartition("/")[2])
    parts = path.split("/")
    if kind == pafs.FileType.Directory or not _is_glob(path):
        first, parts = len(parts), [*parts, _SHARDS]
    else:
        first = next(number for number, part in enumerate(parts) if _is_glob(part))
        parts += [_SHARDS] if parts[-1] == "**" else []
    return sorted(set(_files(filesystem, "/".join(parts[:first]), parts[first:]))), parts[-1]


def _files(filesystem: pafs.FileSystem, folder: str, parts: Sequence[str]) -> Iterator[str]:
    """The files below a folder whose paths from there match the parts, a part for each level but for `**`."""
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
    """The path. Raises ValueError if it is no UTF-8, for Arrow cannot open it then."""
    if escaped(path) != path:
        raise ValueError(not_text(path))
    return path


def _fits(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether the names of the folders and of the file on the way to it match the parts of a glob.

    >>> _fits(["a", "b", "x"], ["**", "x"]), _fits(["x"], ["**", "x"]), _fits(["a", "b", "x"], ["*", "x"])
    (True, True, False)
    """
    if not parts or not names:
        return not parts and not names
    is_hidden = names[0].startswith((".", "_")) and names[0][0] != parts[0][0] and not _is_shard(names[0])
    if parts[0] == "**":
        return _fits(names, parts[1:]) or (not is_hidden and _fits(names[1:], parts))
    return not is_hidden and fnmatch.fnmatchcase(names[0], parts[0]) and _fits(names[1:], parts[1:])


def _glob_of(folder: str, shard: str) -> str:
    """What to give for a shard in a folder right in this one: the folder's shards, or those of all partitions."""
    below = shard.rpartition("/")[0]
    return f"{folder}/*/{_SHARDS}" if hive.is_partition(below.rpartition("/")[2]) else f"{below}/{_SHARDS}"


def _is_shard(name: str) -> bool:
    return name.startswith("_") and name.endswith(".parquet")


def _shard_below(filesystem: pafs.FileSystem, path: str) -> str | None:
    """A shard in a folder right in this one, if it is a folder and one of the first few has any."""
    if filesystem.get_file_info(path).type != pafs.FileType.Directory:
        return None
    folders = [one.name for one in list_entries(filesystem, path) if one.kind == pafs.FileType.Directory]
    found = (next(_files(filesystem, f"{path}/{name}", [_SHARDS]), None) for name in folders[:_LOOKED_INTO])
    return next(filter(None, found), None)


def _is_glob(part: str) -> bool:
    return any(mark in part for mark in "*?[")
