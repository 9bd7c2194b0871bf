"""Who is named as a straggler. Oracles: seconds written by hand; and real runs of three processes, one of which is
stopped and continued by signals, or gets its images late."""

import dataclasses
import functools
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from dist_resnet.data.input.decoders import InputOptions
from dist_resnet.data.loader import EvaluationImages, TrainingImages
from dist_resnet.launch import local
from dist_resnet.launch.plan import Plan, prepare
from dist_resnet.recipe import Checkpoints, Execution, Recipe
from dist_resnet.tracking import stop
from dist_resnet.tracking.journal import Tail
from dist_resnet.tracking.records import Straggler, WorkerSeconds
from dist_resnet.tracking.run_directory import RunDirectory
from dist_resnet.train.agreement import Intervals
from dist_resnet.train.context import RunContext
from dist_resnet.train.loop import train
from dist_resnet.train.straggler import StragglerWatch
from dist_resnet.train.watchdog import Watchdog
from dist_resnet.worker import Worker

MACHINES = ("host-a", "host-a", "host-b")


class _Run:
    """Windows of ten steps, of which the watch hears one after another."""

    def __init__(self, machines: Sequence[str] = MACHINES, work: Sequence[int] | None = None) -> None:
        self._watch, self._step = StragglerWatch(machines, work or [1] * len(machines), seconds=10.0), 0

    def __call__(self, *own: tuple[float, float], windows: int = 1) -> list[str]:
        """What is found in windows in which each rank waits for images and computes for these seconds a step."""
        longest = max(map(sum, own))
        found = []
        for _ in range(windows):
            self._step += 10
            block = WorkerSeconds(
                step=self._step,
                steps=10,
                data_seconds=[10 * data for data, _ in own],
                compute_seconds=[10 * compute for _, compute in own],
                reduce_seconds=[10 * (longest - sum(each)) for each in own],
            )
            found.append(self._watch.add(block))
        return [str(each) for each in found if each is not None]


def test_a_worker_that_computes_longer_is_named_once_and_its_end_is_said_once():
    run = _Run()
    assert run((0, 1), (0, 1), (0, 2), windows=2) == []
    assert run((0, 1), (0, 1), (0, 2), windows=20) == [
        "rank 2 on host-b holds the run back by 50%: it computes for 2 s a step, the others for 1 s"
    ]
    assert run((0, 1), (0, 1), (0, 1), windows=2) == []
    assert run((0, 1), (0, 1), (0, 1), windows=20) == ["rank 2 on host-b no longer holds the run back"]


def test_a_worker_whose_images_come_late_is_named_as_such():
    (line,) = _Run()((0.01, 1), (0.81, 1), (0.01, 1.05), windows=3)
    assert line == (
        "rank 1 on host-a holds the run back by 43%: it waits for images for 0.81 s a step, the others for 0.01 s"
    )


@pytest.mark.parametrize("slow", [(0, 1.1), (0, 1.0), (0.05, 1.05)])
def test_nobody_is_named_who_costs_a_tenth_or_less(slow):
    assert _Run()((0, 1), (0, 1), slow, windows=50) == []


def test_slow_steps_now_and_then_and_different_slow_ranks_name_nobody():
    run = _Run()
    for _ in range(5):
        assert run((0, 1), (0, 1), (0, 9), windows=2) == []
        assert run((0, 1), (0, 1), (0, 1)) == []
    for _ in range(5):
        assert run((0, 1), (0, 2), (0, 1)) == []
        assert run((0, 2), (0, 1), (0, 1)) == []


def test_when_another_rank_is_the_slowest_it_is_named_instead():
    run = _Run()
    run((0, 1), (0, 1), (0, 2), windows=5)
    assert [line[:6] for line in run((0, 3), (0, 1), (0, 2), windows=10)] == ["rank 0"]
    assert [line[:6] for line in run((0, 1), (0, 1), (0, 2), windows=10)] == ["rank 2"]


def test_a_named_rank_around_the_limit_fills_no_log():
    run = _Run()
    run((0, 1), (0, 1), (0, 1.2), windows=5)
    for _ in range(10):
        assert run((0, 1), (0, 1), (0, 1.09), windows=3) == []
        assert run((0, 1), (0, 1), (0, 1.13), windows=3) == []


def test_two_workers_are_compared_with_each_other_and_one_with_nobody():
    (line,) = _Run(("a", "b"))((0, 2), (0, 1), windows=3)
    assert line.startswith("rank 0 on a holds the run back by 50%")
    assert _Run(("a",))((0, 2), windows=30) == []


def test_a_worker_with_more_ghost_batches_may_take_longer_in_proportion():
    run = _Run(work=[2, 1, 1])
    assert run((0.2, 2), (0.1, 1), (0.1, 1), windows=10) == []
    # The other that is slow costs nothing, as long as the first one has more to do.
    assert run((0.2, 2), (0.1, 1), (0.1, 1.5), windows=10) == []
    assert run((0.2, 3), (0.1, 1), (0.1, 1), windows=10) == [
        "rank 0 on host-a holds the run back by 31%: it computes for 3 s a step, the others for 2 s"
    ]


