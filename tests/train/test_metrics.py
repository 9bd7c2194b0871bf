"""The step meter. Oracle: means worked out by hand."""

import itertools
import math
from typing import Any

import pytest
import torch

from dist_resnet.tracking.journal import history, read_journal
from dist_resnet.tracking.recorder import Recorder
from dist_resnet.tracking.records import Metrics
from dist_resnet.tracking.run_directory import RunDirectory
from dist_resnet.train.metrics import DivergedError, StepMeter
from dist_resnet.worker import Worker

WORKER = Worker(rank=0, world_size=1, device=torch.device("cpu"))


def _meter(tmp_path, **options: Any) -> tuple[StepMeter, Recorder, RunDirectory]:
    directory = RunDirectory(str(tmp_path))
    directory.write("recipe.json", b"{}")
    recorder = Recorder.of_rank(0, directory)
    return StepMeter(WORKER, recorder, **options), recorder, directory


def _add(meter: StepMeter, step: int, loss: float, errors: float) -> None:
    totals = torch.tensor([loss, errors, 8.0], dtype=torch.float64)
    meter.add(step, totals, images=8, learning_rate=0.1, data_seconds=0.0)


def test_means_are_sums_over_images(tmp_path):
    meter, recorder, directory = _meter(tmp_path)
    _add(meter, 1, 16.0, 2)
    _add(meter, 2, 4.0, 8)
    meter.flush()
    recorder.close()
    points = history(read_journal(directory))
    assert [value for _, _, value in points["train/loss"]] == [2.0, 0.5]
    assert [value for _, _, value in points["train/top1_error"]] == [0.25, 1.0]


def test_means_exclude_damaged_images_and_the_meter_counts_them(tmp_path):
    meter, recorder, directory = _meter(tmp_path)
    meter.add(1, torch.tensor([12.0, 3.0, 6.0]).double(), images=8, learning_rate=0.1, data_seconds=0.0)
    meter.add(2, torch.tensor([0.0, 0.0, 0.0]).double(), images=8, learning_rate=0.1, data_seconds=0.0)
    assert meter.flush() == 2 + 8
    _add(meter, 3, 4.0, 8)
    assert meter.flush() == 0
    recorder.close()
    points = history(read_journal(directory))
    assert [value for _, _, value in points["train/loss"]] == [2.0, 0.0, 0.5]
    assert points["train/top1_error"][0][2] == 0.5


def test_nothing_is_recorded_twice(tmp_path):
    meter, recorder, directory = _meter(tmp_path)
    _add(meter, 1, 1.0, 0)
    meter.flush()
    meter.flush()
    recorder.close()
    assert len(read_journal(directory)) == 1


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_recorded_and_named(tmp_path, loss):
    meter, recorder, directory = _meter(tmp_path)
    _add(meter, 1, 1.0, 0)
    _add(meter, 2, loss, 0)
    with pytest.raises(DivergedError, match="after step 2"):
        meter.flush()
    recorder.close()
    assert [step for step, _, _ in history(read_journal(directory))["train/loss"]] == [1, 2]


@pytest.mark.parametrize(("data_seconds", "hints"), [(0.02, 1), (0.001, 0)])
def test_input_bound_training_is_logged_once(tmp_path, caplog, data_seconds, hints):
    # Every step takes 0.03 s.
    meter, recorder, _ = _meter(tmp_path, input_watch_seconds=0.1, clock=itertools.count(0.0, 0.03).__next__)
    totals = torch.tensor([1.0, 0.0, 8.0], dtype=torch.float64)
    for step in range(1, 31):
        meter.add(step, totals, images=8, learning_rate=0.1, data_seconds=data_seconds)
    recorder.close()
    assert caplog.text.count("training is input-bound: 67 %") == hints


def test_on_a_gpu_the_wait_at_the_end_of_a_block_is_shared_by_its_steps(tmp_path):
    """The host launches steps ahead of the device, so the time of a launch is not that of a step."""
    clock = iter([0.0, 0.001, 0.002, 0.9]).__next__
    directory = RunDirectory(str(tmp_path))
    directory.write("recipe.json", b"{}")
    recorder = Recorder.of_rank(0, directory)
    worker = Worker(rank=0, world_size=1, device=torch.device("cuda", 0))
    meter = StepMeter(worker, recorder, clock=clock)
    for step in (1, 2):
        meter.add(step, torch.zeros(3), images=32, learning_rate=0.1, data_seconds=0.0)
    meter.flush()
    recorder.commit()
    recorder.close()
    for record in read_journal(directory):
        assert isinstance(record, Metrics)
        assert record.values["time/step_seconds"] == pytest.approx(0.45)
        assert record.values["throughput/images_per_second"] == pytest.approx(32 / 0.45)
    assert meter.images_per_second == pytest.approx(64 / 0.9)
