"""Byte ranges of files on local disks and object stores, with retries and an optional cache on a local disk."""

import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dist_resnet.storage.patience import patiently
from dist_resnet.storage.range_cache import RangeCache
from dist_resnet.storage.uri import is_local, open_uri

_OPEN_FILES = 128
_DENIALS = ("ACCESS_DENIED", "AccessDenied", "AuthorizationFailure", "AuthenticationFailed")


@dataclass(frozen=True, kw_only=True)
class Access:
    """How a worker reads remote files."""

    patience_seconds: float = 0.0
    """How long a store may fail before an error is raised."""
    denied_seconds: float = 60.0
    """How long a store may deny access, for instance while credentials are being renewed."""
    cache: str | None = None
    """Folder of the cache, which is kept between runs and shared by the workers of a machine."""
    cache_bytes: int = 0
    """Size limit of the cache."""
    alive: Callable[[], None] = lambda: None
    """Called at each retry while a store fails, in any thread."""


class RangeReader:
    """Reads byte ranges of the files of one split; used by many threads at once."""

    def __init__(self, uri: str, access: Access) -> None:
        """`uri`: any address on the file system of the files."""
        self._filesystem, _ = open_uri(uri)
        self.is_local = is_local(self._filesystem)
        self._access = access
        self._cache = None
        if access.cache and not self.is_local:
            self._cache = RangeCache(Path(access.cache).expanduser(), access.cache_bytes)
        self._files: OrderedDict[str, Any] = OrderedDict()
        self._lock, self._retrying = threading.Lock(), threading.Lock()
        self._gave_up = False

    def read(self, path: str, start: int, length: int, *, version: str) -> np.ndarray:
        """uint8 [length]: the bytes from `start` on; local files are memory-mapped.

        `version` identifies the file's content, so that cached bytes of an earlier version are not used. Raises
        OSError if the store fails for longer than the access allows, or if the file is too short.
        """
        if self.is_local:
            return self._mapped(path, start, length)
        if self._cache is None:
            return self._fetch(path, start, length)
        key = f"{version} {start} {length}"
        return self._cache.get(key, length, lambda: self._fetch(path, start, length))

    def _fetch(self, path: str, start: int, length: int) -> np.ndarray:
        """The bytes from the store; while it fails, one thread retries and the others wait for it.

        If that thread gives up, so do the others, and later calls try only once until the store works again: all
        threads together wait no longer than one.
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
                seconds=min(seconds, self._access.denied_seconds) if _is_denial(error) else seconds,
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
                self._files.pop(path, None)  # the next try opens it again
            raise
        if len(content) != length:
            raise OSError(f"{path} ends {length - len(content)} bytes before byte {start + length}")
        return np.frombuffer(content, np.uint8)

    def _opened(self, path: str) -> Any:
        """A local file memory-mapped, a remote one as pyarrow opens it, which costs an object store a request."""
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
        """A part of a local file in memory; asks the kernel to read it ahead."""
        mapped = self._opened(path)
        first_page, end = start - start % mmap.PAGESIZE, min(start + length, len(mapped))
        if first_page < end:
            mapped.madvise(mmap.MADV_WILLNEED, first_page, end - first_page)
        return np.frombuffer(mapped, np.uint8)[start : start + length]


def _is_denial(error: OSError) -> bool:
    return isinstance(error, PermissionError) or any(word in str(error) for word in _DENIALS)
