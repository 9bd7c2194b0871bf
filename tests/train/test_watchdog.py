"""The watchdog. Oracle: the exit code of a hung process."""

import subprocess
import sys
import threading

import pyarrow.fs as pafs
import torch

from dist_resnet.launch.plan import prepare
from dist_resnet.launch.worker import run_worker
from dist_resnet.storage import ranges
from dist_resnet.train.watchdog import Watchdog
from dist_resnet.worker import Worker

# The sleeps are the thing under test: a worker that takes no step for so long.
_SCRIPT = """
import sys, time
from dist_resnet.train.watchdog import Watchdog
with Watchdog(2.0) as dog:
    for _ in range({steps}):
        dog.alive()
        time.sleep({pause})
{end}
"""


class FailingStore:
    """A local file system that acts as a remote one and fails a few times."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self._local = pafs.LocalFileSystem()

    def open_input_file(self, path: str) -> pafs.FileSystem:
        if self.failures:
            self.failures -= 1
            raise OSError("connection reset by peer")
        return self._local.open_input_file(path)


def _run(**parts: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", _SCRIPT.format(**parts)], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_hung_process_is_killed_and_its_stack_is_printed():
    done = _run(steps=1, pause=30, end="")
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "most recent call first" in done.stderr


def test_a_process_that_is_alive_is_not_killed():
    done = _run(steps=8, pause=0.5, end="time.sleep(2.5); print('here')")
    assert (done.returncode, done.stdout.strip()) == (0, "here")


def test_a_start_may_take_three_times_as_long_as_a_step():
    program = "import time; from dist_resnet.train.watchdog import Watchdog\nwith Watchdog(1.0): time.sleep({})"
    ends = [
        subprocess.run([sys.executable, "-c", program.format(seconds)], capture_output=True, check=False).returncode
        for seconds in (1.5, 30)
    ]
    assert ends == [0, 1]


def test_a_watchdog_does_nothing_after_its_block():
    done = _run(steps=1, pause=0.1, end="dog.alive(); time.sleep(2.5); print('here')")
    assert (done.returncode, done.stdout.strip()) == (0, "here")


def test_a_worker_is_alive_while_it_retries_its_images_storage(recipe, execution, monkeypatch):
    plan = prepare(recipe, execution, job="test")
    plan.claim()
    store, threads = FailingStore(failures=2), []
    monkeypatch.setattr(ranges, "open_uri", lambda uri: (store, uri))
    alive = Watchdog.alive

    def recorded(self: Watchdog, *, starting: bool = False) -> None:
        threads.append(threading.current_thread().name)
        alive(self, starting=starting)

    monkeypatch.setattr(Watchdog, "alive", recorded)
    run_worker(plan, Worker(rank=0, world_size=1, device=torch.device("cpu")))
    assert store.failures == 0
    assert any(name.startswith("dist_resnet-read") for name in threads)
