"""Files that appear complete or not at all, on a local disk or an object store."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from dist_resnet.storage.machine import machine_id
from dist_resnet.storage.uri import appears_whole, folders_must_exist, is_local

PARTIAL = ".partial"
_CHUNK_BYTES = 16 << 20


@contextlib.contextmanager
def whole_file(filesystem: pafs.FileSystem, path: str) -> Iterator[Any]:
    """A stream that becomes the file at `path` when the block succeeds; if it raises, nothing changes there.

    A reader finds the old file or the complete new one, even after a machine crash. A process killed in the block
    leaves at most a file whose name ends in `.partial`.
    """
    writing = path if appears_whole(filesystem) else _partial_name(path)
    stream = _open_to_write(filesystem, writing)
    try:
        yield stream
    except BaseException:
        # Closing a stream completes its upload, and garbage collection closes it.
        with contextlib.suppress(OSError):
            stream.close()
        _discard(filesystem, writing)
        raise
    try:
        with naming(path):
            stream.close()
            _give_name(filesystem, writing, path)
    except BaseException:
        if writing != path:  # otherwise it may be the old file
            _discard(filesystem, writing)
        raise


@contextlib.contextmanager
def staged(filesystem: pafs.FileSystem, path: str) -> Iterator[Path]:
    """A local path for a large file, which becomes the file at `path` when the block ends, complete or not at all."""
    if not is_local(filesystem):
        with tempfile.TemporaryDirectory() as folder:
            staging = Path(folder, "staged")
            yield staging
            with staging.open("rb") as source, whole_file(filesystem, path) as target:
                shutil.copyfileobj(source, target, _CHUNK_BYTES)
        return
    partial = Path(_partial_name(path))
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        with naming(path):
            yield partial
            # Some libraries create files that only their owner can read.
            partial.chmod(0o644)
            _give_name(filesystem, str(partial), path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Adds the path to an OSError of the block that names no file, as errors of writing do."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = path
        raise


def write_bytes(filesystem: pafs.FileSystem, path: str, content: bytes) -> None:
    """Writes a small file."""
    with naming(path), whole_file(filesystem, path) as stream:
        stream.write(content)


def write_json(filesystem: pafs.FileSystem, path: str, value: Any, *, indent: int | None = None) -> None:
    """Writes a value as JSON, in one line if no indent is given."""
    write_bytes(filesystem, path, (json.dumps(value, indent=indent, allow_nan=False) + "\n").encode())


def read_bytes(filesystem: pafs.FileSystem, path: str, start: int = 0, size: int | None = None) -> bytes:
    """The content of a file from byte `start` on, at most `size` bytes. Raises FileNotFoundError."""
    with filesystem.open_input_file(path) as file:
        file.seek(start)
        return file.read(size)


def read_json(filesystem: pafs.FileSystem, path: str, *, called: str | None = None) -> Any:
    """The value in a JSON file, or None if there is no such file.

    Raises ValueError if the file is not JSON; it names the path, or what the file is `called`.
    """
    try:
        value = json.loads(read_bytes(filesystem, path))
    except FileNotFoundError:
        return None
    except ValueError as error:  # not JSON, or not even text
        raise ValueError(f"{called or path} is damaged: not JSON ({error}); restore it from a copy") from error
    if value is None:
        raise ValueError(f"{called or path} is damaged: it is empty; restore it from a copy")
    return value


def exists(filesystem: pafs.FileSystem, path: str) -> bool:
    """Whether the file or folder exists."""
    return filesystem.get_file_info(path).type != pafs.FileType.NotFound


def delete(filesystem: pafs.FileSystem, path: str) -> None:
    """Deletes a file, or a folder with all its content, if it exists."""
    kind = filesystem.get_file_info(path).type
    # An object store may still list the marker of a deleted folder.
    with contextlib.suppress(FileNotFoundError):
        if kind == pafs.FileType.Directory:
            filesystem.delete_dir(path)
        elif kind == pafs.FileType.File:
            filesystem.delete_file(path)


def is_partial_of_here(name: str) -> bool:
    """Whether a partial file was started on this machine since it booted; another machine's never counts as one."""
    return name.endswith(PARTIAL) and f".{machine_id()}-" in name


def now_at(filesystem: pafs.FileSystem, folder: str) -> int:
    """The time in nanoseconds by the file system's own clock, which stamps files written in the folder."""
    path = _partial_name(f"{folder}/clock")
    with filesystem.open_output_stream(path) as stream:
        stream.write(b"x")
    try:
        return filesystem.get_file_info(path).mtime_ns
    finally:
        filesystem.delete_file(path)


def check_space(filesystem: pafs.FileSystem, folder: str, needed: int) -> None:
    """Raises OSError if the folder cannot hold `needed` bytes, of which its present files are a part."""
    if not is_local(filesystem):
        return
    entries = filesystem.get_file_info(pafs.FileSelector(folder, recursive=True))
    free = shutil.disk_usage(folder).free + sum(one.size for one in entries if one.type == pafs.FileType.File)
    if needed > free:
        raise OSError(
            f"{folder} has room for {size_text(free)} and the set needs about {size_text(needed)}; free "
            "space and run the same command again, or give another --target"
        )


def size_text(num_bytes: float) -> str:
    """A number of bytes with a suitable unit.

    >>> [size_text(number) for number in (0, 999, 12_345, 146_000_000_000)]
    ['0 bytes', '999 bytes', '12.3 kB', '146.0 GB']
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size * 0.99995:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} bytes"


def _partial_name(path: str) -> str:
    return f"{path}.{machine_id()}-{uuid.uuid4().hex}{PARTIAL}"


def _open_to_write(filesystem: pafs.FileSystem, path: str) -> Any:
    if not is_local(filesystem):
        if folders_must_exist(filesystem):
            filesystem.create_dir(path.rpartition("/")[0])
        return filesystem.open_output_stream(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return open(path, "wb")  # its errors are plainer than Arrow's


def _give_name(filesystem: pafs.FileSystem, writing: str, path: str) -> None:
    """Renames a partial file to its final name."""
    if is_local(filesystem):
        _make_durable(writing)
        os.replace(writing, path)
        _make_durable(os.path.dirname(path))
    elif writing != path:
        # Azure accounts without a hierarchical namespace have no `move`.
        filesystem.copy_file(writing, path)
        _discard(filesystem, writing)


def _discard(filesystem: pafs.FileSystem, path: str) -> None:
    with contextlib.suppress(OSError, pa.ArrowException):
        filesystem.delete_file(path)


def _make_durable(path: str) -> None:
    """Makes a file's content, or the names in a folder, survive a machine crash."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not os.path.isdir(path):  # some file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)
