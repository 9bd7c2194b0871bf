"""Which driver works on a run, a sweep or a probe: one at a time, refused to others while it lives.

On a disk, near or far, the kernel's lock on the directory says so, and ends with its process. An object store has none:
there, and where a file system knows no locks, an object named `lock` is written anew every ten seconds, and whoever
finds one waits to see whether it still changes. Of two drivers that find none in the same second or two both may go on.
"""

import contextlib
import functools
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from dist_resnet.storage.lock import FILE, LockedError, describe, holder, lock
from dist_resnet.tracking.run_directory import SWEEP_FILE, RunDirectory

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_CLOSE = 5.0


@dataclass(frozen=True, kw_only=True)
class Rhythm:
    """Seconds of a driver's signs of life where the kernel has no lock."""

    beat: float = 10.0
    """Between two signs."""
    dead: float = 45.0
    """Without one, after which a driver is taken for dead."""
    settle: float = 2.0
    """In which another driver that found no lock either has written its own."""


# What gives back each directory that this process holds.
_held: dict[str, Callable[[], None]] = {}


def hold(directory: RunDirectory, *, rhythm: Rhythm = Rhythm()) -> None:
    """Makes this process the directory's driver until it ends, or `release` or `keeping` does.

    Raises ValueError, saying who, where another is.
    """
    if directory.uri in _held:
        return
    try:
        _held[directory.uri] = _take(directory, rhythm)
    except LockedError as error:
        raise ValueError(
            f"{directory.uri} is being worked on by {error.holder}; wait for it, stop it by Ctrl-C or by a file named "
            "stop in that folder, or use another --execution.name"
        ) from error


@contextlib.contextmanager
def taking(directory: RunDirectory) -> Iterator[None]:
    """As `hold`, unless the block raises."""
    hold(directory)
    try:
        yield
    except BaseException:
        release(directory)
        raise


@contextlib.contextmanager
def keeping(directory: RunDirectory) -> Iterator[None]:
    """As `hold`, until the block ends."""
    hold(directory)
    try:
        yield
    finally:
        release(directory)


def release(directory: RunDirectory) -> None:
    """Lets others work on the directory."""
    if give_back := _held.pop(directory.uri, None):
        give_back()


def _take(directory: RunDirectory, rhythm: Rhythm) -> Callable[[], None]:
    if not directory.is_local:
        return _Beats(directory, rhythm).close
    try:
        return _lock(directory)
    except OSError as error:
        logger.warning(
            "%s cannot be locked (%s); another driver there is noticed within seconds only", directory.uri, error
        )
        return _Beats(directory, rhythm).close


def _lock(directory: RunDirectory) -> Callable[[], None]:
    """Locks a run's directory, and for a trial its sweep's, which several trials may share."""
    with contextlib.ExitStack() as locks:
        if directory.parent.exists(SWEEP_FILE):
            locks.callback(lock(directory.parent.path(""), shared=True))
        path = directory.path("")
        while True:
            os.makedirs(path, exist_ok=True)
            # Whoever had it last removes a folder in which there is nothing.
            with contextlib.suppress(FileNotFoundError):
                unlock = lock(path)
                break
        locks.callback(_remove_if_empty, path)
        locks.callback(unlock)
        return locks.pop_all().close


def _remove_if_empty(path: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(path)


class _Beats:
    """A file that says that its driver lives, by what is new in it every ten seconds, in a thread of its own."""

    def __init__(self, directory: RunDirectory, rhythm: Rhythm) -> None:
        """Raises LockedError where another driver lives."""
        self._directory, self._rhythm = directory, rhythm
        self._who = holder() | {"machine": _machine(), "key": uuid.uuid4().hex}
        self._wait_for_the_other()
        self._write(0)
        time.sleep(self._rhythm.settle)
        if (found := self._read()) is not None and not self._is_own(found):
            raise LockedError(describe(found))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Says that the driver is gone."""
        self._over.set()
        self._thread.join(_SECONDS_TO_CLOSE)
        with contextlib.suppress(OSError):
            if (found := self._read()) is not None and self._is_own(found):
                self._directory.delete(FILE)

    def _wait_for_the_other(self) -> None:
        first, deadline = self._read(), time.monotonic() + self._rhythm.dead
        if first is None or _is_dead(first):
            return
        logger.info("waiting up to %.0f s for a sign of life of %s", self._rhythm.dead, describe(first))
        while time.monotonic() < deadline:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            found = self._read()
            if found is None:
                return
            if found != first:
                raise LockedError(describe(found))

    def _beat(self) -> None:
        beat, is_alone = 0, True
        while not self._over.wait(self._rhythm.beat):
            beat += 1
            try:
                found = self._read()
                if found is None or self._is_own(found):
                    self._write(beat)
                elif is_alone:
                    is_alone = False
                    logger.error("%s is worked on by %s too; stop one of them", self._directory.uri, describe(found))
            except OSError as error:
                logger.debug("%s cannot be written: %s", self._directory.child(FILE), error)

    def _read(self) -> bytes | None:
        try:
            return self._directory.read(FILE)
        except FileNotFoundError:
            return None

    def _write(self, beat: int) -> None:
        self._directory.write(FILE, json.dumps(self._who | {"beat": beat}).encode())

    def _is_own(self, content: bytes) -> bool:
        return _parsed(content).get("key") == self._who["key"]


def _is_dead(content: bytes) -> bool:
    """Whether a lock is of a process of this machine that is no more."""
    known = _parsed(content)
    return known.get("machine") == _machine() and not psutil.pid_exists(known["pid"])


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        known = json.loads(content)
    except ValueError:
        return {}
    return known if isinstance(known, dict) else {}


@functools.cache
def _machine() -> str:
    """What tells this machine since its start, and the processes that this one sees there, from others."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex
