"""Learning rates. Oracle: the paper's schedules written out, and the formulas of cosine and linear decay."""

import math

import pytest

from dist_resnet.recipe import Schedule
from dist_resnet.train.schedule import learning_rate, num_steps

CIFAR = Schedule(drops=(0.5, 0.75), warmup=400 / 64_000, warmup_kind="constant", warmup_factor=0.1)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.01),
        (399, 0.01),
        (400, 0.1),
        (31_999, 0.1),
        (32_000, 0.01),
        (47_999, 0.01),
        (48_000, 0.001),
        (63_999, 0.001),
    ],
)
def test_the_cifar_schedule_is_the_papers(step, rate):
    assert learning_rate(CIFAR, step, 64_000) == rate


@pytest.mark.parametrize(("epoch", "rate"), [(0, 0.1), (29, 0.1), (30, 0.01), (59, 0.01), (60, 0.001), (89, 0.001)])
def test_the_imagenet_schedule_drops_at_epochs_30_and_60(epoch, rate):
    steps_per_epoch = 1_281_167 // 256
    assert learning_rate(Schedule(), epoch * steps_per_epoch, 90 * steps_per_epoch) == rate


def test_a_linear_warm_up_is_a_line_to_the_full_rate():
    schedule = Schedule(warmup=0.1, warmup_factor=0.0, learning_rate=1.0)
    assert [learning_rate(schedule, step, 100) for step in (0, 5, 10)] == pytest.approx([0.0, 0.5, 1.0])


def test_the_cosine_falls_from_the_rate_to_zero_by_its_formula():
    schedule = Schedule(kind="cosine", learning_rate=0.4)
    for step in (0, 10, 50, 99):
        assert learning_rate(schedule, step, 100) == pytest.approx(0.2 * (1 + math.cos(math.pi * step / 100)))


def test_the_line_falls_from_the_rate_to_zero_after_the_warm_up():
    schedule = Schedule(kind="linear", learning_rate=1.0, warmup=0.5, warmup_factor=0.0)
    assert [learning_rate(schedule, step, 100) for step in (50, 75, 99)] == pytest.approx([1.0, 0.5, 0.02])


def test_a_shorter_run_keeps_the_schedules_shape():
    assert learning_rate(CIFAR, 499, 1_000) == 0.1
    assert learning_rate(CIFAR, 500, 1_000) == 0.01


def test_the_number_of_steps_is_rounded_and_at_least_one():
    assert num_steps(64_000 / 390, 390) == 64_000
    assert num_steps(0.001, 10) == 1
