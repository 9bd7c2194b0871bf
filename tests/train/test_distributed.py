"""Gradients of several workers. Oracle: torch's DistributedDataParallel on the same ghost batches, bit for bit for two
workers, where the order of a sum does not matter; and the backward pass through the whole network at once."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dist_resnet.data.input.batch import Batch
from dist_resnet.model import build_model
from dist_resnet.recipe import Execution, Model, Performance, Recipe
from dist_resnet.train import step
from dist_resnet.train.distributed import in_parts
from dist_resnet.train.loop import create_state
from dist_resnet.worker import Worker

_CPU = torch.device("cpu")
_ONE, _TWO = (Worker(rank=0, world_size=size, device=_CPU) for size in (1, 2))

# Three steps by this package and by DDP, as one rank. Prints the names of weights that differ, as JSON.
_SCRIPT = """
import contextlib, functools, json, sys
import numpy as np, torch, torch.distributed as dist, torch.nn.functional as F
from dist_resnet.data.input.batch import Batch
from dist_resnet.recipe import *
from dist_resnet.train import step
from dist_resnet.train.distributed import in_parts
from dist_resnet.train.loop import create_state
from dist_resnet.worker import Worker

rank, world_size, store, precision, graphs = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5]
recipe = Recipe.from_dict(json.loads(sys.stdin.read()))
cuda = graphs != "cpu"
device = torch.device("cuda", rank) if cuda else torch.device("cpu")
torch.set_num_threads(1)
if cuda:
    torch.cuda.set_device(device)
dist.init_process_group("nccl" if cuda else "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
execution = Execution(precision=precision, performance=Performance(cuda_graphs=graphs == "graphs"))
worker = Worker(rank=rank, world_size=world_size, device=device)
step.in_parts = functools.partial(in_parts, part_bytes=50_000)

def batches(number):
    drawn = torch.Generator().manual_seed(100 * number + rank)
    for ghost in range(rank, recipe.num_ghost_batches, world_size):
        images = torch.randn(8, 3, 32, 32, generator=drawn).to(device).to(memory_format=torch.channels_last)
        labels = torch.randint(0, 4, (8,), generator=drawn).to(device)
        yield Batch(images, labels, np.arange(8), ghost, torch.ones(8, device=device))

ours = create_state(recipe, execution, worker)
theirs = create_state(recipe, execution, worker)
if rank:  # as on a machine whose generator draws other numbers
    with torch.no_grad():
        for state in (ours, theirs):
            next(state.model.parameters()).add_(1)
take = step.TrainStep(recipe, execution, worker, ours)
assert len(take._parts) > 2
ddp = torch.nn.parallel.DistributedDataParallel(
    theirs.model, device_ids=[device] if cuda else None, broadcast_buffers=False, gradient_as_bucket_view=True
)
theirs.model.train()
for number in range(3):
    take(list(batches(number)), 0.05)
    mine = list(batches(number))
    for batch in mine:
        with contextlib.nullcontext() if batch is mine[-1] else ddp.no_sync():
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                losses = F.cross_entropy(ddp(batch.images).float(), batch.labels, reduction="none")
            (losses.sum() / recipe.global_batch).backward()
    for group in theirs.optimizer.param_groups:
        group["lr"] = 0.05
    for parameter in theirs.model.parameters():
        parameter.grad *= world_size  # DDP divides by it, exactly for two
    theirs.optimizer.step()
    theirs.optimizer.zero_grad()
other = dict(theirs.model.named_parameters())
print(json.dumps([name for name, own in ours.model.named_parameters() if not torch.equal(own, other[name])]))
dist.destroy_process_group()
"""


def _differing(recipe: Recipe, folder: Path, *, precision: str, graphs: str) -> list[list[str]]:
    command = [sys.executable, "-c", _SCRIPT]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), "2", str(folder / "store"), precision, graphs],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.write(json.dumps(recipe.to_dict()))
        rank.stdin.close()
        rank.stdin = None
    found = []
    for rank in ranks:
        output, said = rank.communicate(timeout=240)
        assert rank.returncode == 0, said
        found.append(json.loads(output.splitlines()[-1]))
    return found


def test_two_workers_take_the_steps_of_ddp_bit_for_bit(recipe: Recipe, tmp_path: Path):
    """With two ghost batches each, and weights that differed at first on one of them."""
    assert _differing(recipe, tmp_path, precision="fp32", graphs="cpu") == [[], []]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("graphs", ["graphs", "eager"])
def test_two_gpus_take_the_steps_of_ddp_bit_for_bit(recipe: Recipe, tmp_path: Path, precision: str, graphs: str):
    assert _differing(recipe, tmp_path, precision=precision, graphs=graphs) == [[], []]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("shortcut", "placement"),
    [
        ("identity", "full_preactivation"),
        ("identity", "original"),
        ("identity", "relu_only_preactivation"),
        ("conv1x1", "relu_before_addition"),
        ("dropout", "bn_after_addition"),
        ("exclusive_gating", "full_preactivation"),
    ],
)
def test_a_backward_pass_in_parts_gives_the_bits_of_one(
    recipe: Recipe, execution: Execution, monkeypatch: pytest.MonkeyPatch, shortcut, placement, precision, recompute
):
    recipe = dataclasses.replace(recipe, model=Model(depth=8, num_classes=4, shortcut=shortcut, placement=placement))
    execution = dataclasses.replace(execution, precision=precision, performance=Performance(recompute=recompute))
    found = []
    for layers_apart in (False, True):
        monkeypatch.setattr(step, "in_parts", functools.partial(_apart, layers_apart=layers_apart))
        state = create_state(recipe, execution, _ONE)
        take = step.TrainStep(recipe, execution, _ONE, state)
        for number in range(2):
            take(_batches(recipe, number), 0.05)
        found.append(state.weights())
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name


def _apart(layers: list[torch.nn.Module], worker: Worker, *, layers_apart: bool) -> list[list[torch.nn.Module]]:
    return [[layer] for layer in layers] if layers_apart else [layers]


def _batches(recipe: Recipe, number: int) -> list[Batch]:
    drawn = torch.Generator().manual_seed(number)
    return [
        Batch(
            images=torch.randn(8, 3, 32, 32, generator=drawn),
            labels=torch.randint(0, 4, (8,), generator=drawn),
            indices=np.arange(8),
            ghost=ghost,
            weights=torch.ones(8),
        )
        for ghost in range(recipe.num_ghost_batches)
    ]


@pytest.mark.parametrize("depth", [20, 152])
def test_parts_are_the_layers_in_order_each_large_enough_for_the_network(depth: int):
    with torch.device("meta"):
        layers: list[Any] = build_model(Model(depth=depth, num_classes=10)).layers
    parts = in_parts(layers, _TWO)
    assert [layer for part in parts for layer in part] == layers
    sizes = [sum(parameter.nbytes for layer in part for parameter in layer.parameters()) for part in parts]
    assert all(size >= 25 * 2**20 for size in sizes[1:])
    assert max(sizes) < 50 * 2**20
    assert len(parts) == {20: 1, 152: 9}[depth]
    assert in_parts(layers, _ONE) == [layers]
