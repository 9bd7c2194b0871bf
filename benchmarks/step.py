"""Images per second of a training step: the loop's beside the bare model's, and under Ray Train beside without Ray.

    uv run benchmarks/step.py bare --depth 50 --size 64 --batch 32
    uv run benchmarks/step.py bare --depth 152 --batch 128 256 --peers torchvision.resnet152 timm.resnetv2_152
    uv run benchmarks/step.py bare --depth 20 --size 32 --batch 64 --ghosts 2 --together 2
    uv run benchmarks/step.py ray --depth 20 --steps 60

`bare` times, in turn within each round, the loop's step, the same model in a plain loop, and the peers named, all with
the same precision, memory format and compilation. With --ghosts, a step of the loop has several such ghost batches, and
one of the others as many images. `ray` trains the same recipe on generated images with and without Ray, alternating,
and compares the journals' step times. Medians over rounds are given.
"""

import dataclasses
import functools
import importlib
import statistics
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Literal

import harness
import subject
import torch
import torch.nn.functional as F
import tyro
from clock import timed

from dist_resnet.model import build_model
from dist_resnet.model.complexity import measure as count
from dist_resnet.recipe import Execution, Model, Performance, Recipe
from dist_resnet.tracking.journal import history, read_journal
from dist_resnet.train.graphs import GraphedPass, Pass
from dist_resnet.train.precision import autocast

CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class Bare(harness.Options):
    """The loop's step beside the bare model's."""

    depth: int = 50
    size: int = harness.sized(224, quick=32)  # Side of the images.
    batch: tuple[int, ...] = harness.sized((32,), quick=(2,))  # Images per ghost batch; one comparison each.
    ghosts: int = harness.sized(1, quick=2)  # Ghost batches of so many images in a step of the loop.
    together: tuple[int, ...] = harness.sized((), quick=(2,))  # Also the loop with so many ghost batches in a pass.
    peers: tuple[str, ...] = ()  # torchvision.NAME or timm.NAME, measured the same way.
    compile: bool = False  # torch.compile, on all alike.
    cuda_graphs: bool = False  # Forward and backward pass as a CUDA graph, on all alike; the CPU has none.
    precision: Literal["bf16", "fp32"] = "bf16"
    rounds: int = harness.sized(5, quick=1)
    steps: int = harness.sized(5, quick=1)  # Steps in a round.


@dataclass(frozen=True, kw_only=True)
class UnderRay(harness.Options):
    """The loop under Ray Train beside the loop without Ray."""

    depth: int = harness.sized(50, quick=8)
    workers: int = harness.sized(2, quick=1)
    precision: Literal["bf16", "fp32"] = "bf16"
    rounds: int = harness.sized(5, quick=1)
    steps: int = harness.sized(60, quick=10)  # Steps in a round.


Options = Annotated[Bare, tyro.conf.subcommand("bare")] | Annotated[UnderRay, tyro.conf.subcommand("ray")]


def measure(options: Bare | UnderRay) -> Iterator[str]:
    """One of the two comparisons."""
    return compare_with_bare(options) if isinstance(options, Bare) else compare_with_ray(options)


def compare_with_bare(options: Bare) -> Iterator[str]:
    """Images/s of each contestant, their ratios, and what they reach of the machine's arithmetic."""
    multiply_adds = count(Model(depth=options.depth, num_classes=CLASSES), options.size).multiply_adds
    for batch in options.batch:
        model = build_model(Model(depth=options.depth, num_classes=CLASSES))
        images = batch * options.ghosts
        steps = {"loop": loop_step(options, batch, options.ghosts), "bare": bare_step(model, options, images)}
        for together in options.together:
            steps[f"loop, {together} in a pass"] = loop_step(options, batch, options.ghosts, together)
        steps |= {name: bare_step(peer(name), options, images) for name in options.peers}
        turns = {name: functools.partial(steps_rate, step, images, options.steps) for name, step in steps.items()}
        found = harness.interleaved(turns, options.rounds, warm_up=1)
        yield f"{options.ghosts} ghost batches of {batch}:\n"
        yield from harness.comparison(found, {"images/s": ".1f"}, "bare")
        rate = statistics.median(rate for (rate,) in found["loop"])
        yield f"\nThe loop reaches {6 * multiply_adds * rate / 1e12:.2f} TFLOP/s."
        if torch.cuda.is_available():
            yield f"\nPeak memory of all together: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"


