"""The watchdog. Oracle: the exit code of a process that stands still."""

import subprocess
import sys

_SCRIPT = """
import sys, time
from dist_resnet.train.watchdog import Watchdog
with Watchdog(2.0) as dog:
    for _ in range({steps}):
        dog.alive()
        time.sleep({pause})
{end}
"""


def _run(**parts: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", _SCRIPT.format(**parts)], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_process_that_stands_still_ends_and_says_where_it_stood():
    done = _run(steps=1, pause=30, end="")
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "most recent call first" in done.stderr


def test_a_process_that_is_alive_lives_on():
    done = _run(steps=8, pause=0.5, end="time.sleep(2.5); print('here')")
    assert (done.returncode, done.stdout.strip()) == (0, "here")
