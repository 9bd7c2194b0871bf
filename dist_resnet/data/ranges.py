"""Byte ranges of files on local disks and object stores: retried, and cached on a local disk where that is wanted.

An entry of the cache is a file with a checksum before its bytes. It appears under its name when it is whole, and one
that is torn all the same, by a crash of the machine for instance, fails its checksum and is fetched again.
"""

import contextlib
import fcntl
import hashlib
import logging
import mmap
import os
import threading
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from dist_resnet.patience import patiently

logger = logging.getLogger(__name__)

_MAGIC = b"dist_resnet.range.1\n"
_HEADER_BYTES = 64
_OPEN_FILES = 128
# Room is made for this share of the limit, and looked for again once a process has added so much of the limit.
_SLACK, _UNTIL_NEXT_LOOK = 0.1, 0.01


@dataclass(frozen=True, kw_only=True)
class Access:
    """How a worker reads what does not lie on its own disks."""

    patience_seconds: float = 0.0
    """How long a store may fail before an error is raised."""
    cache: str | None = None
    """Folder for what was read, kept between runs and shared by the workers of a machine."""
    cache_bytes: int = 0
    """What the folder may hold."""


class RangeReader:
    """Reads byte ranges of the files of one split; used by many threads at once."""

    def __init__(self, uri: str, access: Access) -> None:
        """`uri`: any address on the file system of the files."""
        self._filesystem, _ = filesystem_of(uri)
        self.is_local = isinstance(self._filesystem, pafs.LocalFileSystem)
        self._access = access
        self._cache = None
        if access.cache and not self.is_local:
            self._cache = RangeCache(Path(access.cache).expanduser(), access.cache_bytes)
        self._files: OrderedDict[str, Any] = OrderedDict()
        self._lock, self._retrying = threading.Lock(), threading.Lock()

    def read(self, path: str, start: int, length: int, *, version: str) -> np.ndarray:
        """uint8 [length]: the bytes from `start` on; those of local files are mapped, not read.

        `version` names the content of the file, so that bytes cached from an earlier one are not taken for it. Raises
        OSError once the store has failed for as long as the access allows, or where the file is too short.
        """
        if self.is_local:
            return self._mapped(path, start, length)
        if self._cache is None:
            return self._fetch(path, start, length)
        key = f"{version} {start} {length}"
        return self._cache.get(key, length, lambda: self._fetch(path, start, length))

    def _fetch(self, path: str, start: int, length: int) -> np.ndarray:
        """The bytes from the store; while it fails one thread asks again and the others wait for that."""
        try:
            return self._fetch_once(path, start, length)
        except OSError:
            with self._retrying:
                return patiently(
                    lambda: self._fetch_once(path, start, length),
                    what=f"{path} cannot be read",
                    seconds=self._access.patience_seconds,
                )

    def _fetch_once(self, path: str, start: int, length: int) -> np.ndarray:
        try:
            content = self._opened(path).read_at(length, start)
        except OSError:
            with self._lock:
                self._files.pop(path, None)  # the next try opens it anew
            raise
        if len(content) != length:
            raise OSError(f"{path} ends {length - len(content)} bytes before byte {start + length}")
        return np.frombuffer(content, np.uint8)

    def _opened(self, path: str) -> Any:
        """A local file as it is mapped, another as pyarrow opens it, which on an object store costs a request."""
        with self._lock:
            if path in self._files:
                self._files.move_to_end(path)
                return self._files[path]
        if self.is_local:
            with open(path, "rb") as source:
                file: Any = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
        else:
            file = self._filesystem.open_input_file(path)
        with self._lock:
            self._files[path] = file
            while len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)
        return file

    def _mapped(self, path: str, start: int, length: int) -> np.ndarray:
        """A part of a local file in memory, which the kernel is asked to read ahead of its use."""
        mapped = self._opened(path)
        first_page, end = start - start % mmap.PAGESIZE, min(start + length, len(mapped))
        if first_page < end:
            mapped.madvise(mmap.MADV_WILLNEED, first_page, end - first_page)
        return np.frombuffer(mapped, np.uint8)[start : start + length]


@dataclass
class RangeCache:
    """A folder of byte ranges within a bound, the least recently used ones going first."""

    folder: Path
    limit_bytes: int
    _added: int = field(default=0, init=False)
    _failing: bool = field(default=False, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        """Makes the folder. Raises OSError where that fails."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._make_room()

    def get(self, key: str, length: int, fetch: Callable[[], np.ndarray]) -> np.ndarray:
        """uint8 [length]: the bytes kept under `key`, or those that `fetch` returns, which are kept."""
        path = self.folder / hashlib.sha256(key.encode()).hexdigest()
        content = _read_entry(path, length)
        if content is None:
            content = fetch()
            self._put(path, content)
        return content

    def _put(self, path: Path, content: np.ndarray) -> None:
        """Keeps bytes if the disk takes them; a full one costs a warning and no more."""
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            with partial.open("wb") as file:
                file.write(_header(content))
                file.write(content.data)
            partial.replace(path)
        except OSError as error:
            if not self._failing:
                logger.warning("the cache in %s cannot be written (%s); reading goes on without it", self.folder, error)
            self._failing = True
            with contextlib.suppress(OSError):
                partial.unlink()
            return
        self._failing = False
        with self._lock:
            self._added += len(content) + _HEADER_BYTES
            due = self._added > _UNTIL_NEXT_LOOK * self.limit_bytes
        if due:
            self._make_room()

    def _make_room(self) -> None:
        """Removes the entries used longest ago until the folder is under its bound; one process at a time does."""
        with self._lock, (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._added = 0
            entries = []
            for entry in os.scandir(self.folder):
                with contextlib.suppress(FileNotFoundError):
                    if entry.name != "lock":
                        status = entry.stat()
                        entries.append((status.st_mtime, status.st_size, entry.path))
            excess = sum(size for _, size, _ in entries) - (1 - _SLACK) * self.limit_bytes
            for _, size, path in sorted(entries):
                if excess <= 0:
                    break
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                excess -= size


def filesystem_of(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a local path or URI, and the path in it, wildcards included."""
    if "://" not in uri:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))  # a worker may run in another folder
    location, question, options = uri.partition("?")
    plain = location
    if "*" in location or "[" in location:
        plain = location[: min(location.find(mark) for mark in "*[" if mark in location)].rpartition("/")[0]
    try:
        filesystem, path = pafs.FileSystem.from_uri(plain + question + options)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{uri} is not a local path, s3:// or gs:// URI ({one_line(error)})") from error
    return filesystem, (path + location[len(plain) :]).rstrip("/")


def one_line(error: BaseException) -> str:
    """What an error says, short enough for a line."""
    return " ".join(str(error).split())[:200]


def _header(content: np.ndarray) -> bytes:
    fields = _MAGIC + len(content).to_bytes(8, "little") + zlib.crc32(content.data).to_bytes(4, "little")
    return fields.ljust(_HEADER_BYTES, b"\0")


def _read_entry(path: Path, length: int) -> np.ndarray | None:
    """The bytes of an entry, or None where there is none that is whole."""
    try:
        with path.open("rb") as file:
            entry = np.fromfile(file, np.uint8)
        os.utime(path)  # used now
    except OSError:
        return None
    content = entry[_HEADER_BYTES:]
    if len(content) != length or entry[:_HEADER_BYTES].tobytes() != _header(content):
        logger.warning("%s in the cache is torn; fetching it again", path.name)
        return None
    return content
