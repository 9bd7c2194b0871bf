"""A process after its Ray has ended. Oracle: exit code, time and standard error after the SIGKILL of a real process.

`test_cluster` does this with Ray's own processes.
"""

import subprocess
import sys
import time

import pytest

_PROGRAM = """
import logging, os, subprocess, sys, tempfile, threading, time
import psutil
from dist_resnet import logs
from dist_resnet.launch.failures import RayEndedError
from dist_resnet.launch.ray import lifeline
from dist_resnet.launch.ray import internals

logs.configure()
other = subprocess.Popen(["sleep", "100"])
internals.essential_processes = lambda: [psutil.Process(other.pid)] if "with" in sys.argv else []
os.environ["RAY_gcs_rpc_server_reconnect_timeout_s"] = "4"
folder = tempfile.mkdtemp()
if "folder" in sys.argv:
    internals.sockets_folder = lambda: folder
logged = threading.Event()
logging.getLogger(lifeline.__name__).addFilter(lambda record: logged.set() or True)
line = lifeline.Lifeline("127.0.0.1:1", lifeline.Intervals(look=0.2, end=5.0))
os.rmdir(folder)

def hold(call):
    try:
        return line.hold(call)
    except RayEndedError:
        sys.exit(1)

def end():
    other.kill()
    raise RuntimeError("Ray's own message")

# Long enough for five checks, which must find nothing.
def wait():
    time.sleep(1)

if "closed" in sys.argv:
    line.close()
    other.kill()
    wait()
    print(hold(lambda: 42), flush=True)
elif "returns" in sys.argv:
    print(hold(lambda: 42), flush=True)
    other.kill()
    wait()
elif "folder" in sys.argv:
    print(hold(lambda: logged.wait(60) and 42), flush=True)
    line.close()
    other.kill()
elif "again" in sys.argv:
    hold(lambda: 42)
    other.kill()
    other.wait()
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
    ("how", "what_ended"),
    [
        ("with held", "its sleep, process "),
        ("with raises", "its sleep, process "),
        ("with again", "its sleep, process "),
        ("held", "head at 127.0.0.1:1 has not"),
    ],
)
def test_a_process_ends_in_order_and_with_one_line(how: str, what_ended: str):
    began = time.monotonic()
    done = _run(*how.split())
    assert done.returncode == 1
    assert time.monotonic() - began < 30
    (line,) = done.stderr.splitlines()
    assert what_ended in line
    assert "the same command continues" in line
    assert done.stdout == ("in order\n" if how.endswith("held") else "")


def test_a_process_that_holds_nothing_is_ended_at_once():
    done = _run("with")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("the same command continues") == 1


def test_a_deleted_folder_of_ray_is_logged_once_and_running_work_continues():
    done = _run("with", "folder")
    assert (done.returncode, done.stdout) == (0, "42\n")
    (line,) = done.stderr.splitlines()
    assert "was deleted, perhaps by a cleaner of temporary files: no worker can start from now on; stop and" in line


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
def test_an_end_after_ray_was_left_is_not_logged(how: str):
    done = _run(*how.split())
    assert (done.returncode, done.stdout, done.stderr) == (0, "42\n", "")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", _PROGRAM, *arguments], capture_output=True, text=True, timeout=100)
