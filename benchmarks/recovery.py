"""How long a killed worker holds up a run: ours under Ray Train, and a plain script under torchrun.

    uv run benchmarks/recovery.py
    uv run benchmarks/recovery.py --rounds 5 --depth 56

Both train the same network on two workers of this machine with a checkpoint every few steps, and one worker is killed
by SIGKILL, in turn within each round. The time from the kill to the next optimizer step is split in: detection (till
the other worker is ended), start (till the new workers' training code begins), state (till the checkpoint is loaded and
the data is open) and first step.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
import torch.nn.functional as F

from dist_resnet.data.prepare.demo import write_demo
from dist_resnet.model import build_model
from dist_resnet.recipe import Augment, Checkpoints, Data, Evaluation, Execution, Model, Recipe
from dist_resnet.tracking.journal import read_journal
from dist_resnet.tracking.records import Metrics, Session
from dist_resnet.tracking.run_directory import RunDirectory

_CHECKPOINT_EVERY = 10
_STEPS_BEFORE_THE_KILL = 25
# Ours has its spare processes after a minute.
_SECONDS_BEFORE_THE_KILL = 90
_SECONDS_TO_GO_ON = 120.0
_PARTS = ("detection", "start", "state", "first step")


def main() -> None:
    """Measures and prints; with --plain it is one of torchrun's workers, with --ours our driver."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--warm", type=float, default=_SECONDS_BEFORE_THE_KILL, help="seconds a run lives before a kill"
    )
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        train_plainly(options.plain, options.depth)
    elif options.ours:
        train_ours(options.ours, options.depth)
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Kills a worker of each in turn and prints what it cost."""
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores, {vars(options)}")
    contestants: dict[str, Callable[[Path], tuple]] = {
        "ours under Ray Train": lambda folder: measure(folder, "--ours", options, [sys.executable]),
        "plain under torchrun": lambda folder: measure(folder, "--plain", options, _torchrun()),
    }
    found: dict[str, list[list[float]]] = {name: [] for name in contestants}
    for number in range(options.rounds):
        for name, contestant in contestants.items():
            with tempfile.TemporaryDirectory() as folder:
                try:
                    times, repeated = contestant(Path(folder))
                except TimeoutError as error:
                    print(f"round {number} {name}: did not go on within {_SECONDS_TO_GO_ON:.0f} s: {error}", flush=True)
                    continue
            found[name].append(times)
            parts = ", ".join(f"{part} {value:.1f}" for part, value in zip(_PARTS, times, strict=True))
            print(f"round {number} {name}: {sum(times):.1f} s ({parts}), {repeated} steps repeated", flush=True)
    for name, rounds in ((name, rounds) for name, rounds in found.items() if rounds):
        medians = [statistics.median(values) for values in zip(*rounds, strict=True)]
        parts = ", ".join(f"{part} {value:.1f}" for part, value in zip(_PARTS, medians, strict=True))
        print(f"{name}: {statistics.median(map(sum, rounds)):.1f} s in the median ({parts})")


def measure(folder: Path, role: str, options: argparse.Namespace, launcher: list[str]) -> tuple[list[float], int]:
    """The four parts in seconds, and the steps that were done twice."""
    own, marks = str(Path(__file__).resolve()), _marks_of_ours if role == "--ours" else _marks_of_plain
    with (folder / "log").open("wb") as log:
        command = [*launcher, own, role, str(folder), "--depth", str(options.depth)]
        driver = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait(lambda: len(marks(folder)["steps"]) >= _STEPS_BEFORE_THE_KILL, folder)
        if role == "--ours":
            time.sleep(options.warm)
        workers = _workers(driver.pid, role)
        killed = time.time()
        workers[1].kill()
        psutil.wait_procs(workers, timeout=_SECONDS_TO_GO_ON)
        detected = time.time()
        # The same session count in both: one start before the kill and one after.
        _wait(lambda: any(at > detected for _, at in marks(folder)["steps"]), folder)
        after = marks(folder)
        begun, loaded = after["begun"][-1], after["loaded"][-1]
        first_step, stepped = next((step, at) for step, at in after["steps"] if at > loaded)
        last_before = max(step for step, at in after["steps"] if at <= killed)
        return [detected - killed, begun - detected, loaded - begun, stepped - loaded], last_before - first_step + 1
    finally:
        for process in [*psutil.Process(driver.pid).children(recursive=True), driver]:
            process.kill()
        driver.wait()


def train_ours(folder: Path, depth: int) -> None:
    """A long run of ours on two workers."""
    from dist_resnet.launch.ray import train as ray_train

    train, validation = write_demo(
        str(folder / "pictures"), size=32, num_classes=10, train_images=1280, validation_images=40, seed=0
    )
    recipe = Recipe(
        model=Model(depth=depth, num_classes=10),
        data=Data(train=train, validation=validation, dataset="cifar10"),
        augment=Augment(kind="pad", size=32),
        evaluation=Evaluation(crops=(32,), shorter_sides=(32,), every_epochs=1000),
        epochs=1000,
        global_batch=128,
        ghost_batch=64,
    )
    execution = Execution(
        workers=2,
        cpus_per_worker=1,
        storage=str(folder),
        name="run",
        log_every=1,
        checkpoints=Checkpoints(every=_CHECKPOINT_EVERY),
    )
    ray_train.run(ray_train.prepare_run(recipe, execution, job="recovery"))


def train_plainly(folder: Path, depth: int) -> None:
    """What one writes by hand: DDP, a checkpoint of rank 0 every few steps, resumed after a restart."""
    dist.init_process_group("gloo")
    begun = time.time()
    rank = dist.get_rank()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.parallel.DistributedDataParallel(build_model(Model(depth=depth, num_classes=10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    step, file = 0, folder / "checkpoint.pt"
    if file.exists():
        state = torch.load(file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    _mark(folder, rank, begun=begun, loaded=time.time())
    while True:
        images, labels = torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        _mark(folder, rank, step=step, at=time.time())
        if rank == 0 and step % _CHECKPOINT_EVERY == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state, folder / "partial.pt")
            os.replace(folder / "partial.pt", file)


def _mark(folder: Path, rank: int, **fields: float) -> None:
    if rank == 0:
        with (folder / "marks.jsonl").open("a") as file:
            file.write(json.dumps(fields) + "\n")


def _marks_of_plain(folder: Path) -> dict[str, list]:
    file = folder / "marks.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {
        "begun": [line["begun"] for line in lines if "begun" in line],
        "loaded": [line["loaded"] for line in lines if "begun" in line],
        "steps": [(line["step"], line["at"]) for line in lines if "step" in line],
    }


def _marks_of_ours(folder: Path) -> dict[str, list]:
    records = read_journal(RunDirectory(str(folder / "run"))) if (folder / "run").exists() else []
    sessions = [record for record in records if isinstance(record, Session)]
    return {
        "begun": [session.begun for session in sessions],
        "loaded": [session.time for session in sessions],
        "steps": [(record.step, record.time) for record in records if isinstance(record, Metrics) and record.is_step],
    }


def _workers(driver: int, role: str) -> list[psutil.Process]:
    """The two processes that train."""
    below = psutil.Process(driver).children(recursive=True)
    wanted = "ray::RayTrainWorker" if role == "--ours" else role
    found = [process for process in below if wanted in " ".join(process.cmdline())]
    assert len(found) == 2, f"two workers were expected, found {found}"
    return found


def _torchrun() -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"]


def _wait(what: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + _SECONDS_TO_GO_ON
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError((folder / "log").read_text()[-300:])
        time.sleep(0.02)


if __name__ == "__main__":
    main()
