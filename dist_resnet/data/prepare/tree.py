"""Lists folders on a disk or an object store, without what is hidden.

Links are followed as torchvision's ImageFolder does, to files and to folders. A link to a folder that is read anyway,
or to one that the link is in, would give its images twice or without end: links to folders are left to the caller.
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
    """The files right in one folder; on an object store, all files below it."""

    place: str
    """Below the folder where the walk began: empty, or a path that ends in /."""
    real: str
    """Where it is when all links are followed; empty on an object store, which has none."""
    files: tuple[tuple[str, int], ...]
    """(name, bytes) of each."""
    links: tuple[str, ...]
    """Names of the links to folders, which are not followed."""


def list_files(filesystem: pafs.FileSystem, folder: str) -> list[str]:
    """The files right in a folder, sorted, without what is hidden: one request, whatever is below the folder."""
    if is_local(filesystem):
        return list_folder(filesystem, folder, LeftOut())[1]
    entries = list_entries(filesystem, folder, folders=False)
    return [one.name for one in entries if one.kind == pafs.FileType.File and not is_clutter(one.name)]


def list_folder(filesystem: pafs.FileSystem, folder: str, left: LeftOut) -> tuple[list[str], list[str]]:
    """(folders, files) right in a folder, sorted, links to them included; what is hidden is counted in `left`."""
    if is_local(filesystem):
        found = list(_entries(folder, "", left)) if os.path.isdir(folder) else []
        folders = [entry.name for entry, kind, _ in found if kind in ("folder", "link")]
        return sorted(folders), sorted(entry.name for entry, kind, _ in found if kind == "file")
    entries = list_entries(filesystem, folder)
    for name in {one.name for one in entries if is_clutter(one.name)}:
        left.skip(name)
    shown = [one for one in entries if not is_clutter(one.name)]
    folders = [one.name for one in shown if one.kind == pafs.FileType.Directory]
    return folders, [one.name for one in shown if one.kind != pafs.FileType.Directory]


def walk(filesystem: pafs.FileSystem, root: str, left: LeftOut) -> list[Folder]:
    """The folders from `root`, which may be a link, downward; what is hidden or a broken link is counted in `left`.

    Raises ValueError for a name that is not UTF-8 and for what may not be read.
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
    """Whether a link to a folder leads to one that the link itself is in, by its path as given or with links followed.

    Raises nothing: a broken link does not.
    """
    target = os.path.realpath(link)
    within = [os.path.realpath(os.path.dirname(link)), os.path.dirname(os.path.abspath(link))]
    return any(target in _ancestors(path) for path in within)


def _ancestors(path: str) -> Iterator[str]:
    """A folder and all that it is in, with links followed."""
    while True:
        yield os.path.realpath(path)
        if os.path.dirname(path) == path:
            return
        path = os.path.dirname(path)


def _entries(root: str, place: str, left: LeftOut) -> Iterator[tuple[os.DirEntry[str], str, int]]:
    """(entry, `folder`, `link` to one or `file`, bytes) of what is in a local folder and not left out."""
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
        raise ValueError(f"{error.filename or folder} may not be read; change its permissions, or remove it") from error


def _kind(entry: os.DirEntry[str], left: LeftOut) -> tuple[str, int] | None:
    """(`folder`, `link` or `file`, bytes), or None for what is neither and is counted."""
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
    # The system is only asked about files that not everybody may read.
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
