"""Jobs on a machine with other Ray clusters, and when one ends. Oracle: `ray start`, `ray job submit`, a SIGKILL."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

_JOBS = Path(__file__).parents[3] / "jobs"
_RAY = str(Path(sys.executable).parent / "ray")
_RUN = ("cifar_preact164.py", "--demo", "--epochs", "2000")
_SWEEP = ("cifar_ablation.py", "--demo", "--iterations", "20000")
# The ports of `ray start --head`.
_FIXED_PORTS = (6379, 8265, 10001, 52365)

# On a busy machine a job's workers start only after minutes.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a short name, for Ray's sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _environment(place: Path, **variables: str) -> dict[str, str]:
    """An environment in which Ray's files, token and clusters are in `place`."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_A", "RAY_TMP", "TMPDIR"))
    }
    return inherited | {"HOME": str(place), "RAY_TMPDIR": str(place)} | variables


@contextlib.contextmanager
def _started(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen]:
    """A process that writes to a file; at the block's end it is killed with all that it started."""
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT, cwd=log.parent)
    try:
        yield process
    finally:
        if process.poll() is None:
            for member in [*psutil.Process(process.pid).children(recursive=True), process]:
                with contextlib.suppress(psutil.Error):
                    member.kill()
            process.wait()


def _job(place: Path, job: tuple[str, ...], **variables: str) -> contextlib.AbstractContextManager[subprocess.Popen]:
    name, *options = job
    command = [sys.executable, str(_JOBS / name), *options, "--execution.storage", str(place / "runs")]
    return _started(command, _environment(place, **variables), place / "job.log")


def _head(place: Path, **variables: str) -> contextlib.AbstractContextManager[subprocess.Popen]:
    command = [_RAY, "start", "--head", "--block", "--num-cpus=2"]
    return _started(command, _environment(place, **variables), place / "head.log")


def _until(place: Path, text: str, log: str = "job.log", seconds: float = 100.0) -> str:
    """The log, as soon as it contains the text."""
    deadline = time.monotonic() + seconds
    while text not in (found := (place / log).read_text() if (place / log).exists() else ""):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def _trains(place: Path) -> None:
    """Waits until the workers of a run or a trial have started."""
    deadline = time.monotonic() + 240
    while not any('"session"' in journal.read_text() for journal in place.glob("runs/**/journal/*.jsonl")):
        assert time.monotonic() < deadline, (place / "job.log").read_text()
        time.sleep(0.1)


def _kill(name: str, above: subprocess.Popen) -> None:
    """Kills a process by its name among another's descendants, because others on the machine may run Ray too."""
    (found,) = [process for process in psutil.Process(above.pid).children(recursive=True) if process.name() == name]
    os.kill(found.pid, signal.SIGKILL)


def _taken() -> list[int]:
    with contextlib.ExitStack() as tries:
        taken = []
        for port in _FIXED_PORTS:
            knocking = tries.enter_context(socket.socket())
            taken += [port] if knocking.connect_ex(("127.0.0.1", port)) == 0 else []
        return taken


_FAILING = """
import sys
from dist_resnet import cli
from dist_resnet.launch.ray import cluster
from dist_resnet.launch.ray import shares as ray_shares

def fail(*_, **__):
    raise RuntimeError("of many lines\\nthe reason")

def do_nothing(*_, **__):
    return cluster

cluster.gcs_address = "127.0.0.1:1"
cluster.ray.init = fail if sys.argv[1] == "init" else do_nothing
cluster.ray.get_runtime_context = do_nothing
cluster.Lifeline = fail if sys.argv[1] == "lifeline" else do_nothing
cluster.ray.nodes = fail
if "program" in sys.argv:
    try:
        ray_shares.allot([], cluster.Execution())
    except RuntimeError as error:
        sys.exit(f"caught: {error}")
cli.run(lambda: ray_shares.allot([], cluster.Execution()))
"""


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("init", "Ray cannot start here"),
        *((part, "Ray started and then failed") for part in ("lifeline", "resources")),
    ],
)
def test_a_ray_that_fails_while_it_starts_prints_one_line(place: Path, part: str, said: str):
    command = [sys.executable, "-c", _FAILING, part]
    environment = _environment(place, RAY_ADDRESS="local")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1, done.stderr
    line = f"{said} (the reason); {place}/ray/session_latest/logs may say why; give the same command again"
    assert done.stderr.splitlines() == [f"-c: {line}"]
    done = subprocess.run([*command, "program"], env=environment, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (1, f"caught: {line}\n")


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize(("victim", "job"), [("raylet", _RUN), ("gcs_server", _SWEEP), ("raylet", _SWEEP)])
def test_a_job_whose_own_ray_dies_ends_with_one_line(place: Path, victim: str, job: tuple[str, ...]):
    with _job(place, job) as driver:
        _trains(place)
        _kill(victim, driver)
        assert driver.wait(timeout=60) == 1
    _assert_one_line(place, victim, job[0])


@pytest.mark.slow
@pytest.mark.chaos
def test_a_job_with_its_own_ray_and_a_cluster_share_a_machine(place: Path):
    if taken := _taken():
        pytest.skip(f"another cluster has ports {taken} of this machine")
    alone, shared = place / "a", place / "b"
    alone.mkdir()
    shared.mkdir()
    with _job(alone, _RUN) as driver:
        _trains(alone)
        assert not _taken()
        with _head(shared, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0123456789abcdef0123456789abcdef") as head:
            _until(shared, "Ray runtime started", "head.log")
            with_token = _environment(shared, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0123456789abcdef0123456789abcdef")
            submit = [_RAY, "job", "submit", "--address", "http://127.0.0.1:8265", "--", "python", "-c", "print(6 * 7)"]
            done = subprocess.run(submit, env=with_token, capture_output=True, text=True, timeout=100)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "\n42\n" in done.stdout
            _a_stranger_is_refused(shared)
            (shared / "job.log").unlink(missing_ok=True)
            with _job(shared, _RUN, RAY_AUTH_TOKEN="0123456789abcdef0123456789abcdef") as guest:
                _until(shared, "using the Ray cluster at ")
                _trains(shared)
                _kill("gcs_server", head)
                assert guest.wait(timeout=60) == 1
        _assert_one_line(shared, "gcs_server", _RUN[0])
        assert driver.poll() is None


def _a_stranger_is_refused(place: Path) -> None:
    for variables, fault in (({}, "it asks for a token"), ({"RAY_AUTH_TOKEN": "f" * 32}, "is not the cluster's")):
        with _job(place, _RUN, **variables) as stranger:
            assert stranger.wait(timeout=120) == 2
        lines = [line for line in (place / "job.log").read_text().splitlines() if "refuses this process" in line]
        assert len(lines) == 1
        assert fault in lines[0]
        assert "RAY_AUTH_TOKEN" in lines[0]
        assert not list(place.glob("runs/*/recipe.json"))


def _assert_one_line(place: Path, victim: str, name: str) -> None:
    log = (place / "job.log").read_text()
    lines = [line for line in log.splitlines() if "the same command continues" in line]
    assert len(lines) == 1, log
    assert victim in lines[0]
    assert f"the Ray that {name} uses has ended" in lines[0]
    assert "Traceback" not in log.partition(lines[0])[2]
