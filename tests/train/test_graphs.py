"""CUDA graphs. Oracle: the same steps without them, bit-identical on a GPU; the CPU has no graphs."""

import dataclasses

import numpy as np
import pytest
import torch

from dist_resnet.data.input.batch import Batch
from dist_resnet.recipe import Execution, Model, Performance, Recipe
from dist_resnet.train.loop import create_state
from dist_resnet.train.state import TrainState
from dist_resnet.train.step import TrainStep
from dist_resnet.worker import Worker


def _trained(recipe: Recipe, execution: Execution, device: torch.device) -> tuple[TrainState, list[list[float]]]:
    worker = Worker(rank=0, world_size=1, device=device)
    state = create_state(recipe, execution, worker)
    step = TrainStep(recipe, execution, worker, state)
    generator = torch.Generator().manual_seed(1)
    totals = []
    for _ in range(4):
        batches = []
        for ghost in range(recipe.num_ghost_batches):
            images = torch.randn(recipe.ghost_batch, 3, 32, 32, generator=generator).to(device)
            labels = torch.randint(0, 4, (recipe.ghost_batch,), generator=generator).to(device)
            images = images.to(memory_format=torch.channels_last)
            batches.append(Batch(images, labels, np.arange(recipe.ghost_batch), ghost, torch.ones(recipe.ghost_batch)))
        totals.append(step(batches, 0.05).tolist())
    return state, totals


def _assert_same(recipe: Recipe, execution: Execution, device: torch.device) -> None:
    plain, plain_totals = _trained(recipe, execution, device)
    graphed, totals = _trained(
        recipe,
        dataclasses.replace(execution, performance=Performance(cuda_graphs=True)),
        device,
    )
    assert totals == plain_totals
    for name, tensor in plain.weights().items():
        assert torch.equal(tensor, graphed.weights()[name]), name


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("shortcut", ["identity", "dropout"])
def test_graphs_take_the_same_steps_bit_for_bit(recipe: Recipe, execution: Execution, shortcut, precision):
    recipe = dataclasses.replace(recipe, model=Model(depth=8, num_classes=4, shortcut=shortcut))
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    _assert_same(recipe, dataclasses.replace(execution, device="gpu", precision=precision), torch.device("cuda", 0))


def test_the_cpu_trains_without_graphs(recipe: Recipe, execution: Execution):
    _assert_same(recipe, execution, torch.device("cpu"))
