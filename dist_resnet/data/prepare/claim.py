"""The claim on a target folder for one source and one set of options, from a preparation's start to its end."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow.fs as pafs

from dist_resnet.data.prepare.options import Options
from dist_resnet.data.prepare.request import WORK
from dist_resnet.data.shards.manifest import PREPARING, check_sizes, read_manifest
from dist_resnet.storage.files import PARTIAL, exists, is_partial_of_here, now_at, read_json, write_json
from dist_resnet.storage.lock import LockedError, lock
from dist_resnet.storage.uri import is_local

# A live preparation writes to its partial files far more often, even if its file system buffers.
_ABANDONED_SECONDS = 3600


@contextlib.contextmanager
def locked(filesystem: pafs.FileSystem, folder: str, target: str) -> Iterator[None]:
    """Locks a local target against other processes and removes the partial files of dead ones on this machine.

    An object store and some network file systems have no locks; nothing is done there. Raises ValueError if another
    process has the lock.
    """
    if not is_local(filesystem):
        yield
        return
    filesystem.create_dir(folder, recursive=True)
    try:
        unlock = lock(folder)
    except LockedError as error:
        raise ValueError(f"{target} is being prepared by {error.holder}; wait for it, or stop it first") from error
    except OSError:  # some network file systems have no such locks
        yield
        return
    try:
        _remove_partials(filesystem, folder, lambda entry: is_partial_of_here(entry.base_name))
        yield
    finally:
        unlock()


def claim(filesystem: pafs.FileSystem, folder: str, options: Options) -> dict[str, Any] | None:
    """Claims the target for these options; returns the manifest if the set is already finished, else None.

    Raises ValueError if the target holds other shards, or a set of another source or other options.
    """
    mine = options.identity()
    under_way, manifest = read_json(filesystem, f"{folder}/{PREPARING}"), read_manifest(filesystem, folder)
    if manifest is not None:
        _check_same(f"{options.target} holds a set that was prepared", manifest["options"], mine)
    if under_way is not None:
        _check_same(f"{options.target} is being prepared", under_way, mine)
    if manifest is not None:
        if under_way is not None:
            clean_up(filesystem, folder)  # the earlier process was killed while it cleaned up
        _check_finished(filesystem, folder, options, manifest)
        return manifest
    if under_way is not None:
        _remove_partials(filesystem, folder, _abandoned_at(filesystem, folder))
        return None
    entries = filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
    if others := sorted(one.base_name for one in entries if one.base_name.endswith(".parquet")):
        raise ValueError(
            f"{options.target} already holds {others[0]}, which is not of this set; give an empty --target"
        )
    write_json(filesystem, f"{folder}/{PREPARING}", mine)
    return None


def clean_up(filesystem: pafs.FileSystem, folder: str) -> None:
    """Removes what only a preparation needs; the claim last, so that a killed clean-up is repeated."""
    if exists(filesystem, f"{folder}/{WORK}"):
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_dir(f"{folder}/{WORK}")
    _remove_partials(filesystem, folder, lambda entry: True)
    with contextlib.suppress(FileNotFoundError):
        filesystem.delete_file(f"{folder}/{PREPARING}")


def release(filesystem: pafs.FileSystem, folder: str) -> None:
    """Gives up the claim if nothing has been written, so that another source or other options can be given."""
    if not exists(filesystem, f"{folder}/{WORK}"):
        # Must not hide the error that is being raised.
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_file(f"{folder}/{PREPARING}")


def check_undamaged(damaged: list[dict[str, Any]], where: str) -> None:
    """Raises ValueError for the first damaged image that an earlier start with --on-damaged skip left out."""
    for one in damaged:
        raise ValueError(
            f"{one['image']} of class {one['class']} is damaged ({one['reason']}) and was left out of {where} by "
            "--on-damaged skip; give --on-damaged skip again, or prepare into another --target"
        )


def _check_finished(filesystem: pafs.FileSystem, folder: str, options: Options, manifest: dict[str, Any]) -> None:
    check_sizes(filesystem, folder, manifest)
    if options.on_damaged == "error":
        for split in manifest["splits"].values():
            check_undamaged(split["damaged"], options.target)


def _check_same(what: str, theirs: dict[str, Any], mine: dict[str, Any]) -> None:
    names = {"shrink": "--shorter-side and --quality"}
    others = [
        f"{names.get(key) or '--' + key.replace('_', '-')} (was {theirs.get(key)}, now {value})"
        for key, value in mine.items()
        if theirs.get(key) != value
    ]
    if others:
        raise ValueError(f"{what} with other options: {', '.join(others)}; give those, or another --target")


def _remove_partials(filesystem: pafs.FileSystem, folder: str, is_chosen: Callable[[pafs.FileInfo], bool]) -> None:
    """Removes the chosen partial files, which killed processes leave."""
    for parent in (folder, f"{folder}/{WORK}"):
        for entry in filesystem.get_file_info(pafs.FileSelector(parent, allow_not_found=True)):
            if entry.base_name.endswith(PARTIAL) and is_chosen(entry):
                with contextlib.suppress(FileNotFoundError):
                    filesystem.delete_file(entry.path)


def _abandoned_at(filesystem: pafs.FileSystem, folder: str) -> Callable[[pafs.FileInfo], bool]:
    """Whether a file was last written so long ago, by the file system's own clock, that no machine still writes it."""
    if not is_local(filesystem):
        return lambda entry: False  # an object store does not list unfinished files
    try:
        # This machine's clock may differ from the file server's by more than the time allowed.
        moment = now_at(filesystem, folder)
    except OSError:  # such as a full disk, which the next write reports
        return lambda entry: False
    return lambda entry: entry.mtime_ns <= moment - _ABANDONED_SECONDS * 10**9
