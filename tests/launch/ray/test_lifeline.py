"""The end of what a process lives by. Oracle: a SIGKILL of a real process, told by exit code, time and standard error.

`test_cluster` has it with Ray's own processes.
"""

import subprocess
import sys
import time

import pytest

_PROGRAM = """
import os, subprocess, sys, tempfile, threading, time
import psutil
from dist_resnet import logs
from dist_resnet.launch.failures import RayEndedError
from dist_resnet.launch.ray import lifeline
from dist_resnet.launch.ray import internals

logs.configure()
other = subprocess.Popen(["sleep", "100"])
internals.essential_processes = lambda: [psutil.Process(other.pid)] if "with" in sys.argv else []
os.environ["RAY_gcs_rpc_server_reconnect_timeout_s"] = "4"
lifeline._SECONDS_BETWEEN_LOOKS, lifeline._SECONDS_TO_END = 0.2, 5.0
folder = tempfile.mkdtemp()
if "folder" in sys.argv:
    internals.sockets_folder = lambda: folder
line = lifeline.Lifeline("127.0.0.1:1")
os.rmdir(folder)

def hold(call):
    try:
        return line.hold(call)
    except RayEndedError:
        sys.exit(1)

def end():
    other.kill()
    raise RuntimeError("what Ray says of it")

if "closed" in sys.argv:
    line.close()
    other.kill()
    time.sleep(1)
    print(hold(lambda: 42), flush=True)
elif "returns" in sys.argv:
    print(hold(lambda: 42), flush=True)
    other.kill()
    time.sleep(1)
elif "folder" in sys.argv:
    print(hold(lambda: time.sleep(1) or 42), flush=True)
    line.close()
    other.kill()
elif "again" in sys.argv:
    hold(lambda: 42)
    other.kill()
    time.sleep(1)
    hold(lambda: time.sleep(60))
elif "raises" in sys.argv:
    hold(end)
else:
    threading.Timer(0.5, other.kill).start()
    try:
        hold(lambda: time.sleep(60)) if "held" in sys.argv else time.sleep(60)
    finally:
        print("in order", flush=True)
"""


@pytest.mark.parametrize(
    ("how", "what_went"),
    [
        ("with held", "its sleep, process "),
        ("with raises", "its sleep, process "),
        ("with again", "its sleep, process "),
        ("held", "head at 127.0.0.1:1 has not"),
    ],
)
def test_a_process_ends_in_order_and_with_one_line(how: str, what_went: str):
    began = time.monotonic()
    told = _run(*how.split())
    assert told.returncode == 1
    assert time.monotonic() - began < 30
    (line,) = told.stderr.splitlines()
    assert what_went in line
    assert "the same command continues" in line
    assert told.stdout == ("in order\n" if how.endswith("held") else "")


def test_a_process_that_holds_nothing_is_ended_at_once():
    told = _run("with")
    assert told.returncode == 1
    assert told.stdout == ""
    assert told.stderr.count("the same command continues") == 1


def test_a_folder_of_rays_that_is_gone_is_said_once_and_what_has_begun_goes_on():
    told = _run("with", "folder")
    assert (told.returncode, told.stdout) == (0, "42\n")
    (line,) = told.stderr.splitlines()
    assert "is gone, as a cleaner of temporary files may have it: no worker can start from now on; stop and" in line


_PARENTS = """
import ctypes, subprocess, sys, threading, time
from dist_resnet.launch.ray import lifeline

def die_with_parent():
    ctypes.CDLL(None).prctl(1, 9)

def start():
    children.append(start_with(lambda: subprocess.Popen(["sleep", "100"], preexec_fn=die_with_parent)))

children, start_with = [], lifeline.in_a_lasting_thread if "lasting" in sys.argv else lambda call: call()
thread = threading.Thread(target=start)
thread.start()
thread.join()
start()
time.sleep(1)
print([child.poll() for child in children])
for child in children:
    child.kill()
"""


def test_what_a_thread_starts_that_ends_goes_on():
    """As Ray's processes are, those of the test are told to end with the thread that started them."""
    told = [
        subprocess.run([sys.executable, "-c", _PARENTS, *how], capture_output=True, text=True, timeout=100)
        for how in ([], ["lasting"])
    ]
    assert [one.stdout for one in told] == ["[-9, None]\n", "[None, None]\n"], told


@pytest.mark.parametrize("how", ["with returns", "with closed", "returns"])
def test_what_ends_after_it_was_left_is_not_told(how: str):
    told = _run(*how.split())
    assert (told.returncode, told.stdout, told.stderr) == (0, "42\n", "")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", _PROGRAM, *arguments], capture_output=True, text=True, timeout=100)
