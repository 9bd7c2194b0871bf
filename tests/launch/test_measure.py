"""The cost of a step. Oracle: a weak reference to what an earlier measurement left, and torch's own settings."""

import dataclasses
import gc
import weakref
from typing import Any

import pytest
import torch

from dist_resnet.launch.measure import measure_step
from dist_resnet.recipe import Execution, Recipe


class _Cycle:
    def __init__(self) -> None:
        self.itself = self
        self.tensor = torch.ones(8)


@pytest.fixture
def _no_collector():
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
def test_what_an_earlier_measurement_left_in_cycles_is_gone(recipe: Recipe, execution: Execution):
    left = weakref.ref(_Cycle().tensor)
    assert left() is not None
    cost = measure_step(recipe, execution, torch.device("cpu"), num_steps=1)
    assert left() is None
    assert cost.seconds > 0
    assert cost.memory_bytes == 0


@pytest.mark.parametrize("precision", ["tf32", "fp32"])
def test_a_step_is_measured_with_the_settings_of_training(recipe: Recipe, execution: Execution, precision: Any):
    backends, before = torch.backends, _settings()
    try:
        performance = dataclasses.replace(execution.performance, deterministic=precision == "fp32")
        own = dataclasses.replace(execution, precision=precision, performance=performance)
        backends.cudnn.allow_tf32 = backends.cuda.matmul.allow_tf32 = precision == "fp32"
        measure_step(recipe, own, torch.device("cpu"), num_steps=1)
        assert _settings() == (precision == "tf32", precision == "tf32", precision == "fp32", precision == "tf32")
    finally:
        cudnn = backends.cudnn
        cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark = before


def _settings() -> tuple[bool, bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark
