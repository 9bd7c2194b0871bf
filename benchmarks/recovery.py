"""How long a killed worker holds up a run: ours under Ray Train, and a plain script under torchrun.

    uv run benchmarks/recovery.py
    uv run benchmarks/recovery.py --rounds 5 --depth 56

Both train the same network on two workers of this machine with a checkpoint every few steps, and one worker is killed
by SIGKILL, in turn within each round. The time from the kill to the next optimizer step is split in: detection (until
the other worker is ended), start (until the new workers' training code begins), state (until the checkpoint is loaded
and the data is open) and first step.
"""

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import harness
import psutil

from dist_resnet.tracking.journal import read_journal
from dist_resnet.tracking.records import Metrics, Session
from dist_resnet.tracking.run_directory import RunDirectory

CONTESTANTS = Path(__file__).resolve().with_name("recovery_contestants.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3")
STEPS_BEFORE_THE_KILL = 25
SECONDS_TO_GO_ON = 120.0
PARTS = ("all, s", "detection", "start", "state", "first step", "steps repeated")


class Marks(NamedTuple):
    """When training code began, when its checkpoint and data were there, and (number, end) of each optimizer step."""

    started: Sequence[float]
    loaded: Sequence[float]
    steps: Sequence[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    depth: int = harness.sized(20, quick=8)
    rounds: int = harness.sized(3, quick=1)
    warm: float = harness.sized(90.0, quick=0.0)
    """Seconds that ours trains before the kill; it has its spare processes after a minute."""


def measure(options: Options) -> Iterator[str]:
    """Kills a worker of each in turn."""
    contestants = {
        "ours under Ray Train": lambda: killed("ours", (), _marks_of_ours, options, warm=options.warm),
        "a plain script under torchrun": lambda: killed("plain", TORCHRUN, _marks_of_plain, options, warm=0),
    }
    found = harness.interleaved(contestants, options.rounds)
    went_on = {name: [one for one in rounds if one] for name, rounds in found.items()}
    yield from harness.comparison(went_on, dict.fromkeys(PARTS, ".1f"))
    yield f"\nDid not go on: {sum(map(len, found.values())) - sum(map(len, went_on.values()))}."


def killed(
    role: str, launcher: Sequence[str], marks: Callable[[Path], Marks], options: Options, *, warm: float
) -> tuple[float, ...]:
    """What the kill of a worker costs a run of its own, as `PARTS` has it; nothing if the run does not go on."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "log").open("wb") as log:
            command = [sys.executable, *launcher, str(CONTESTANTS), role, str(folder), str(options.depth)]
            driver = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait(lambda: len(marks(folder).steps) >= STEPS_BEFORE_THE_KILL)
            time.sleep(warm)
            return _recovery(lambda: marks(folder), _workers(driver.pid, role))
        except TimeoutError:
            print(f"{role} did not go on: {(folder / 'log').read_text()[-300:]}", file=sys.stderr, flush=True)
            return ()
        finally:
            for process in [*psutil.Process(driver.pid).children(recursive=True), driver]:
                process.kill()
            driver.wait()


def _recovery(marks: Callable[[], Marks], workers: list[psutil.Process]) -> tuple[float, ...]:
    kill = time.time()
    workers[1].kill()
    psutil.wait_procs(workers, timeout=SECONDS_TO_GO_ON)
    detected = time.time()
    _wait(lambda: any(at > detected for _, at in marks().steps))
    after = marks()
    # The same session counts in both: one start before the kill and one after.
    started, loaded = after.started[-1], after.loaded[-1]
    first_step, stepped = next((step, at) for step, at in after.steps if at > loaded)
    last_before = max(step for step, at in after.steps if at <= kill)
    times = (kill, detected, started, loaded, stepped)
    return stepped - kill, *(end - start for start, end in itertools.pairwise(times)), last_before - first_step + 1


def _marks_of_plain(folder: Path) -> Marks:
    file = folder / "marks.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    starts = [line for line in lines if "started" in line]
    steps = [(line["step"], line["at"]) for line in lines if "step" in line]
    return Marks([line["started"] for line in starts], [line["loaded"] for line in starts], steps)


def _marks_of_ours(folder: Path) -> Marks:
    records = read_journal(RunDirectory(str(folder / "run"))) if (folder / "run").exists() else []
    sessions = [record for record in records if isinstance(record, Session)]
    steps = [(record.step, record.time) for record in records if isinstance(record, Metrics) and record.is_step]
    return Marks([session.begun or session.time for session in sessions], [session.time for session in sessions], steps)


def _workers(driver: int, role: str) -> list[psutil.Process]:
    """The two processes that train."""
    wanted = "ray::RayTrainWorker" if role == "ours" else f"{CONTESTANTS} {role}"
    below = psutil.Process(driver).children(recursive=True)
    found = [process for process in below if wanted in " ".join(process.cmdline())]
    assert len(found) == 2, f"two workers were expected, found {found}"
    return found


def _wait(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS_TO_GO_ON
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


if __name__ == "__main__":
    harness.main(measure, Options, __doc__)
