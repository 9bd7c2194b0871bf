"""Locks on folders. Oracle: processes of their own that have them, are killed, or want them too."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dist_resnet.storage.lock import FILE, LockedError, lock

_HAVE = """
import signal, sys
from dist_resnet.storage.lock import lock
lock(sys.argv[1])
print('have', flush=True)
signal.pause()
"""


def _another(folder: Path) -> subprocess.Popen:
    other = subprocess.Popen([sys.executable, "-c", _HAVE, str(folder)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    with other.stdout as said:
        assert said.readline() == "have\n"
    return other


def test_another_process_is_named_until_it_is_killed(tmp_path: Path):
    other = _another(tmp_path)
    with pytest.raises(LockedError, match=rf"process {other.pid} on {socket.gethostname()}, since \d{{4}}-.* UTC"):
        lock(str(tmp_path))
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert (tmp_path / FILE).exists()
    lock(str(tmp_path))()
    assert not list(tmp_path.iterdir())


def test_what_was_unlocked_and_removed_in_between_is_locked_anew(tmp_path: Path, monkeypatch):
    unlock, real = lock(str(tmp_path)), fcntl.flock

    def after_the_other_has_ended(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        unlock()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", after_the_other_has_ended)
    mine = lock(str(tmp_path))
    with pytest.raises(LockedError):
        lock(str(tmp_path))
    mine()


def test_several_share_what_none_has_for_itself(tmp_path: Path):
    folder = str(tmp_path)
    first, second = lock(folder, shared=True), lock(folder, shared=True)
    first()
    with pytest.raises(LockedError):
        lock(folder)
    second()
    alone = lock(folder)
    with pytest.raises(LockedError):
        lock(folder, shared=True)
    alone()


def test_a_holder_that_could_not_say_who_it_is_holds_all_the_same(tmp_path: Path):
    unlock = lock(str(tmp_path))
    (tmp_path / FILE).write_bytes(b"")
    with pytest.raises(LockedError, match="^another process$"):
        lock(str(tmp_path))
    unlock()


def test_a_file_system_without_locks_says_so(tmp_path: Path, monkeypatch):
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(OSError, match="No locks available"):
        lock(str(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == before
    assert not list(tmp_path.iterdir())
