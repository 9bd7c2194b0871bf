"""A lock on a folder that ends with its process, even if that is killed; its file names the process."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable

FILE = "lock"
"""The lock's file in the folder; it exists while a process has the lock, or after that was killed."""


class LockedError(Exception):
    """Another process has the lock; `holder` describes it."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


def lock(folder: str, *, shared: bool = False) -> Callable[[], None]:
    """Locks an existing folder and returns the function that unlocks it. Raises LockedError if another has it.

    With `shared`, several processes may have the lock if all of them share it. Raises another OSError if the file
    system has no locks or cannot be written. The kernel keeps the lock, or the server of a network file system, so a
    killed process loses it.
    """
    path = os.path.join(folder, FILE)
    # NFS locks only files that are open for writing.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        said = os.pread(descriptor, 4096, 0)
        os.close(descriptor)
        raise LockedError(describe(said)) from error
    except OSError:
        if not os.fstat(descriptor).st_size:
            with contextlib.suppress(OSError):
                os.unlink(path)
        os.close(descriptor)
        raise
    if not _is_file(descriptor, path):
        # The previous holder has unlocked it, and so removed this file, in between.
        os.close(descriptor)
        return lock(folder, shared=shared)
    with contextlib.suppress(OSError):  # a full disk
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder()).encode(), 0)

    def unlock() -> None:
        with contextlib.suppress(OSError):
            if not shared:
                os.unlink(path)
        os.close(descriptor)

    return unlock


def holder() -> dict[str, str | int]:
    """Host, process id and time: what identifies this process to others."""
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since}


def describe(content: bytes) -> str:
    """The process that a lock's file names, in words.

    >>> describe(b'{"host": "a", "pid": 7, "since": "2026-01-01 00:00:00 UTC"}')
    'process 7 on a, since 2026-01-01 00:00:00 UTC'
    """
    try:
        known = json.loads(content)
        return f"process {known['pid']} on {known['host']}, since {known['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _is_file(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
