"""The cost of a step. Oracle: a weak reference to what an earlier measurement left."""

import gc
import weakref

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
