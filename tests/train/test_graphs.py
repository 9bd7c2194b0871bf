"""CUDA graphs. Oracle: the same steps without them, bit-identical on a GPU; the CPU has no graphs."""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from dist_resnet.data.input.batch import Batch
from dist_resnet.recipe import Execution, Model, Performance, Recipe
from dist_resnet.train.graphs import GraphedPass
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
            weights = torch.ones(recipe.ghost_batch, device=device)
            batches.append(Batch(images, labels, np.arange(recipe.ghost_batch), ghost, weights))
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


@pytest.mark.gpu
def test_a_graph_is_recorded_while_another_thread_allocates_memory():
    recording, allocated, kept = threading.Event(), threading.Event(), []

    def allocate() -> None:
        recording.wait(60)
        kept.append(torch.empty(64 << 20, dtype=torch.uint8, pin_memory=True))
        kept.append(torch.empty(64 << 20, dtype=torch.uint8, device="cuda"))
        allocated.set()

    def double(tensor: torch.Tensor) -> torch.Tensor:
        recording.set()
        assert allocated.wait(60)
        return tensor * 2

    loader = threading.Thread(target=allocate)
    loader.start()
    graphed = GraphedPass(double, torch.ones(2, device="cuda"))
    loader.join()
    assert graphed(torch.full((2,), 3.0, device="cuda")).tolist() == [6, 6]
    assert len(kept) == 2


def test_recording_lets_other_threads_allocate_memory(monkeypatch):
    """Recording itself needs a GPU: here the arguments alone, and what goes in and out."""
    asked = []

    @contextlib.contextmanager
    def recording(graph: object, **options: object) -> Iterator[None]:
        asked.append(options)
        yield

    class Graph:
        def replay(self) -> None:
            asked.append("replay")

    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    recorded = []
    graphed = GraphedPass(lambda *inputs: recorded.append(inputs) or inputs[0], torch.zeros(2), torch.zeros(3))
    assert torch.equal(graphed(torch.ones(2), torch.ones(3)), torch.ones(2))
    assert torch.equal(recorded[0][1], torch.ones(3))
    assert asked == [{"capture_error_mode": "thread_local"}, "replay"]


def test_the_cpu_trains_without_graphs(recipe: Recipe, execution: Execution):
    _assert_same(recipe, execution, torch.device("cpu"))
