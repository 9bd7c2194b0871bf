"""One driver for a run at a time. Oracle: drivers in their own processes, killed, and a real S3 server."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dist_resnet.tracking import holding
from dist_resnet.tracking.run_directory import RunDirectory

_DRIVER = """
import sys, time
from dist_resnet.tracking import holding
from dist_resnet.tracking.run_directory import RunDirectory
holding.hold(RunDirectory(sys.argv[1]), heartbeat=holding.Heartbeat(interval=0.2))
print("holds", flush=True)
time.sleep(99)
"""


_FAST = holding.Heartbeat(interval=0.2, timeout=3.0, settle=0.3)


def _driver(uri: str) -> subprocess.Popen:
    driver = subprocess.Popen([sys.executable, "-c", _DRIVER, uri], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    with driver.stdout as said:
        assert said.readline() == "holds\n"
    return driver


def _kill(driver: subprocess.Popen) -> None:
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()


def _directories(tmp_path: Path, s3: str) -> list[str]:
    return [str(tmp_path / "run"), (tmp_path / "other run").as_uri(), f"{s3}/holding/run"]


def test_a_second_driver_is_refused_naming_the_first_and_starts_once_that_is_killed(tmp_path: Path, s3: str):
    for uri in _directories(tmp_path, s3):
        driver, directory = _driver(uri), RunDirectory(uri)
        with pytest.raises(ValueError, match=f"being worked on by process {driver.pid} on .*, since .*; wait for it"):
            holding.hold(directory, heartbeat=_FAST)
        _kill(driver)
        began = time.monotonic()
        holding.hold(directory, heartbeat=_FAST)
        assert time.monotonic() - began < 2.5  # it is known to be dead: nothing is waited for
        holding.release(directory)
        assert not directory.exists("lock")


def test_a_dead_driver_of_another_machine_is_waited_for_until_the_timeout(s3: str):
    directory = RunDirectory(f"{s3}/holding/left")
    directory.write_json("lock", {"host": "gone", "pid": 1, "since": "then", "machine": "gone", "key": "a", "beat": 3})
    began = time.monotonic()
    holding.hold(directory, heartbeat=_FAST)
    assert 3.0 <= time.monotonic() - began < 10
    holding.release(directory)
    directory.write("lock", b"no json")
    holding.hold(directory, heartbeat=_FAST)
    holding.release(directory)


def test_of_two_drivers_at_the_same_moment_on_an_object_store_one_is_refused(s3: str, monkeypatch):
    directory, slept = RunDirectory(f"{s3}/holding/both"), time.sleep

    def meanwhile(seconds: float) -> None:
        slept(seconds)
        directory.write_json("lock", {"host": "other", "pid": 7, "since": "now", "key": "b", "beat": 0})

    monkeypatch.setattr(holding.time, "sleep", meanwhile)
    with pytest.raises(ValueError, match="being worked on by process 7 on other, since now"):
        holding.hold(directory, heartbeat=_FAST)
    kept = directory.read_json("lock")
    assert kept is not None
    assert kept["key"] == "b"


def test_a_driver_that_is_not_alone_logs_it_and_leaves_the_others_lock(s3: str, caplog):
    directory = RunDirectory(f"{s3}/holding/two")
    holding.hold(directory, heartbeat=_FAST)
    directory.write_json("lock", {"host": "other", "pid": 7, "since": "now", "key": "b", "beat": 0})
    deadline = time.monotonic() + 60
    while not caplog.records and time.monotonic() < deadline:
        time.sleep(0.05)
    holding.release(directory)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        f"{directory.uri} is also being worked on by process 7 on other, since now; stop one of them"
    ]
    assert directory.exists("lock")


def test_a_file_system_without_locks_is_logged_in_one_line(tmp_path: Path, monkeypatch, caplog):
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    directory = RunDirectory(str(tmp_path / "run"))
    holding.hold(directory, heartbeat=_FAST)
    assert len(caplog.messages) == 1
    assert "cannot be locked ([Errno 95] Operation not supported)" in caplog.text
    known = json.loads((tmp_path / "run" / "lock").read_text())
    assert known["pid"] == os.getpid()
    holding.release(directory)


def test_one_process_may_hold_a_run_twice_and_an_empty_folder_is_removed(tmp_path: Path):
    directory = RunDirectory(str(tmp_path / "run"))
    holding.hold(directory, heartbeat=_FAST)
    holding.hold(RunDirectory(str(tmp_path / "run")), heartbeat=_FAST)
    with pytest.raises(KeyError), holding.taking(directory):
        raise KeyError
    assert not (tmp_path / "run").exists()
    with holding.taking(directory):
        directory.write("recipe.json", b"{}")
    with holding.keeping(directory):
        assert (tmp_path / "run" / "lock").exists()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.json"]


def test_a_trial_may_run_next_to_other_trials_but_not_next_to_its_sweep(tmp_path: Path):
    sweep, trials = RunDirectory(str(tmp_path / "sweep")), [tmp_path / "sweep" / name for name in ("a", "b")]
    sweep.write_json("sweep.json", {})
    driver = _driver(sweep.uri)
    with pytest.raises(ValueError, match=f"sweep/a is being worked on by process {driver.pid}"):
        holding.hold(RunDirectory(str(trials[0])), heartbeat=_FAST)
    _kill(driver)
    drivers = [_driver(str(trial)) for trial in trials]
    with pytest.raises(ValueError, match="sweep is being worked on by process"):
        holding.hold(sweep, heartbeat=_FAST)
    for other in drivers:
        _kill(other)
    holding.hold(sweep, heartbeat=_FAST)
    holding.release(sweep)
