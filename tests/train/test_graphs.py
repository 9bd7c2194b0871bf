"""CUDA graphs. Oracle: the same steps without them, bit for bit; the CPU has none, so there stand-ins record."""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from dist_resnet.data.input.batch import Batch
from dist_resnet.recipe import Execution, Model, Performance, Recipe
from dist_resnet.train import step
from dist_resnet.train.graphs import GraphedPass, Pass, is_graphed
from dist_resnet.train.loop import create_state
from dist_resnet.train.state import TrainState
from dist_resnet.train.step import TrainStep
from dist_resnet.worker import Worker


def _trained(
    recipe: Recipe, execution: Execution, device: torch.device, sizes: Sequence[int] = ()
) -> tuple[TrainState, list[list[float]]]:
    """Four steps; `sizes`: images of each ghost batch, by default as in the recipe."""
    worker = Worker(rank=0, world_size=1, device=device)
    state = create_state(recipe, execution, worker)
    take = TrainStep(recipe, execution, worker, state)
    generator = torch.Generator().manual_seed(1)
    totals = []
    for _ in range(4):
        batches = []
        for ghost, num in enumerate(sizes or [recipe.ghost_batch] * recipe.num_ghost_batches):
            images = torch.randn(num, 3, 32, 32, generator=generator).to(device)
            labels = torch.randint(0, 4, (num,), generator=generator).to(device)
            images = images.to(memory_format=torch.channels_last)
            batches.append(Batch(images, labels, np.arange(num), ghost, torch.ones(num, device=device)))
        totals.append(take(batches, 0.05).tolist())
    return state, totals


def _assert_same(recipe: Recipe, execution: Execution, device: torch.device, sizes: Sequence[int] = ()) -> None:
    found = []
    for graphs in (False, True):
        execution = dataclasses.replace(execution, performance=Performance(cuda_graphs=graphs))
        found.append(_trained(recipe, execution, device, sizes))
    (plain, plain_totals), (graphed, totals) = found
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
def test_each_shape_of_images_has_its_graph_in_the_same_memory(recipe: Recipe, execution: Execution):
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    _assert_same(recipe, dataclasses.replace(execution, device="gpu"), torch.device("cuda", 0), sizes=(8, 8, 5, 3))


@pytest.mark.gpu
def test_compiled_units_are_recorded(recipe: Recipe, execution: Execution):
    device, losses = torch.device("cuda", 0), []
    for graphs in (False, True):
        performance = Performance(cuda_graphs=graphs, compile=True)
        execution = dataclasses.replace(execution, device="gpu", performance=performance)
        losses.append(_trained(recipe, execution, device)[1])
    assert losses[0] == losses[1]


@pytest.mark.gpu
def test_a_graph_is_recorded_while_another_thread_allocates_memory():
    recording, allocated, kept = threading.Event(), threading.Event(), []

    def allocate() -> None:
        recording.wait(60)
        kept.append(torch.empty(64 << 20, dtype=torch.uint8, pin_memory=True))
        kept.append(torch.empty(64 << 20, dtype=torch.uint8, device="cuda"))
        allocated.set()

    def double(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
        if torch.cuda.is_current_stream_capturing():
            recording.set()
            assert allocated.wait(60)
        yield tensor * 2

    loader = threading.Thread(target=allocate)
    loader.start()
    graphed = GraphedPass(double, torch.ones(2, device="cuda"))
    loader.join()
    (doubled,) = graphed(torch.full((2,), 3.0, device="cuda"))
    assert doubled.tolist() == [6, 6]
    assert len(kept) == 2


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """CUDA graphs on the CPU, without their point: a part is recorded by running it, and a replay does nothing.

    The options of each recording.
    """
    asked: list[dict[str, object]] = []

    @contextlib.contextmanager
    def recording(graph: object, **options: object) -> Iterator[None]:
        asked.append(options)
        yield

    class Stream:
        def wait_stream(self, other: object) -> None: ...

    class Graph:
        def replay(self) -> None: ...

    for name, stand_in in {
        "graph": recording,
        "CUDAGraph": Graph,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": contextlib.nullcontext,
        "graph_pool_handle": object,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return asked


def test_each_part_is_recorded_in_one_memory_while_other_threads_may_allocate(recordings: list[dict[str, object]]):
    run = []

    def three_parts(*inputs: torch.Tensor) -> Iterator[torch.Tensor]:
        for part in range(3):
            run.append((part, inputs))
            yield inputs[0]

    first = GraphedPass(three_parts, torch.zeros(2), torch.zeros(3))
    assert [part for part, _ in run] == [0, 1, 2] * 4  # three times before the recording
    assert {id(inputs[0]) for _, inputs in run} == {id(run[0][1][0])}  # always on the same addresses
    replayed = list(first(torch.ones(2), torch.ones(3)))
    assert [each.tolist() for each in replayed] == [[1, 1]] * 3
    assert torch.equal(run[0][1][1], torch.ones(3))
    GraphedPass(three_parts, torch.zeros(4), beside=first)
    assert len(recordings) == 6
    assert {option["capture_error_mode"] for option in recordings} == {"thread_local"}
    assert len({id(option["pool"]) for option in recordings}) == 1


class _Rerun(GraphedPass):
    """A recording whose replay runs the pass."""

    def __init__(self, run: Pass, *inputs: torch.Tensor, beside: GraphedPass | None = None) -> None:
        super().__init__(run, *inputs, beside=beside)
        self._run = run

    def __call__(self, *inputs: torch.Tensor) -> Iterator[torch.Tensor]:
        list(super().__call__(*inputs))
        yield from self._run(*self._inputs)


@pytest.mark.parametrize("sizes", [(8, 8, 8, 8), (8, 8, 5, 3), (3, 8, 8, 8)])
@pytest.mark.parametrize("shortcut", ["identity", "dropout"])
def test_recording_at_any_point_of_a_step_changes_no_number(
    recipe: Recipe, execution: Execution, monkeypatch: pytest.MonkeyPatch, recordings: list, shortcut: Any, sizes
):
    """The gradients summed so far and BN's statistics: a recording runs its pass four times."""
    recipe = dataclasses.replace(recipe, model=Model(depth=8, num_classes=4, shortcut=shortcut))
    monkeypatch.setattr(step, "GraphedPass", _Rerun)
    monkeypatch.setattr(step, "is_graphed", lambda execution, device: execution.performance.cuda_graphs)
    _assert_same(recipe, execution, torch.device("cpu"), sizes)
    assert len(recordings) == len(set(sizes))


def test_the_cpu_trains_without_graphs(recipe: Recipe, execution: Execution):
    _assert_same(recipe, execution, torch.device("cpu"))


@pytest.mark.parametrize("recompute", [False, True])
def test_graphs_are_the_default_on_gpus_unless_units_are_recomputed(execution: Execution, recompute: bool):
    execution = dataclasses.replace(execution, performance=Performance(recompute=recompute))
    assert is_graphed(execution, torch.device("cuda", 0)) == (not recompute)
    assert not is_graphed(execution, torch.device("cpu"))
