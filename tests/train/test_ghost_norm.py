"""BN over ghost batches in one pass. Oracles: torch's BN of each ghost batch alone, and steps with one at a time."""

import dataclasses
import functools
import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
import pytest
import torch

from dist_resnet.data.input.batch import Batch
from dist_resnet.launch import local
from dist_resnet.launch.plan import prepare
from dist_resnet.launch.worker import run_worker
from dist_resnet.recipe import Execution, Model, Performance, Placement, Recipe, Schedule, Shortcut
from dist_resnet.tracking.journal import history, read_journal
from dist_resnet.train import ghost_norm
from dist_resnet.train.ghost_norm import normalize_by_ghost_batch
from dist_resnet.train.loop import create_state
from dist_resnet.train.state import TrainState
from dist_resnet.train.step import TrainStep
from dist_resnet.worker import Worker

CPU = torch.device("cpu")
WORKER = Worker(rank=0, world_size=1, device=CPU)
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def _passed(norm: torch.nn.BatchNorm2d, x: torch.Tensor, outer: torch.Tensor) -> list[torch.Tensor]:
    """Output, gradients of input, scale and shift."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    norm.zero_grad()
    y = norm(x)
    y.backward(outer)
    assert y.stride() == x.stride()
    return [y.detach(), *(each.grad for each in (x, norm.weight, norm.bias))]  # pyrefly: ignore


def _norms(dtype: torch.dtype) -> tuple[torch.nn.BatchNorm2d, torch.nn.BatchNorm2d]:
    """Two BN layers with the same random weights and running statistics."""
    norms = [torch.nn.BatchNorm2d(8, dtype=torch.promote_types(dtype, torch.float32)) for _ in range(2)]
    for tensor in (norms[0].weight.data, norms[0].bias.data, norms[0].running_mean, norms[0].running_var):
        tensor.uniform_(0.5, 2.0)
    norms[1].load_state_dict(norms[0].state_dict())
    return norms[0], norms[1]


def _assert_close(ours: TrainState, theirs: TrainState, **tolerances: float) -> None:
    """Weights, momentum and running statistics."""
    for name, tensor in (theirs.weights() | theirs.slots()).items():
        mine = (ours.weights() | ours.slots())[name]
        torch.testing.assert_close(mine, tensor, **tolerances, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_layer_gives_the_bits_of_each_ghost_batch_by_itself(dtype: torch.dtype, layout: str):
    torch.manual_seed(0)
    x, outer = (torch.randn(12, 8, 5, 5).to(dtype).contiguous(memory_format=FORMATS[layout]) for _ in range(2))
    alone, together = _norms(dtype)
    normalize_by_ghost_batch(together, 4)
    y, dx, dweight, dbias = _passed(together, x, outer)
    parts = [_passed(alone, *part) for part in zip(x.split(4), outer.split(4), strict=True)]
    assert torch.equal(y, torch.cat([part[0] for part in parts]))
    assert torch.equal(dx, torch.cat([part[1] for part in parts]))
    torch.testing.assert_close(dweight, sum(part[2] for part in parts))
    torch.testing.assert_close(dbias, sum(part[3] for part in parts))


@pytest.mark.parametrize("is_compiling", [False, True])
def test_running_statistics_follow_the_first_ghost_batch_and_evaluation_uses_them(is_compiling: bool, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: is_compiling)
    x = torch.randn(12, 8, 5, 5)
    alone, together = _norms(torch.float32)
    normalize_by_ghost_batch(together, 4)
    together(x)
    alone(x[:4])
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(together, name), getattr(alone, name), rtol=is_compiling * 1e-6, atol=0)
    together.load_state_dict(alone.state_dict())
    assert torch.equal(together.eval()(x), alone.eval()(x))


@pytest.mark.parametrize("layout", FORMATS)
def test_the_formula_for_compilers_gives_the_same_numbers(layout: str, monkeypatch):
    torch.manual_seed(0)
    x, outer = (torch.randn(12, 8, 5, 5).double().contiguous(memory_format=FORMATS[layout]) for _ in range(2))
    alone, together = _norms(torch.float64)
    for norm in (alone, together):
        normalize_by_ghost_batch(norm, 4)
    kernels = _passed(alone, x, outer)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(ghost_norm, "_ByKernels", None)
    for ours, theirs in zip(_passed(together, x, outer), kernels, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def _batches(recipe: Recipe, dtype: torch.dtype = torch.float32, seed: int = 1) -> list[Batch]:
    """The ghost batches of a step; two images have weight 0."""
    generator = torch.Generator().manual_seed(seed)
    num, batches = recipe.ghost_batch, []
    for ghost in range(recipe.num_ghost_batches):
        images = torch.randn(num, 3, 16, 16, generator=generator, dtype=torch.float64).to(dtype)
        labels = torch.randint(0, recipe.model.num_classes, (num,), generator=generator)
        weights = torch.ones(num)
        weights[ghost] = ghost % 2
        batches.append(Batch(images.to(memory_format=torch.channels_last), labels, np.arange(num), ghost, weights))
    return batches


def _trained(
    recipe: Recipe, execution: Execution, ghosts_per_pass: int, dtype: torch.dtype = torch.float32, **options: bool
) -> tuple[TrainState, list[float]]:
    """The state after a step, whose momentum is the gradients, and the step's totals."""
    performance = Performance(ghosts_per_pass=ghosts_per_pass, **options)
    execution = dataclasses.replace(execution, performance=performance)
    state = create_state(recipe, execution, WORKER)
    state.model.to(dtype)
    step = TrainStep(recipe, execution, WORKER, state)
    return state, step(_batches(recipe, dtype), 0.05).tolist()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shortcut", [name for name in get_args(Shortcut) if name != "dropout"])