def steps_rate(step: Callable[[], object], batch: int, count: int) -> tuple[float]:
    """Images/s of so many steps."""
    return (batch * count / timed(lambda: [step() for _ in range(count)], subject.wait),)


def loop_step(options: Bare, batch: int, ghost_batches: int = 1, ghosts_per_pass: int = 1) -> Callable[[], object]:
    """The loop's step."""
    recipe = subject.imagenet_recipe(depth=options.depth, size=options.size, batch=batch, ghost_batches=ghost_batches)
    performance = Performance(
        compile=options.compile,
        cuda_graphs=options.cuda_graphs,
        deterministic=False,
        ghosts_per_pass=ghosts_per_pass,
    )
    execution = Execution(precision=options.precision, performance=performance)
    return subject.step_on_random_images(recipe, execution)[0]


def bare_step(model: torch.nn.Module, options: Bare, batch: int) -> Callable[[], object]:
    """A plain loop's step."""
    device = subject.DEVICE
    model = model.to(device).to(memory_format=torch.channels_last).train()
    if options.compile:
        model.compile()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)
    execution = Execution(precision=options.precision)
    images, labels = subject.random_images(batch, options.size, CLASSES)
    is_graphed = options.cuda_graphs and device.type == "cuda"

    def forward_backward(images: torch.Tensor, labels: torch.Tensor) -> Iterator[torch.Tensor]:
        with autocast(execution, device):
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        yield loss.detach()

    run = graphed(forward_backward, model, images, labels) if is_graphed else forward_backward

    def step() -> None:
        for _ in run(images, labels):
            pass
        optimizer.step()
        optimizer.zero_grad(set_to_none=not is_graphed)

    return step


def graphed(run: Pass, model: torch.nn.Module, *inputs: torch.Tensor) -> GraphedPass:
    """A model's forward and backward pass as a CUDA graph, recorded as the loop records its own."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return GraphedPass(run, *inputs)


def peer(name: str) -> torch.nn.Module:
    """The model torchvision.NAME or timm.NAME."""
    library, name = name.split(".", 1)
    if library == "timm":
        return importlib.import_module("timm").create_model(name)
    return getattr(importlib.import_module(f"{library}.models"), name)()


def compare_with_ray(options: UnderRay) -> Iterator[str]:
    """Images/s with and without Ray from the journals of whole runs, the first tenth of each left out."""
    from dist_resnet.launch import local
    from dist_resnet.launch.ray import train as ray_train

    with tempfile.TemporaryDirectory() as folder:
        recipe = subject.demo_recipe(f"{folder}/images", depth=options.depth, epochs=options.steps / 10)
        execution = Execution(
            workers=options.workers, cpus_per_worker=1, storage=f"{folder}/runs", precision=options.precision
        )
        turns = {
            name: functools.partial(run_rate, engine, recipe, execution)
            for name, engine in (("without Ray", local), ("under Ray Train", ray_train))
        }
        found = harness.interleaved(turns, options.rounds)
    yield from harness.comparison(found, {"images/s": ".1f"}, "without Ray")


def run_rate(engine: ModuleType, recipe: Recipe, execution: Execution) -> tuple[float]:
    """Images/s of a whole run, from its journal, the first tenth left out."""
    plan = engine.prepare_run(recipe, dataclasses.replace(execution, name=uuid.uuid4().hex), job="step")
    engine.run(plan)
    points = history(read_journal(plan.directory))["time/step_seconds"]
    times = [value for step, _, value in points if step > points[-1][0] // 10]
    return (recipe.global_batch * len(times) / sum(times),)


if __name__ == "__main__":
    harness.main(measure, Options, __doc__)
