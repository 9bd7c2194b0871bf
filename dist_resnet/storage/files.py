"""Files that appear whole or not at all, on a local disk or an object store."""

import contextlib
import functools
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

PARTIAL = ".partial"


def child_uri(uri: str, name: str) -> str:
    """The address of `name` within the folder at a local path or URI.

    >>> child_uri("s3://bucket/set?region=eu-west-1", "train")
    's3://bucket/set/train?region=eu-west-1'
    """
    location, question, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return f"{location.rstrip('/')}/{name}{question}{options}"


def is_local(filesystem: pafs.FileSystem) -> bool:
    """Whether the files lie on a file system that can rename."""
    return isinstance(filesystem, pafs.LocalFileSystem)


@contextlib.contextmanager
def whole_file(filesystem: pafs.FileSystem, path: str) -> Iterator[Any]:
    """A stream that becomes the file at `path` when the block ends well and leaves nothing there when it does not.

    A process that is killed in the block leaves at most a file whose name ends in `.partial`.
    """
    # An object appears when its upload is complete; a local file does when it gets its name.
    writing = f"{path}.{_machine()}-{uuid.uuid4().hex}{PARTIAL}" if is_local(filesystem) else path
    if is_local(filesystem):
        filesystem.create_dir(path.rpartition("/")[0] or ".", recursive=True)
    stream = filesystem.open_output_stream(writing)
    try:
        yield stream
        stream.close()
        if is_local(filesystem):
            _make_durable(writing)
            filesystem.move(writing, path)
    except BaseException:
        # A stream completes its upload when it is closed, and it is closed at the latest when it is forgotten.
        with contextlib.suppress(OSError):
            stream.close()
        with contextlib.suppress(OSError):
            filesystem.delete_file(writing)
        raise


@functools.cache
def _machine() -> str:
    """What tells this machine, since it was started, from others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    except OSError:
        return f"{uuid.getnode():x}"


def is_partial_of_here(name: str) -> bool:
    """Whether a file that is not whole was begun on this machine since it was started.

    A file that another machine is writing is never taken for one, and no clock is asked.
    """
    return name.endswith(PARTIAL) and f".{_machine()}-" in name


def now_at(filesystem: pafs.FileSystem, folder: str) -> int:
    """The time of the file system's own clock, nanoseconds, which stamps what is written in the folder."""
    path = f"{folder}/clock.{_machine()}-{uuid.uuid4().hex}{PARTIAL}"
    with filesystem.open_output_stream(path) as stream:
        stream.write(b"x")
    try:
        return filesystem.get_file_info(path).mtime_ns
    finally:
        filesystem.delete_file(path)


def write_json(filesystem: pafs.FileSystem, path: str, value: Any) -> None:
    """Writes a value as one line of JSON."""
    write_bytes(filesystem, path, (json.dumps(value, allow_nan=False) + "\n").encode())


def write_bytes(filesystem: pafs.FileSystem, path: str, content: bytes) -> None:
    """Writes a small file."""
    with whole_file(filesystem, path) as stream:
        stream.write(content)


def read_json(filesystem: pafs.FileSystem, path: str) -> Any:
    """The value in a JSON file, or None where there is no such file. Raises ValueError where it holds none."""
    try:
        with filesystem.open_input_file(path) as file:
            content = file.read()
    except FileNotFoundError:
        return None
    try:
        return json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); restore it from a copy") from error


def exists(filesystem: pafs.FileSystem, path: str) -> bool:
    """Whether there is such a file or folder."""
    return filesystem.get_file_info(path).type != pafs.FileType.NotFound


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


def _make_durable(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
