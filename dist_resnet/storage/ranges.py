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
import re
import threading
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from dist_resnet.storage.patience import patiently
from dist_resnet.wording import one_line

logger = logging.getLogger(__name__)

_MAGIC = b"dist_resnet.range.1\n"
_HEADER_BYTES = 64
_OPEN_FILES = 128
# A store that denies access may only fail to renew the credentials, which takes a moment and not half an hour.
_SECONDS_WHILE_DENIED = 60.0
_DENIALS = ("ACCESS_DENIED", "AccessDenied")
# What lies in the cache's folder: the lock, and entries, finished or not. All else is somebody's.
_LOCK, _ENTRY = "dist_resnet.lock", re.compile(r"[0-9a-f]{64}(\.[0-9a-f]{32}\.partial)?")
# A full cache is emptied by this share more than it has to be, so that it is not looked through for each new entry.
_SLACK = 0.1
_TALLY_DIGITS = 20


@dataclass(frozen=True, kw_only=True)
class Access:
    """How a worker reads what does not lie on its own disks."""

    patience_seconds: float = 0.0
    """How long a store may fail before an error is raised."""
    cache: str | None = None
    """Folder for what was read, kept between runs and shared by the workers of a machine."""
    cache_bytes: int = 0
    """What the entries in the folder may hold together."""
    alive: Callable[[], None] = lambda: None
    """Called, by whatever thread it is, at each try while a store fails."""


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
        self._gave_up = False

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
        """The bytes from the store; while it fails one thread asks again and the others wait for that.

        Once that one gave up the others do too, and whoever comes later asks once, until the store works again: all
        have the patience of one together.
        """
        try:
            content = self._fetch_once(path, start, length)
        except FileNotFoundError:
            raise
        except OSError as error:
            with self._retrying:
                if self._gave_up:
                    raise
                content = self._retry(path, start, length, error)
        self._gave_up = False
        return content

    def _retry(self, path: str, start: int, length: int, error: OSError) -> np.ndarray:
        """The bytes from a store that has just failed with this error, however long it may still do."""
        seconds = self._access.patience_seconds
        try:
            return patiently(
                lambda: self._fetch_once(path, start, length),
                what=f"{path} cannot be read",
                seconds=min(seconds, _SECONDS_WHILE_DENIED) if _is_denial(error) else seconds,
                alive=self._access.alive,
                final=(FileNotFoundError,),
            )
        except FileNotFoundError:
            raise  # of this file alone
        except OSError:
            self._gave_up = True
            raise

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
    """A folder of byte ranges, the least recently used ones going first; whatever else lies there is left alone.

    Entries, finished or not, have no more than `limit_bytes` together, whoever shares the folder. The lock file tells
    how many they have, or more where some were removed or replaced; they are counted where that leaves no room.
    """

    folder: Path
    limit_bytes: int
    _failing: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        """Makes the folder, and what is in it fit. Raises OSError where there can be no such folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with self._alone() as tally:
                _write_tally(tally, self._make_room(0))
        except OSError as error:
            self._warn(error)

    def get(self, key: str, length: int, fetch: Callable[[], np.ndarray]) -> np.ndarray:
        """uint8 [length]: the bytes kept under `key`, or those that `fetch` returns, which are kept."""
        path = self.folder / hashlib.sha256(key.encode()).hexdigest()
        content = _read_entry(path, length)
        if content is None:
            content = fetch()
            self._put(path, content)
        return content

    def _put(self, path: Path, content: np.ndarray) -> None:
        """Keeps bytes if the disk takes them; a full one, or one that fails, costs a warning and no more."""
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            self._claim(partial, _HEADER_BYTES + len(content))
            with partial.open("r+b") as file:
                file.write(_header(content))
                file.write(content.data)
            with self._alone():  # or who counts just now would see it under neither name
                partial.replace(path)
        except OSError as error:
            self._warn(error)
            with contextlib.suppress(OSError):
                partial.unlink()
            return
        self._failing = False

    def _warn(self, error: OSError) -> None:
        if not self._failing:
            logger.warning("the cache in %s cannot be written (%s); reading goes on without it", self.folder, error)
        self._failing = True

    def _claim(self, partial: Path, size: int) -> None:
        """Makes an entry that has its size already, so that whoever counts meanwhile counts all of it."""
        if size > self.limit_bytes:
            raise OSError(f"{size} bytes are more than its bound of {self.limit_bytes}")
        with self._alone() as tally:
            held = _read_tally(tally)
            if held is None or held + size > self.limit_bytes:
                held = self._make_room(size)
            _write_tally(tally, held + size)
            with partial.open("wb") as file:
                file.truncate(size)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[int]:
        """The lock file's descriptor, while no other thread or process of those that share the folder has it."""
        tally = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(tally, fcntl.LOCK_EX)
            yield tally
        finally:
            os.close(tally)

    def _make_room(self, size: int) -> int:
        """Removes the entries used longest ago until so many more bytes fit; returns how many the others have."""
        entries = []
        for entry in os.scandir(self.folder):
            if _ENTRY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    entries.append((status.st_mtime, status.st_size, entry.path))
        held = sum(entry_bytes for _, entry_bytes, _ in entries)
        for _, entry_bytes, path in sorted(entries):
            if held <= min((1 - _SLACK) * self.limit_bytes, self.limit_bytes - size):
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            held -= entry_bytes
        return held


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


def _is_denial(error: OSError) -> bool:
    return isinstance(error, PermissionError) or any(word in str(error) for word in _DENIALS)


def _read_tally(tally: int) -> int | None:
    """The number in the lock file, or None where there is none."""
    told = os.pread(tally, _TALLY_DIGITS, 0)
    return int(told) if told.isdigit() else None


def _write_tally(tally: int, held: int) -> None:
    # Always as long, so that it takes no room of a full disk the second time, and no kill leaves half of it.
    os.pwrite(tally, b"%0*d" % (_TALLY_DIGITS, held), 0)


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