def test_a_step_is_exact_in_float64_for_every_shortcut_and_placement(
    recipe: Recipe, execution: Execution, shortcut, channels_last
):
    """Weights, gradients, running statistics and totals. Three together leave a last pass of one."""
    for placement in get_args(Placement):
        model = Model(depth=8, num_classes=4, shortcut=shortcut, placement=placement, stride_on="conv1x1")
        recipe = dataclasses.replace(recipe, model=model)
        one_by_one, totals = _trained(recipe, execution, 1, torch.float64, channels_last=channels_last)
        assert totals[2] == recipe.global_batch - 2
        state, found = _trained(recipe, execution, 3, torch.float64, channels_last=channels_last)
        _assert_close(state, one_by_one, rtol=1e-11, atol=1e-12)
        assert found == pytest.approx(totals, rel=1e-6)


def test_a_step_in_float32_differs_by_rounding_only(recipe: Recipe, execution: Execution):
    one_by_one, totals = _trained(recipe, execution, 1)
    state, found = _trained(recipe, execution, 2)
    _assert_close(state, one_by_one, rtol=1e-4, atol=1e-6)
    assert found == pytest.approx(totals, rel=1e-5)


def test_a_step_in_bf16_differs_by_the_rounding_of_one_sum(recipe: Recipe, execution: Execution):
    """A gradient is rounded to eight bits once a pass: 2 % of its norm, where bf16 and fp32 are 27 % apart."""
    execution = dataclasses.replace(execution, precision="bf16")
    one_by_one, totals = _trained(recipe, execution, 1)
    state, found = _trained(recipe, execution, 4)
    for name, tensor in one_by_one.slots().items():
        assert (state.slots()[name] - tensor).norm() < 0.02 * tensor.norm(), name
    assert found == pytest.approx(totals, rel=1e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputation_changes_no_bit(recipe: Recipe, execution: Execution, precision):
    execution = dataclasses.replace(execution, precision=precision)
    plain, totals = _trained(recipe, execution, 3)
    recomputed, found = _trained(recipe, execution, 3, recompute=True)
    assert found == totals
    _assert_close(recomputed, plain, rtol=0, atol=0)


def test_a_compiled_step_takes_the_formula_to_the_same_numbers(recipe: Recipe, execution: Execution, monkeypatch):
    recipe = dataclasses.replace(recipe, global_batch=16)
    plain, _ = _trained(recipe, execution, 2, torch.float64)
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(ghost_norm, "_ByKernels", None)
    compiled, _ = _trained(recipe, execution, 2, torch.float64, compile=True)
    _assert_close(compiled, plain, rtol=1e-10, atol=1e-11)


def test_units_of_one_shape_share_a_compilation(recipe: Recipe, execution: Execution, monkeypatch):
    asked = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        asked.append(graph)
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    recipe = dataclasses.replace(recipe, model=Model(depth=20, num_classes=4), global_batch=16)
    _trained(recipe, execution, 2, compile=True)
    # Stem, head, and of three stages the first unit and the others.
    assert len(asked) == 2 + 3 * 2


def test_dropout_takes_one_ghost_batch_at_a_time_and_the_same_masks(recipe: Recipe, execution: Execution):
    recipe = dataclasses.replace(recipe, model=Model(depth=8, num_classes=4, shortcut="dropout"))
    one_by_one, totals = _trained(recipe, execution, 1)
    state, found = _trained(recipe, execution, 4)
    assert found == totals
    _assert_close(state, one_by_one, rtol=0, atol=0)


def test_names_of_weights_stay(recipe: Recipe, execution: Execution):
    assert list(_trained(recipe, execution, 4)[0].weights()) == list(_trained(recipe, execution, 1)[0].weights())


@pytest.mark.parametrize("together", [1, 2, 3])
def test_a_step_takes_batches_pass_by_pass_and_holds_those_of_one(recipe: Recipe, execution: Execution, together: int):
    execution = dataclasses.replace(execution, performance=Performance(ghosts_per_pass=together))
    state = create_state(recipe, execution, WORKER)
    step = TrainStep(recipe, execution, WORKER, state)
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    held = []

    def lazily() -> Iterator[Batch]:
        for number in itertools.count():
            held.append(len(alive))
            batch = _batches(recipe)[number % 4]
            alive.add(batch.images)
            yield batch
            del batch

    batches = lazily()
    for number in (1, 2):
        step(batches, 0.1)
        # Not one more than the step needs, and at most those of a pass while another is made.
        assert len(held) == 4 * number
    assert max(held) == together - 1
    assert state.step == 2


@pytest.mark.parametrize("ghosts", [[0, 1, 3, 2], [0, 1], [1, 2, 3]])
def test_a_step_refuses_other_ghost_batches(recipe: Recipe, execution: Execution, ghosts: list[int]):
    step = TrainStep(recipe, execution, WORKER, create_state(recipe, execution, WORKER))
    batches = _batches(recipe)
    with pytest.raises(ValueError, match="a pass needs the ghost batches"):
        step([batches[ghost] for ghost in ghosts], 0.1)


def test_two_workers_with_two_at_a_time_take_the_steps_of_one_worker(recipe: Recipe, execution: Execution):
    recipe = dataclasses.replace(recipe, epochs=1, schedule=Schedule(learning_rate=0.01))
    losses = []
    for workers, together in ((1, 1), (2, 2)):
        performance = Performance(ghosts_per_pass=together)
        named = dataclasses.replace(execution, name=f"on-{workers}", workers=workers, performance=performance)
        plan = prepare(recipe, named, job="test")
        plan.claim()
        local.start_workers(plan) if workers > 1 else run_worker(plan, WORKER)
        losses.append(torch.tensor([value for *_, value in history(read_journal(plan.directory))["train/loss"]]))
    assert len(losses[0]) == 3
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.02)])
def test_a_gpus_step_differs_by_rounding_only_with_and_without_graphs(
    recipe: Recipe, execution: Execution, precision, tolerance
):
    worker = Worker(rank=0, world_size=1, device=torch.device("cuda", 0))
    execution = dataclasses.replace(execution, device="gpu", precision=precision)
    states = []
    for together, graphs in ((1, False), (3, False), (3, True)):
        performance = Performance(ghosts_per_pass=together, cuda_graphs=graphs)
        states.append(_trained_on(worker, recipe, dataclasses.replace(execution, performance=performance)))
    for name, tensor in states[0].slots().items():
        assert (states[1].slots()[name] - tensor).norm() < tolerance * tensor.norm(), name
    _assert_close(states[2], states[1], rtol=0, atol=0)


def _trained_on(worker: Worker, recipe: Recipe, execution: Execution) -> TrainState:
    state = create_state(recipe, execution, worker)
    step = TrainStep(recipe, execution, worker, state)
    for seed in (1, 2):
        batches = _batches(recipe, seed=seed)
        for batch in batches:
            batch.images, batch.labels, batch.weights = (
                tensor.to(worker.device) for tensor in (batch.images, batch.labels, batch.weights)
            )
        step(batches, 0.05)
    return state
