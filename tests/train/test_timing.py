"""Seconds of each worker's steps. Oracle: a clock whose times are written by hand."""

import functools
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dist_resnet.launch import local
from dist_resnet.recipe import Execution
from dist_resnet.tracking.journal import read_journal
from dist_resnet.tracking.recorder import Recorder
from dist_resnet.tracking.records import WorkerSeconds
from dist_resnet.tracking.run_directory import RunDirectory
from dist_resnet.train.distributed import Gradients
from dist_resnet.train.timing import StepClock, WorkerTimes
from dist_resnet.worker import Worker

CPU = torch.device("cpu")


def test_a_step_is_split_into_images_computing_and_gradients_and_the_time_between_steps_is_left_out():
    times = iter([10.0, 11.0, 13.0, 16.0, 16.5, 100.0, 101.0, 102.0, 200.0])
    clock = StepClock(CPU, now=lambda: next(times))
    for _ in clock.waiting(iter("ab")):
        if clock._steps == 0:
            clock.gradients_done()
            clock.gradients_summed()
        clock.step_done()
    steps, seconds = clock.take()
    assert steps == 2
    assert seconds == [1.0 + 1.0, 2.0 + 0.5 + 1.0, 3.0]
    assert clock.take() == (0, [0.0, 0.0, 0.0])


def test_a_step_may_take_several_batches_one_after_another():
    times = iter([0.0, 1.0, 3.0, 6.0, 10.0, 100.0])
    clock = StepClock(CPU, now=lambda: next(times))
    batches = clock.waiting(iter("ab"))
    assert next(batches) + next(batches) == "ab"
    clock.step_done()
    assert list(batches) == []
    assert clock.take() == (1, [1.0 + 3.0, 2.0 + 4.0, 0.0])


def test_what_happens_before_the_first_wait_for_images_does_not_count():
    clock = StepClock(CPU, now=itertools.count(0.0).__next__)
    clock.gradients_done()
    clock.gradients_summed()
    for _ in clock.waiting(iter("a")):
        clock.step_done()
    assert clock.take() == (1, [1.0, 1.0, 0.0])


@pytest.mark.gpu
def test_on_a_gpu_images_are_late_only_while_it_has_nothing_to_do():
    """Oracle: the host's clock around the same work, with waits."""
    device = torch.device("cuda", 0)
    square = torch.randn(8192, 8192, device=device)

    def work() -> None:
        for _ in range(10):
            square @ square

    work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    busy = time.perf_counter() - began
    for late, expected in ((busy / 2, 0.0), (busy + 0.2, 0.2)):
        clock = StepClock(device)

        def images(late: float = late) -> Iterator[int]:
            for number in range(5):
                # The first waits for a GPU that has nothing to do.
                time.sleep(late * (number > 0))
                yield number

        for _ in clock.waiting(images()):
            work()
            clock.step_done()
        torch.cuda.synchronize()
        steps, (data, compute, reduce) = clock.take()
        assert steps == 5
        assert data == pytest.approx(4 * expected, abs=0.1)
        assert compute == pytest.approx(5 * busy, rel=0.3)
        assert reduce == 0


def test_one_worker_never_waits_for_gradients(tmp_path: Path):
    directory = RunDirectory(str(tmp_path))
    directory.write("recipe.json", b"{}")
    worker = Worker(rank=0, world_size=1, device=CPU)
    recorder, clock = Recorder.of_rank(0, directory), StepClock(CPU, now=itertools.count(0.0).__next__)
    times = WorkerTimes(worker, recorder, clock, ghost_batches=1, seconds_compared=1.0)
    times.share(0)
    for _ in clock.waiting(iter(range(30))):
        clock.step_done()
    times.share(30)
    recorder.close()
    (record,) = read_journal(directory)
    assert isinstance(record, WorkerSeconds)
    assert (record.step, record.steps) == (30, 30)
    assert (record.data_seconds, record.compute_seconds, record.reduce_seconds) == ([30.0], [30.0], [0.0])


def _act(folder: Path, worker: Worker) -> None:
    """Eight steps of two passes each; rank 1 computes 50 ms longer, rank 2 waits 80 ms for images."""
    torch.set_num_threads(1)
    recorder, clock = Recorder.of_rank(worker.rank, RunDirectory(str(folder))), StepClock(CPU)
    layers = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    gradients = Gradients([list(layers)], worker)
    times = WorkerTimes(worker, recorder, clock, ghost_batches=1, seconds_compared=100.0)

    def images() -> Iterator[torch.Tensor]:
        for _ in range(8):
            time.sleep(0.08 * (worker.rank == 2))
            yield torch.ones(2, 4)

    for batch in clock.waiting(images()):
        time.sleep(0.05 * (worker.rank == 1))
        for _ in range(2):
            layers(batch).sum().backward()
        gradients.reduce(0)
        clock.gradients_done()
        gradients.wait()
        clock.gradients_summed()
        clock.step_done()
    times.share(8)
    recorder.close()


def test_three_workers_wait_for_the_one_that_computes_longer_or_gets_its_images_late(tmp_path: Path):
    """Oracle: the delays. In each step the longest of 0, 50 and 80 ms delays everyone."""
    directory = RunDirectory(str(tmp_path))
    directory.write("recipe.json", b"{}")
    local.in_processes(Execution(workers=3, device="cpu", cpus_per_worker=1), functools.partial(_act, tmp_path))
    (record,) = read_journal(directory)
    assert isinstance(record, WorkerSeconds)
    assert record.steps == 8
    assert record.data_seconds[2] >= 8 * 0.08 > 0.2 > max(record.data_seconds[:2])
    assert record.compute_seconds[1] >= 8 * 0.05
    assert record.reduce_seconds[0] >= 0.55
    assert record.reduce_seconds[1] >= 0.15
