"""Recomputation. Oracle: the same steps without it, and the bytes that autograd saves."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from dist_resnet.data.input.batch import Batch
from dist_resnet.launch import local
from dist_resnet.launch.plan import prepare
from dist_resnet.recipe import Execution, Model, Performance, Recipe
from dist_resnet.tracking.journal import read_journal
from dist_resnet.train.loop import create_state
from dist_resnet.train.state import TrainState
from dist_resnet.train.step import TrainStep
from dist_resnet.worker import Worker

WORKER = Worker(rank=0, world_size=1, device=torch.device("cpu"))


def _batches(recipe: Recipe, seed: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Batch(
            images=torch.randn(recipe.ghost_batch, 3, 32, 32, generator=generator),
            labels=torch.randint(0, recipe.model.num_classes, (recipe.ghost_batch,), generator=generator),
            indices=np.arange(recipe.ghost_batch),
            ghost=ghost,
            weights=torch.ones(recipe.ghost_batch),
        )
        for ghost in range(recipe.num_ghost_batches)
    ]


def _trained(recipe: Recipe, execution: Execution) -> tuple[TrainState, list[float]]:
    state = create_state(recipe, execution, WORKER)
    step = TrainStep(recipe, execution, WORKER, state)
    losses = [float(step(_batches(recipe, seed), 0.05)[0]) for seed in range(3)]
    return state, losses


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("shortcut", "placement"),
    [
        ("identity", "full_preactivation"),
        ("identity", "original"),
        ("identity", "relu_only_preactivation"),
        ("dropout", "full_preactivation"),
        ("exclusive_gating", "original"),
        ("shortcut_only_gating", "bn_after_addition"),
    ],
)
def test_weights_statistics_and_losses_are_the_same_bits(
    recipe: Recipe, execution: Execution, shortcut, placement, precision
):
    recipe = dataclasses.replace(recipe, model=Model(depth=8, num_classes=4, shortcut=shortcut, placement=placement))
    execution = dataclasses.replace(execution, precision=precision)
    plain, plain_losses = _trained(recipe, execution)
    recomputed, losses = _trained(recipe, dataclasses.replace(execution, performance=Performance(recompute=True)))
    assert losses == plain_losses
    # Weights, running means and variances, and num_batches_tracked, under the same names.
    assert list(recomputed.weights()) == list(plain.weights())
    for name, tensor in plain.weights().items():
        assert torch.equal(tensor, recomputed.weights()[name]), name
    for name, tensor in plain.slots().items():
        assert torch.equal(tensor, recomputed.slots()[name]), name


@pytest.mark.parametrize("depth", [20, 29])
def test_recomputation_saves_far_fewer_bytes(recipe: Recipe, execution: Execution, depth):
    recipe = dataclasses.replace(recipe, model=Model(depth=depth, num_classes=4))
    saved = {}
    for recompute in (False, True):
        state = create_state(
            recipe,
            dataclasses.replace(execution, performance=Performance(recompute=recompute)),
            WORKER,
        )
        storages: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor, storages=storages) -> torch.Tensor:
            storages[tensor.data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            state.model.train()(_batches(recipe, 0)[0].images).sum()
        saved[recompute] = sum(storage.nbytes() for storage in storages.values())
    assert saved[True] < saved[False] / 2


@pytest.mark.slow
def test_two_workers_take_the_same_steps_with_it(recipe: Recipe, execution: Execution):
    hashes = []
    for recompute in (False, True):
        performance = Performance(recompute=recompute)
        two = dataclasses.replace(execution, workers=2, name=f"recompute-{recompute}", performance=performance)
        plan = prepare(recipe, two, job="test")
        plan.claim()
        local.start_workers(plan)
        hashes.append(read_journal(plan.directory)[-1].weights_sha256)
    assert hashes[0] == hashes[1]


def test_a_copy_of_the_model_recomputes_its_own_weights(recipe: Recipe, execution: Execution):
    state = create_state(
        recipe,
        dataclasses.replace(execution, performance=Performance(recompute=True)),
        WORKER,
    )
    twin = copy.deepcopy(state.model)
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.zero_()
    assert twin(_batches(recipe, 0)[0].images).abs().sum() > 0
