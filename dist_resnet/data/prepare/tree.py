"""Lists folders on a disk or an object store, without hidden and tools' files.

Links to files are followed, as torchvision's ImageFolder does. Links to folders are left to the caller: one to a folder
that is read anyway, or that contains the link, would give its images twice or recurse without limit.
"""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.fs as pafs

from dist_resnet.data.prepare.clutter import find_clutter, is_clutter
from dist_resnet.data.prepare.left_out import LeftOut
from dist_resnet.storage.uri import is_local, list_entries
from dist_resnet.terminal import escaped, not_text

_BROKEN = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The files directly in one folder; on an object store, all files below it."""

    place: str
    """Its path from the root of the walk: empty, or ending in /."""
    real: str
    """Its path with all links resolved; empty on an object store, which has no links."""
    files: tuple[tuple[str, int], ...]
    """(name, bytes) of each."""
    links: tuple[str, ...]
    """Names of the links to folders, which are not followed."""


def list_files(filesystem: pafs.FileSystem, folder: str) -> list[str]:
    """The files directly in a folder, sorted, without clutter: one request, however much is below the folder."""
    if is_local(filesystem):
        return list_folder(filesystem, folder, LeftOut())[1]
    entries = list_entries(filesystem, folder, folders=False)
    return [one.name for one in entries if one.kind == pafs.FileType.File and not is_clutter(one.name)]


def list_folder(filesystem: pafs.FileSystem, folder: str, left: LeftOut) -> tuple[list[str], list[str]]:
    """(folders, files) directly in a folder, sorted, including links; clutter is counted in `left`."""
    if is_local(filesystem):
        found = list(_entries(folder, "", left)) if os.path.isdir(folder) else []
        folders = [entry.name for entry, kind, _ in found if kind in ("folder", "link")]
        return sorted(folders), sorted(entry.name for entry, kind, _ in found if kind == "file")
    entries = list_entries(filesystem, folder)
    for name in {one.name for one in entries if is_clutter(one.name)}:
        left.skip(name)
    kept = [one for one in entries if not is_clutter(one.name)]
    folders = [one.name for one in kept if one.kind == pafs.FileType.Directory]
    return folders, [one.name for one in kept if one.kind != pafs.FileType.Directory]


def walk(filesystem: pafs.FileSystem, root: str, left: LeftOut) -> list[Folder]:
    """`root`, which may be a link, and the folders below it; clutter and broken links are counted in `left`.

    Raises ValueError for a name that is not UTF-8 and for files or folders without permission to read.
    """
    if not is_local(filesystem):
        return [_walk_store(filesystem, root, left)]
    folders, waiting, real = [], [""], os.path.realpath(root)
    while waiting:
        place = waiting.pop()
        files, links = [], []
        for entry, kind, size in _entries(root, place, left):
            if kind == "folder":
                waiting.append(f"{place}{entry.name}/")
            elif kind == "link":
                links.append(entry.name)
            else:
                files.append((entry.name, size))
        here = f"{real}/{place}".rstrip("/")
        folders.append(Folder(place=place, real=here, files=tuple(files), links=tuple(sorted(links))))
    return folders


def leads_back(link: str) -> bool:
    """Whether a link leads to a folder that contains the link, by its path as given or with links resolved."""
    target = os.path.realpath(link)
    within = [os.path.realpath(os.path.dirname(link)), os.path.dirname(os.path.abspath(link))]
    return any(target in _ancestors(path) for path in within)


def _ancestors(path: str) -> Iterator[str]:
    """A folder and all its parents, with links resolved."""
    while True:
        yield os.path.realpath(path)
        if os.path.dirname(path) == path:
            return
        path = os.path.dirname(path)


def _entries(root: str, place: str, left: LeftOut) -> Iterator[tuple[os.DirEntry[str], str, int]]:
    """(entry, `folder`, `link` to one or `file`, bytes) of each entry of a local folder that is not left out."""
    folder = f"{root}/{place}".rstrip("/") or "/"
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_clutter(entry.name):
                    left.skip(entry.name)
                elif kind := _kind(entry, left):
                    _check_name(entry.path)
                    yield entry, *kind
    except PermissionError as error:
        raise ValueError(f"{error.filename or folder} is not readable; change its permissions, or remove it") from error


def _kind(entry: os.DirEntry[str], left: LeftOut) -> tuple[str, int] | None:
    """(`folder`, `link` or `file`, bytes); None for other entries, which are counted."""
    if entry.is_dir(follow_symlinks=False):
        return "folder", 0
    try:
        status = entry.stat()
    except OSError as error:
        if error.errno not in _BROKEN:
            raise
        left.broken.append(entry.path)
        return None
    if stat.S_ISDIR(status.st_mode):
        return "link", 0
    if not stat.S_ISREG(status.st_mode):
        left.kinds["device or pipe"] += 1
        return None
    # Files that everybody can read need no system call.
    if not status.st_mode & stat.S_IROTH and not os.access(entry.path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), entry.path)
    return "file", status.st_size


def _check_name(path: str) -> None:
    if escaped(path) != path:
        raise ValueError(not_text(path))


def _walk_store(filesystem: pafs.FileSystem, root: str, left: LeftOut) -> Folder:
    entries = filesystem.get_file_info(pafs.FileSelector(root, allow_not_found=True, recursive=True))
    files, hidden = [], set()
    for entry in entries:
        path = entry.path[len(root) + 1 :]
        if skipped := find_clutter(path):
            hidden.add(skipped)
        elif entry.type == pafs.FileType.File:
            files.append((path, entry.size))
    for path in hidden:
        left.skip(path)
    return Folder(place="", real="", files=tuple(files), links=())
