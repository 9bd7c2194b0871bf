"""torch.compile by unit. Oracle: the eager steps, and the compilations that a backend of the test is asked for."""

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dist_resnet.data.input.batch import Batch
from dist_resnet.recipe import Execution, Model, Performance, Recipe
from dist_resnet.train import compiled
from dist_resnet.train.loop import create_state
from dist_resnet.train.state import TrainState
from dist_resnet.train.step import TrainStep
from dist_resnet.worker import Worker

_WORKER = Worker(rank=0, world_size=1, device=torch.device("cpu"))


def _trained(recipe: Recipe, execution: Execution, **performance: Any) -> TrainState:
    execution = dataclasses.replace(execution, performance=Performance(**performance))
    state = create_state(recipe, execution, _WORKER)
    take = TrainStep(recipe, execution, _WORKER, state)
    drawn = torch.Generator().manual_seed(1)
    for _ in range(2):
        batches = [
            Batch(
                images=torch.randn(8, 3, 32, 32, generator=drawn).to(memory_format=torch.channels_last),
                labels=torch.randint(0, 4, (8,), generator=drawn),
                indices=np.arange(8),
                ghost=ghost,
                weights=torch.ones(8),
            )
            for ghost in range(2)
        ]
        take(batches, 0.05)
    return state


@pytest.fixture
def two(recipe: Recipe) -> Recipe:
    """ResNet-20 in two ghost batches."""
    return dataclasses.replace(recipe, model=Model(depth=20, num_classes=4), global_batch=16)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """The graphs that were compiled, by a backend that runs them as they are."""
    asked: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        asked.append(graph)
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=keep))
    return asked


def test_units_of_one_shape_share_a_compilation_and_evaluation_needs_none(two: Recipe, execution: Execution, backend):
    plain = _trained(two, execution)
    assert not backend
    state = _trained(two, execution, compile=True)
    # Stem, head, and of three stages the first unit and the others.
    assert len(backend) == 2 + 3 * 2
    with torch.no_grad():
        state.model.eval()(torch.randn(5, 3, 32, 32))
    assert len(backend) == 8
    assert list(state.weights()) == list(plain.weights())
    for name, tensor in plain.weights().items():
        torch.testing.assert_close(tensor, state.weights()[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("deterministic", [True, False])
def test_only_deterministic_runs_on_gpus_compile_without_timing_kernels(execution: Execution, deterministic: bool):
    execution = dataclasses.replace(execution, performance=Performance(deterministic=deterministic))
    expected = {"deterministic": True} if deterministic else {}
    assert compiled.options(execution, torch.device("cuda", 0)) == expected
    assert compiled.options(execution, torch.device("cpu")) == {}
    assert "deterministic" in torch._inductor.list_options()


_SCRIPT = """
import hashlib, json, sys, torch
from dist_resnet.recipe import Execution, Performance, Recipe
from dist_resnet.train.loop import create_state
from dist_resnet.train.step import TrainStep
from dist_resnet.worker import Worker

torch.set_num_threads(1)
recipe = Recipe.from_dict(json.loads(sys.stdin.read()))
worker = Worker(rank=0, world_size=1, device=torch.device("cpu"))
gradients = []
for compile in (False, True):
    execution = Execution(performance=Performance(compile=compile))
    state = create_state(recipe, execution, worker)
    take = TrainStep(recipe, execution, worker, state)
    state.model.train()
    drawn = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 32, 32, generator=drawn).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 4, (8,), generator=drawn)
    (totals,) = take._forward_backward(images, labels, torch.ones(8))
    gradients.append(torch.cat([one.grad.reshape(-1) for one in state.model.parameters()] + [totals.float()]))
eager, own = gradients
worst = ((own - eager).abs().max() / eager.abs().max()).item()
print(json.dumps([worst, hashlib.sha256(own.numpy().tobytes()).hexdigest()]))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler (g++) on the CPU")
def test_inductor_gives_the_eager_gradients_and_the_same_bits_in_two_processes(two: Recipe, tmp_path: Path):
    """Each process compiles anew. Tolerance: 1e-5 of the largest gradient, about a hundred roundings of fp32."""
    small, found = dataclasses.replace(two, model=Model(depth=8, num_classes=4)), []
    for number in range(2):
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT],
            input=json.dumps(small.to_dict()),
            env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / str(number))},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert found[0] == found[1]
    assert found[0][0] < 1e-5