def test_blocks_of_few_steps_or_seconds_are_added_up():
    watch = StragglerWatch(MACHINES, [1, 1, 1], seconds=10.0)
    found = [
        watch.add(
            WorkerSeconds(
                step=step,
                steps=1,
                data_seconds=[0.0] * 3,
                compute_seconds=[0.1, 0.1, 0.25],
                reduce_seconds=[0.15, 0.15, 0.0],
            )
        )
        for step in range(1, 201)
    ]
    (finding,) = [each for each in found if each is not None]
    # Windows of 40 steps of 0.25 s.
    assert finding.step == 120
    assert (finding.rank, finding.machine, finding.reason) == (2, "host-b", "computing")
    assert finding.fraction == pytest.approx(0.6)
    assert (finding.seconds_per_step, finding.others_seconds_per_step) == (pytest.approx(0.25), pytest.approx(0.1))
    assert isinstance(finding, Straggler)


_SECONDS_COMPARED = 1.5
_SECONDS_FOR_A_FINDING = 240.0


def _train(plan: Plan, folder: Path, worker: Worker) -> None:
    """Trains until it is stopped. While the file `late` exists, rank 1 gets its images 0.1 s late."""
    torch.set_num_threads(1)
    options = InputOptions.of(plan.execution)
    training = TrainingImages(plan.recipe, plan.train, worker, options)
    validation = EvaluationImages(plan.recipe, plan.validation, worker, options)
    whole = training.epoch

    def late(epoch: int, start_step: int = 0):
        for batches in whole(epoch, start_step):
            time.sleep(0.1 * (worker.rank == 1 and (folder / "late").exists()))
            yield batches

    training.epoch = late
    (folder / f"pid-{worker.rank}").write_text(str(os.getpid()))
    context = RunContext(
        recipe=plan.recipe,
        execution=plan.execution,
        worker=worker,
        directory=plan.directory,
        watchdog=Watchdog(plan.execution.recovery.hang_seconds),
        intervals=Intervals(comparisons=_SECONDS_COMPARED),
    )
    train(context, training, validation)


class _stuttering:  # noqa: N801
    """Within the block a process is stopped for four fifths of each 0.25 s."""

    def __init__(self, pid: int) -> None:
        self._pid, self._over = pid, threading.Event()
        self._thread = threading.Thread(target=self._stutter, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _stutter(self) -> None:
        while not self._over.is_set():
            os.kill(self._pid, signal.SIGSTOP)
            time.sleep(0.2)
            os.kill(self._pid, signal.SIGCONT)
            time.sleep(0.05)


class _Watched:
    """A run's journal, read as it grows."""

    def __init__(self, directory: RunDirectory) -> None:
        self._tail = Tail(directory)
        self.seconds: list[WorkerSeconds] = []
        """Since the last finding, or what was waited for before."""

    def finding(self, windows: float = math.inf) -> Straggler | None:
        """The next finding; None if there is none in so many windows of steps."""
        until = time.monotonic() + _SECONDS_FOR_A_FINDING
        self.seconds.clear()
        while self._compared() < windows * _SECONDS_COMPARED:
            assert time.monotonic() < until, "nothing was found in time"
            for record in self._tail.poll():
                if isinstance(record, Straggler):
                    return record
                self.seconds += [record] if isinstance(record, WorkerSeconds) else []
            time.sleep(0.1)
        return None

    def _compared(self) -> float:
        """Seconds of the steps since the last finding."""
        return sum(each.data_seconds[0] + each.compute_seconds[0] + each.reduce_seconds[0] for each in self.seconds)


@pytest.mark.slow
@pytest.mark.chaos  # it compares times, so nothing else may run
def test_of_three_workers_the_one_stopped_by_signals_and_the_one_with_late_images_are_named(
    recipe: Recipe, execution: Execution, tmp_path: Path
):
    recipe = dataclasses.replace(
        recipe,
        global_batch=24,
        epochs=100_000,
        evaluation=dataclasses.replace(recipe.evaluation, every_epochs=100_000),
    )
    execution = dataclasses.replace(execution, workers=3, log_every=5, checkpoints=Checkpoints(every=10**9))
    plan = prepare(recipe, execution, job="test")
    plan.claim()
    runs = threading.Thread(
        target=local.in_processes, args=(execution, functools.partial(_train, plan, tmp_path)), daemon=True
    )
    runs.start()
    watched, machine = _Watched(plan.directory), socket.gethostname()
    try:
        assert watched.finding(windows=5) is None

        with _stuttering(int((tmp_path / "pid-2").read_text())):
            found = watched.finding()
        assert found is not None
        assert (found.rank, found.machine, found.reason) == (2, machine, "computing")
        assert (found.fraction or 0) > 0.3
        assert str(watched.finding()) == f"rank 2 on {machine} no longer holds the run back"

        (tmp_path / "late").touch()
        found = watched.finding()
        assert found is not None
        assert (found.rank, found.machine, found.reason) == (1, machine, "images")
        assert (found.seconds_per_step or 0) >= 0.1 > 0.02 > (found.others_seconds_per_step or 0)
        # The others wait in the sum of gradients for as long as it waits for its images.
        newest = watched.seconds[-1]
        assert newest.data_seconds[1] >= 0.1 * newest.steps
        assert min(newest.reduce_seconds[0], newest.reduce_seconds[2]) > 0.07 * newest.steps
        (tmp_path / "late").unlink()
        assert str(watched.finding()) == f"rank 1 on {machine} no longer holds the run back"
    finally:
        stop.request(plan.directory)
        runs.join(60)
    assert not runs.is_alive()
