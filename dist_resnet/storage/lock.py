"""A lock on a folder that ends with the process that has it, whatever ends that; its file says who that is."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable

FILE = "lock"
"""The lock's file in the folder; there while a process has the lock, or after it was killed."""


class LockedError(Exception):
    """Another process has the lock; `holder` says which, in words."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


def lock(folder: str, *, shared: bool = False) -> Callable[[], None]:
    """Locks a folder that exists and returns what unlocks it. Raises LockedError if another has it.

    With `shared` several processes may have it, as long as none has it for itself.

    Another OSError means that the file system knows no locks, or that nothing can be written there. The kernel keeps
    the lock, on network file systems their server, so that a process that was killed has none.
    """
    path = os.path.join(folder, FILE)
    # For writing, without which NFS locks nothing.
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
        # Whoever had it has unlocked it, and with it removed its file, in between.
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
    """What identifies this process to somebody who waits for it."""
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since}


def describe(content: bytes) -> str:
    """In words, the process that a lock's file names.

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
