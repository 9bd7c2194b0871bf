"""Files that appear whole or not at all, on a local disk or an object store."""

import contextlib
import errno
import functools
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

from dist_resnet.storage.uri import appears_whole, folders_must_exist, is_local

PARTIAL = ".partial"
_CHUNK_BYTES = 16 << 20


@contextlib.contextmanager
def whole_file(filesystem: pafs.FileSystem, path: str) -> Iterator[Any]:
    """A stream that becomes the file at `path` when the block ends well and leaves nothing there when it does not.

    A reader, also after a crash of the machine, finds the old file or the whole new one. A process that is killed in
    the block leaves at most a file whose name ends in `.partial`.
    """
    writing = path if appears_whole(filesystem) else _partial_name(path)
    stream = _open_to_write(filesystem, writing)
    try:
        yield stream
    except BaseException:
        # A stream completes its upload when it is closed, and it is closed at the latest when it is forgotten.
        with contextlib.suppress(OSError):
            stream.close()
        _discard(filesystem, writing)
        raise
    try:
        with naming(path):
            stream.close()
            _give_name(filesystem, writing, path)
    except BaseException:
        if writing != path:  # else it may be the old file
            _discard(filesystem, writing)
        raise


@contextlib.contextmanager
def staged(filesystem: pafs.FileSystem, path: str) -> Iterator[Path]:
    """A path on this machine for a large file; at the end of the block it becomes `path`, whole or not at all."""
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
            # Some libraries make files that their owner alone can read.
            partial.chmod(0o644)
            _give_name(filesystem, str(partial), path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Has an OSError of the block say which file it is about, where writing failed and not opening."""
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
    """Writes a value as JSON, one line where no indent is given."""
    write_bytes(filesystem, path, (json.dumps(value, indent=indent, allow_nan=False) + "\n").encode())


def read_bytes(filesystem: pafs.FileSystem, path: str, start: int = 0, size: int | None = None) -> bytes:
    """The content of a file from byte `start` on, at most `size` bytes. Raises FileNotFoundError."""
    with filesystem.open_input_file(path) as file:
        file.seek(start)
        return file.read(size)


def read_json(filesystem: pafs.FileSystem, path: str, *, called: str | None = None) -> Any:
    """The value in a JSON file, or None where there is no such file.

    Raises ValueError, naming the file as it is `called` if that is not its path, where it holds none.
    """
    try:
        value = json.loads(read_bytes(filesystem, path))
    except FileNotFoundError:
        return None
    except ValueError as error:  # no JSON, or no text at all
        raise ValueError(f"{called or path} is damaged, it is no JSON ({error}); restore it from a copy") from error
    if value is None:
        raise ValueError(f"{called or path} is damaged, it holds nothing; restore it from a copy")
    return value


def exists(filesystem: pafs.FileSystem, path: str) -> bool:
    """Whether there is such a file or folder."""
    return filesystem.get_file_info(path).type != pafs.FileType.NotFound


def delete(filesystem: pafs.FileSystem, path: str) -> None:
    """Deletes a folder and all in it, or a file, if it is there."""
    kind = filesystem.get_file_info(path).type
    # An object store may list a folder's marker that is no object any more.
    with contextlib.suppress(FileNotFoundError):
        if kind == pafs.FileType.Directory:
            filesystem.delete_dir(path)
        elif kind == pafs.FileType.File:
            filesystem.delete_file(path)


def is_partial_of_here(name: str) -> bool:
    """Whether a file that is not whole was begun on this machine since it was started.

    A file that another machine is writing is never taken for one, and no clock is asked.
    """
    return name.endswith(PARTIAL) and f".{_machine()}-" in name


def now_at(filesystem: pafs.FileSystem, folder: str) -> int:
    """The time of the file system's own clock, nanoseconds, which stamps what is written in the folder."""
    path = _partial_name(f"{folder}/clock")
    with filesystem.open_output_stream(path) as stream:
        stream.write(b"x")
    try:
        return filesystem.get_file_info(path).mtime_ns
    finally:
        filesystem.delete_file(path)


def check_space(filesystem: pafs.FileSystem, folder: str, needed: int) -> None:
    """Raises OSError where the folder's disk cannot hold `needed` bytes in it, with those that are in it already."""
    if not is_local(filesystem):
        return
    entries = filesystem.get_file_info(pafs.FileSelector(folder, recursive=True))
    free = shutil.disk_usage(folder).free + sum(one.size for one in entries if one.type == pafs.FileType.File)
    if needed > free:
        raise OSError(
            f"{folder} has room for {size_text(free)} and the set needs about {size_text(needed)}; free "
            "space and give the same command again, or give another --target"
        )


def size_text(num_bytes: float) -> str:
    """A number of bytes in the unit that suits it.

    >>> [size_text(number) for number in (0, 999, 12_345, 146_000_000_000)]
    ['0 bytes', '999 bytes', '12.3 kB', '146.0 GB']
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size * 0.99995:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} bytes"


def _partial_name(path: str) -> str:
    return f"{path}.{_machine()}-{uuid.uuid4().hex}{PARTIAL}"


@functools.cache
def _machine() -> str:
    """What tells this machine, since it was started, from others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    except OSError:
        return f"{uuid.getnode():x}"


def _open_to_write(filesystem: pafs.FileSystem, path: str) -> Any:
    if not is_local(filesystem):
        if folders_must_exist(filesystem):
            filesystem.create_dir(path.rpartition("/")[0])
        return filesystem.open_output_stream(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return open(path, "wb")  # whose errors are plainer than Arrow's


def _give_name(filesystem: pafs.FileSystem, writing: str, path: str) -> None:
    """Gives what is written, if it has another name so far, its own."""
    if is_local(filesystem):
        _make_durable(writing)
        os.replace(writing, path)
        _make_durable(os.path.dirname(path))
    elif writing != path:
        # Not by `move`, of which Azure's stores without folders know nothing.
        filesystem.copy_file(writing, path)
        _discard(filesystem, writing)


def _discard(filesystem: pafs.FileSystem, path: str) -> None:
    with contextlib.suppress(OSError, pa.ArrowException):
        filesystem.delete_file(path)


def _make_durable(path: str) -> None:
    """Has a file's content, or the names in a folder, survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not os.path.isdir(path):  # some file systems cannot, of folders
            raise
    finally:
        os.close(descriptor)
