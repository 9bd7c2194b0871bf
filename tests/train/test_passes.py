"""Ghost batches of a pass. Oracles: counts by hand, and autograd's saved tensors of a real forward pass."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from dist_resnet.recipe import Execution, Model, Performance, Recipe
from dist_resnet.train.loop import create_state
from dist_resnet.train.passes import ghosts_per_pass, kept_bytes, passes
from dist_resnet.worker import Worker

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def _with(execution: Execution, **performance) -> Execution:
    return dataclasses.replace(execution, performance=Performance(**performance))


@pytest.mark.parametrize(
    ("rank", "world_size", "together", "expected"),
    [
        (0, 1, 1, [[0], [1], [2], [3]]),
        (0, 1, 3, [[0, 1, 2], [3]]),
        (0, 1, 9, [[0, 1, 2, 3]]),
        (1, 2, 2, [[1, 3]]),
        (2, 3, 2, [[2]]),
    ],
)
def test_a_workers_ghost_batches_are_taken_in_rising_order(
    recipe: Recipe, execution: Execution, rank: int, world_size: int, together: int, expected: list[list[int]]
):
    worker = Worker(rank=rank, world_size=world_size, device=CPU)
    found = passes(recipe, _with(execution, ghosts_per_pass=together), worker)
    assert [list(ghosts) for ghosts in found] == expected


@pytest.mark.parametrize("recompute", [False, True])
def test_activations_are_counted_as_autograd_keeps_them(recipe: Recipe, execution: Execution, recompute: bool):
    execution = _with(execution, recompute=recompute)
    model = create_state(recipe, execution, Worker(rank=0, world_size=1, device=CPU)).model.train()
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.zeros(recipe.ghost_batch, 3, 32, 32))
    # Running statistics are not kept for each image, and some of them are handed over too.
    assert kept_bytes(recipe, execution) == pytest.approx(sum(one.nbytes() for one in kept.values()), rel=0.02)
    assert kept_bytes(recipe, dataclasses.replace(execution, precision="bf16")) == kept_bytes(recipe, execution) // 2


@pytest.mark.parametrize(("gibibytes", "expected"), [(80, 32), (24, 8), (1, 1)])
def test_auto_takes_as_many_as_half_of_the_card_holds(
    recipe: Recipe, execution: Execution, gibibytes: int, expected: int, monkeypatch
):
    """ResNet-164 in bf16: 12 MiB of activations an image (counted), 0.75 GiB a ghost batch of 64."""
    card = SimpleNamespace(total_memory=gibibytes << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    recipe = dataclasses.replace(recipe, model=Model(depth=164, num_classes=10), global_batch=640, ghost_batch=64)
    execution = dataclasses.replace(_with(execution, ghosts_per_pass="auto"), precision="bf16")
    assert ghosts_per_pass(recipe, execution, Worker(rank=0, world_size=1, device=GPU)) == expected


def test_auto_takes_what_the_smallest_card_of_all_workers_holds(recipe: Recipe, execution: Execution, monkeypatch):
    card = SimpleNamespace(total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(Worker, "gather", lambda self, items: [*items, 2])
    worker = Worker(rank=0, world_size=2, device=GPU)
    assert ghosts_per_pass(recipe, _with(execution, ghosts_per_pass="auto"), worker) == 2


def test_the_cpu_and_dropout_take_one_by_one(recipe: Recipe, execution: Execution):
    worker = Worker(rank=0, world_size=1, device=CPU)
    assert ghosts_per_pass(recipe, _with(execution, ghosts_per_pass="auto"), worker) == 1
    assert ghosts_per_pass(recipe, execution, worker) == 1
    dropout = dataclasses.replace(recipe, model=Model(depth=8, num_classes=4, shortcut="dropout"))
    assert ghosts_per_pass(dropout, _with(execution, ghosts_per_pass=4), worker) == 1


@pytest.mark.parametrize("wrong", [0, -1, "all"])
def test_other_numbers_of_ghost_batches_are_refused(wrong):
    with pytest.raises(ValueError, match=r"execution.performance.ghosts_per_pass must be"):
        Performance(ghosts_per_pass=wrong)
