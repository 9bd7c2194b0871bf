"""A cache on a local disk for byte ranges of remote files.

An entry is a file with a checksum before its bytes, and gets its name when it is complete. An entry that is torn
nevertheless, for instance by a machine crash, fails its checksum and is fetched again.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)

_MAGIC = b"dist_resnet.range.1\n"
_HEADER_BYTES = 64
# The cache's files: the lock, and entries, finished or not. Other files in the folder are not touched.
_LOCK, _ENTRY = "dist_resnet.lock", re.compile(r"[0-9a-f]{64}(\.[0-9a-f]{32}\.partial)?")
# A full cache is emptied by this additional share, so that not every new entry scans the folder.
_SLACK = 0.1
_TALLY_DIGITS = 20


@dataclass
class RangeCache:
    """A folder of byte ranges from which the least recently used are removed first; other files there are kept.

    All entries together, finished or not, take at most `limit_bytes`, whichever processes share the folder. The lock
    file holds the sum of their sizes, or more if some were removed or replaced; it is counted again if it leaves no
    room.
    """

    folder: Path
    limit_bytes: int
    _failing: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        """Creates the folder and shrinks its content to the limit. Raises OSError if the folder cannot be created."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with self._locked() as tally:
                _write_tally(tally, self._make_room(0))
        except OSError as error:
            self._warn(error)

    def get(self, key: str, length: int, fetch: Callable[[], np.ndarray]) -> np.ndarray:
        """uint8 [length]: the bytes cached under `key`, or those that `fetch` returns, which are then cached."""
        path = self.folder / hashlib.sha256(key.encode()).hexdigest()
        content = _read_entry(path, length)
        if content is None:
            content = fetch()
            self._put(path, content)
        return content

    def _put(self, path: Path, content: np.ndarray) -> None:
        """Caches bytes; if the disk is full or fails, logs one warning."""
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            self._claim(partial, _HEADER_BYTES + len(content))
            with partial.open("r+b") as file:
                file.write(_header(content))
                file.write(content.data)
            with self._locked():  # otherwise a process that is counting could see it under neither name
                partial.replace(path)
        except OSError as error:
            self._warn(error)
            with contextlib.suppress(OSError):
                partial.unlink()
            return
        self._failing = False

    def _warn(self, error: OSError) -> None:
        if not self._failing:
            logger.warning("the cache in %s cannot be written (%s); reading continues without it", self.folder, error)
        self._failing = True

    def _claim(self, partial: Path, size: int) -> None:
        """Creates an entry with its final size, so that other processes count all of it."""
        if size > self.limit_bytes:
            raise OSError(f"{size} bytes are more than its bound of {self.limit_bytes}")
        with self._locked() as tally:
            held = _read_tally(tally)
            if held is None or held + size > self.limit_bytes:
                held = self._make_room(size)
            _write_tally(tally, held + size)
            with partial.open("wb") as file:
                file.truncate(size)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The lock file's descriptor, locked against the other threads and processes that share the folder."""
        tally = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(tally, fcntl.LOCK_EX)
            yield tally
        finally:
            os.close(tally)

    def _make_room(self, size: int) -> int:
        """Removes the least recently used entries until `size` more bytes fit; returns the bytes of the others."""
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


def _read_tally(tally: int) -> int | None:
    """The number in the lock file, or None if there is none."""
    digits = os.pread(tally, _TALLY_DIGITS, 0)
    return int(digits) if digits.isdigit() else None


def _write_tally(tally: int, held: int) -> None:
    # Of constant length: writing it again needs no more room on a full disk, and a kill cannot leave half of it.
    os.pwrite(tally, b"%0*d" % (_TALLY_DIGITS, held), 0)


def _header(content: np.ndarray) -> bytes:
    fields = _MAGIC + len(content).to_bytes(8, "little") + zlib.crc32(content.data).to_bytes(4, "little")
    return fields.ljust(_HEADER_BYTES, b"\0")


def _read_entry(path: Path, length: int) -> np.ndarray | None:
    """The bytes of an entry, or None if there is no complete one."""
    try:
        with path.open("rb") as file:
            entry = np.fromfile(file, np.uint8)
        os.utime(path)  # marks it as used now
    except OSError:
        return None
    content = entry[_HEADER_BYTES:]
    if len(content) != length or entry[:_HEADER_BYTES].tobytes() != _header(content):
        logger.warning("%s in the cache is torn; fetching it again", path.name)
        return None
    return content
