"""One driver at a time for a run, a sweep or a probe; a second one is refused while the first lives.

On a local or network disk the kernel locks the directory until the process ends. Object stores, and file systems
without locks, get an object named `lock` that its driver rewrites every ten seconds; a second driver waits to see
whether it still changes. If two drivers start there within two seconds, both may continue.
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
from typing import Any

import psutil

from dist_resnet.storage.lock import FILE, LockedError, describe, holder, lock
from dist_resnet.storage.machine import machine_id
from dist_resnet.tracking.run_directory import SWEEP_FILE, RunDirectory

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_CLOSE = 5.0


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """Seconds of the heartbeat that replaces the kernel's lock."""

    interval: float = 10.0
    """Between two beats."""
    timeout: float = 45.0
    """Without a beat, after which a driver counts as dead."""
    settle: float = 2.0
    """For another driver that found no lock either to write its own."""


# The function that unlocks each directory that this process holds.
_held: dict[str, Callable[[], None]] = {}


def hold(directory: RunDirectory, *, heartbeat: Heartbeat = Heartbeat()) -> None:
    """Makes this process the directory's driver until it ends, or calls `release`, or leaves `keeping`.

    Raises ValueError, naming the other driver, if there is one.
    """
    if directory.uri in _held:
        return
    try:
        _held[directory.uri] = _acquire(directory, heartbeat)
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


def _acquire(directory: RunDirectory, heartbeat: Heartbeat) -> Callable[[], None]:
    if not directory.is_local:
        return _HeartbeatLock(directory, heartbeat).close
    try:
        return _lock(directory)
    except OSError as error:
        logger.warning(
            "%s cannot be locked (%s); it takes seconds to notice a second driver there", directory.uri, error
        )
        return _HeartbeatLock(directory, heartbeat).close


def _lock(directory: RunDirectory) -> Callable[[], None]:
    """Locks a run's directory; for a trial also its sweep's, shared by all trials."""
    with contextlib.ExitStack() as locks:
        if directory.parent.exists(SWEEP_FILE):
            locks.callback(lock(directory.parent.path(""), shared=True))
        path = directory.path("")
        while True:
            os.makedirs(path, exist_ok=True)
            # The previous driver removes a folder that is empty.
            with contextlib.suppress(FileNotFoundError):
                unlock = lock(path)
                break
        locks.callback(_remove_if_empty, path)
        locks.callback(unlock)
        return locks.pop_all().close


def _remove_if_empty(path: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(path)


class _HeartbeatLock:
    """A lock file that a thread rewrites at every beat."""

    def __init__(self, directory: RunDirectory, heartbeat: Heartbeat) -> None:
        """Raises LockedError if another driver lives."""
        self._directory, self._heartbeat = directory, heartbeat
        self._who = holder() | {"machine": _process_space(), "key": uuid.uuid4().hex}
        self._wait_for_earlier_driver()
        self._write(0)
        time.sleep(self._heartbeat.settle)
        if (found := self._read()) is not None and not self._is_own(found):
            raise LockedError(describe(found))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops the heartbeat and removes the lock."""
        self._over.set()
        self._thread.join(_SECONDS_TO_CLOSE)
        with contextlib.suppress(OSError):
            if (found := self._read()) is not None and self._is_own(found):
                self._directory.delete(FILE)

    def _wait_for_earlier_driver(self) -> None:
        first, deadline = self._read(), time.monotonic() + self._heartbeat.timeout
        if first is None or _is_dead(first):
            return
        logger.info("waiting up to %.0f s to see whether %s is alive", self._heartbeat.timeout, describe(first))
        while time.monotonic() < deadline:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            found = self._read()
            if found is None:
                return
            if found != first:
                raise LockedError(describe(found))

    def _beat(self) -> None:
        beat, is_alone = 0, True
        while not self._over.wait(self._heartbeat.interval):
            beat += 1
            try:
                found = self._read()
                if found is None or self._is_own(found):
                    self._write(beat)
                elif is_alone:
                    is_alone = False
                    logger.error(
                        "%s is also being worked on by %s; stop one of them", self._directory.uri, describe(found)
                    )
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
    """Whether a lock belongs to a process of this machine that has ended."""
    known = _parsed(content)
    return known.get("machine") == _process_space() and not psutil.pid_exists(known["pid"])


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        known = json.loads(content)
    except ValueError:
        return {}
    return known if isinstance(known, dict) else {}


@functools.cache
def _process_space() -> str:
    """An identifier of this machine and of the process ids that are valid for this process: its PID namespace."""
    try:
        return f"{machine_id()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex
