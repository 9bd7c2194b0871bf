"""cluster/slurm/train.sbatch run for real. Oracle: the run's own journal, and that nothing of it is left.

Slurm's commands are stand-ins, its machines network namespaces; the Ray nodes, the job and its signals are real.
"""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster.hosts import Hosts, reason_against

from dist_resnet.tracking.journal import read_journal
from dist_resnet.tracking.records import Metrics, Record, Session, Stopped
from dist_resnet.tracking.run_directory import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.services, pytest.mark.ray, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "cluster" / "slurm" / "train.sbatch"
_SECONDS_FOR_A_CHANGE = 180.0

# srun runs a command on the machine that --nodelist names and ends what it has left running, as Slurm does with a step;
# scontrol expands a list and notes what is queued again.
_SRUN = """#!{python}
import contextlib, json, os, psutil, signal, subprocess, sys
split = next(i for i, word in enumerate(sys.argv[1:], 1) if not word.startswith("--"))
options, command = sys.argv[1:split], sys.argv[split:]
allowed = {{"--overlap", "--nodes=1", "--ntasks=1"}}
(machine,) = [word.removeprefix("--nodelist=") for word in options if word not in allowed]
step = str(os.getpid())
words = json.load(open({machines!r}))[machine] + command
running = subprocess.Popen(words, env=os.environ | {{"SLURM_STEP_ID": step}})
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: running.send_signal(number))
code = running.wait()
for process in psutil.process_iter():
    with contextlib.suppress(psutil.Error):
        if process.environ().get("SLURM_STEP_ID") == step:
            process.kill()
            process.wait()
sys.exit(code if code >= 0 else 128 - code)
"""
_SCONTROL = """#!{python}
import json, sys
if sys.argv[1:3] == ["show", "hostnames"] and sys.argv[3] == "n[1-2]":
    print("\\n".join(json.load(open({machines!r}))))
elif sys.argv[1] == "requeue":
    open({requeued!r}, "a").write(sys.argv[2] + "\\n")
else:
    sys.exit(f"scontrol: {{sys.argv}}")
"""


class _Slurm:
    """Two machines, n1 and n2, with replacements of Slurm's commands."""

    def __init__(self, hosts: Hosts, folder: Path, job: int) -> None:
        self._hosts, self._folder, self._job = hosts, folder, job
        self.ray_folder = Path(f"/tmp/ray-{job}")
        self.requeued = folder / "requeued"
        self._bin = folder / "bin"
        self._bin.mkdir()
        machines = folder / "machines.json"
        machines.write_text(json.dumps({f"n{host + 1}": hosts.entering(host, self.ray_folder) for host in range(2)}))
        values = {"python": sys.executable, "machines": str(machines), "requeued": str(self.requeued)}
        for name, text in (("srun", _SRUN), ("scontrol", _SCONTROL)):
            (self._bin / name).write_text(text.format(**values))
            (self._bin / name).chmod(stat.S_IRWXU)

    def batch(self, arguments: list[str], *, restarts: int = 0) -> subprocess.Popen:
        """Starts the script as Slurm does, from a copy, on the allocation's first machine."""
        copy = self._folder / "slurm_script"
        shutil.copy(SCRIPT, copy)
        given = {
            "SLURM_JOB_ID": str(self._job),
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_CPUS_PER_TASK": "1",
            "SLURM_RESTART_COUNT": str(restarts),
            "PATH": f"{self._bin}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        with self.log.open("ab") as log:
            return self._hosts.popen(0, ["bash", str(copy), *arguments], env=given, stdout=log, stderr=log, cwd=ROOT)

    @property
    def log(self) -> Path:
        return self._folder / "batch.log"


@pytest.fixture
def slurm() -> Iterator[_Slurm]:
    reason = reason_against()
    if reason:
        pytest.skip(reason)
    folder = Path("/tmp") / f"dr{os.getpid()}"
    with Hosts(2, folder, ["n1", "n2"]) as hosts:
        made = _Slurm(hosts, folder, job=os.getpid())
        yield made
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(made.ray_folder, ignore_errors=True)


def test_a_preempted_job_saves_a_checkpoint_is_queued_again_and_resumes(slurm: _Slurm, tmp_path: Path):
    run = tmp_path / "runs" / "run"
    job = ["python", "jobs/cifar_preact164.py", "--demo", "--model.depth", "8", "--execution.device", "cpu"]
    job += ["--execution.workers", "2", "--execution.cpus-per-worker", "1", "--execution.checkpoints.every", "10000"]
    job += ["--execution.storage", str(tmp_path / "runs"), "--execution.name", "run", "--epochs", "40"]
    job += ["--evaluation.every-epochs", "40", "--execution.tracking.no-register"]

    batch = slurm.batch(job)
    try:
        _wait_until(lambda: _step(run) >= 10, batch, slurm)
        os.kill(batch.pid, signal.SIGTERM)
        assert batch.wait(timeout=120) == 0, slurm.log.read_text()[-3000:]
    finally:
        batch.kill()
    assert isinstance(_records(run)[-1], Stopped)
    reached = _step(run)
    assert 10 <= reached < 1200
    assert slurm.requeued.read_text().split() == [str(os.getpid())]
    _assert_nothing_is_left(slurm)

    batch = slurm.batch(job, restarts=1)
    try:
        assert batch.wait(timeout=400) == 0, slurm.log.read_text()[-3000:]
    finally:
        batch.kill()
    _assert_nothing_is_left(slurm)
    sessions = [record for record in _records(run) if isinstance(record, Session)]
    assert [session.world_size for session in sessions] == [2, 2]
    assert sessions[-1].start_step == reached
    assert json.loads((run / "summary.json").read_text())["steps"] == 1200
    assert slurm.requeued.read_text().split() == [str(os.getpid())]
    text = slurm.log.read_text()
    assert "2 machines; Ray at 10.77.0.1:" in text
    assert not re.search(r"[0-9a-f]{64}", text)


def test_a_script_without_a_job_says_so():
    environment = os.environ | {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "1"}
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert "no job given" in done.stderr


def _records(run: Path) -> list[Record]:
    return read_journal(RunDirectory(str(run))) if run.exists() else []


def _step(run: Path) -> int:
    return max((record.step for record in _records(run) if isinstance(record, Metrics)), default=0)


def _wait_until(what: Callable[[], bool], batch: subprocess.Popen, slurm: _Slurm) -> None:
    deadline = time.monotonic() + _SECONDS_FOR_A_CHANGE
    while not what():
        assert batch.poll() is None, slurm.log.read_text()[-3000:]
        assert time.monotonic() < deadline, slurm.log.read_text()[-3000:]
        time.sleep(0.2)


def _assert_nothing_is_left(slurm: _Slurm) -> None:
    """No process on the machines, no file in Ray's folder of either."""
    for host in range(2):
        assert not slurm._hosts.processes(host)
        assert not list((slurm._folder / f"host{host}").iterdir())
