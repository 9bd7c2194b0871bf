"""One optimizer step. Oracle: a plain loop over ghost batches with torch's own modules and the loss's formula."""

import copy
import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn import Conv2d
from torch.utils._python_dispatch import TorchDispatchMode

from dist_resnet.data.input.batch import Batch
from dist_resnet.recipe import Execution, Model, Performance, Recipe
from dist_resnet.train.loop import create_state
from dist_resnet.train.step import TrainStep
from dist_resnet.worker import Worker

WORKER = Worker(rank=0, world_size=1, device=torch.device("cpu"))


def _batches(recipe: Recipe) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
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


def test_a_step_is_one_update_by_the_mean_loss_with_statistics_per_ghost_batch(recipe: Recipe, execution: Execution):
    recipe = dataclasses.replace(recipe, label_smoothing=0.1)
    batches = _batches(recipe)
    state = create_state(recipe, execution, WORKER)
    oracle = copy.deepcopy(state.model).train()
    step = TrainStep(recipe, execution, WORKER, state)
    totals = step(batches, 0.1)

    losses, errors = [], 0
    for batch in batches:
        logits = oracle(batch.images)
        log_p = F.log_softmax(logits, dim=1)
        target = F.one_hot(batch.labels, 4) * 0.9 + 0.1 / 4
        losses.append(-(target * log_p).sum(dim=1).mean())
        errors += int((logits.argmax(1) != batch.labels).sum())
    gradients = torch.autograd.grad(torch.stack(losses).mean(), list(oracle.parameters()))
    for parameter, gradient, before in zip(state.model.parameters(), gradients, oracle.parameters(), strict=True):
        decayed = gradient + recipe.optimizer.weight_decay * before
        torch.testing.assert_close(parameter, before - 0.1 * decayed)
    assert totals.tolist() == pytest.approx(
        [float(sum(losses).detach()) * recipe.ghost_batch, errors, recipe.global_batch]
    )
    assert state.step == 1


def test_an_image_of_weight_zero_changes_only_the_batch_statistics(recipe: Recipe, execution: Execution):
    """By the formula: the losses of the others, over the images of the global batch."""
    batches = _batches(recipe)
    batches[1].weights[3] = batches[2].weights[5] = 0
    state = create_state(recipe, execution, WORKER)
    oracle = copy.deepcopy(state.model).train()
    totals = TrainStep(recipe, execution, WORKER, state)(batches, 0.1)
    logits = [oracle(batch.images) for batch in batches]
    each = torch.cat(
        [F.cross_entropy(row, batch.labels, reduction="none") for row, batch in zip(logits, batches, strict=True)]
    )
    kept = torch.cat([batch.weights for batch in batches]) > 0
    gradients = torch.autograd.grad(each[kept].sum() / recipe.global_batch, list(oracle.parameters()))
    for parameter, gradient, before in zip(state.model.parameters(), gradients, oracle.parameters(), strict=True):
        torch.testing.assert_close(parameter, before - 0.1 * (gradient + recipe.optimizer.weight_decay * before))
    wrong = torch.cat([row.argmax(1) != batch.labels for row, batch in zip(logits, batches, strict=True)])
    expected = [float(each[kept].sum().detach()), int(wrong[kept].sum()), recipe.global_batch - 2]
    assert totals.tolist() == pytest.approx(expected)


def test_running_statistics_follow_ghost_batch_0_alone(recipe: Recipe, execution: Execution):
    batches = _batches(recipe)
    state = create_state(recipe, execution, WORKER)
    oracle = copy.deepcopy(state.model).train()
    TrainStep(recipe, execution, WORKER, state)(batches, 0.1)
    oracle(batches[0].images)
    for (name, buffer), expected in zip(state.model.named_buffers(), oracle.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, msg=lambda text, name=name: f"{name}: {text}")


def test_dropout_masks_depend_only_on_the_step_and_the_ghost_batch(recipe: Recipe, execution: Execution):
    recipe = dataclasses.replace(recipe, model=Model(depth=8, num_classes=4, shortcut="dropout"))
    weights = []
    for seed in (1, 2):
        state = create_state(recipe, execution, WORKER)
        step = TrainStep(recipe, execution, WORKER, state)
        torch.manual_seed(seed)
        step(_batches(recipe), 0.1)
        weights.append(state.weights())
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_steps_lower_the_loss(recipe: Recipe, execution: Execution, precision):
    execution = dataclasses.replace(execution, precision=precision)
    state = create_state(recipe, execution, WORKER)
    step = TrainStep(recipe, execution, WORKER, state)
    batches = _batches(recipe)
    losses = [float(step(batches, 0.05)[0]) for _ in range(25)]
    assert losses[-1] < 0.6 * losses[0]


def test_scaling_the_loss_does_not_change_a_step_and_an_overflow_skips_it(recipe: Recipe, execution: Execution):
    weights = []
    for scaled in (False, True):
        state = create_state(recipe, execution, WORKER)
        state.scaler = torch.amp.GradScaler("cpu", enabled=scaled)
        step = TrainStep(recipe, execution, WORKER, state)
        step(_batches(recipe), 0.1)
        weights.append(state.weights())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], msg=lambda text, name=name: f"{name}: {text}")
    scale = state.scaler.get_scale()
    poisoned = _batches(recipe)
    poisoned[0].images[0, 0, 0, 0] = math.inf
    step(poisoned, 0.1)
    for name, parameter in state.model.named_parameters():
        assert torch.equal(parameter, weights[1][name]), name
    assert state.scaler.get_scale() == scale / 2
    assert state.counters()["scaler"]["scale"] == scale / 2


@pytest.mark.parametrize("recompute", [False, True])
def test_a_step_casts_each_weight_once(recipe: Recipe, execution: Execution, recompute: bool):
    """To the same bits as casts for every ghost batch, and anew in the next step."""
    performance = Performance(recompute=recompute)
    execution = dataclasses.replace(execution, precision="bf16", performance=performance)
    states = []
    for cached in (True, False):
        state = create_state(recipe, execution, WORKER)
        step = TrainStep(recipe, execution, WORKER, state)
        convolutions = {module.weight.data_ptr() for module in state.model.modules() if isinstance(module, Conv2d)}
        casts = _Casts(convolutions, cached=cached)
        with casts:
            for _ in range(2):
                step(_batches(recipe), 0.1)
        if cached:
            assert set(casts.found.values()) == {2}
            assert casts.found.keys() == convolutions
        states.append(state)
    for name, tensor in states[0].weights().items():
        assert torch.equal(tensor, states[1].weights()[name]), name


class _Casts(TorchDispatchMode):
    """Counts casts of some tensors to bf16; without `cached`, autocast forgets them before every operation."""

    def __init__(self, pointers: set[int], *, cached: bool) -> None:
        super().__init__()
        self.found: Counter[int] = Counter()
        self._pointers, self._cached = pointers, cached

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default:
            if args[0].data_ptr() in self._pointers:
                self.found[args[0].data_ptr()] += kwargs.get("dtype") == torch.bfloat16
        # A cast holds the cache's lock.
        elif not self._cached:
            torch.clear_autocast_cache()
        return function(*args, **(kwargs or {}))
