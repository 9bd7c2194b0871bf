"""Images per second of a training step: the loop's beside the bare model's, and under Ray Train beside without Ray.

    uv run benchmarks/step.py bare --depth 50 --size 64 --batch 32
    uv run benchmarks/step.py bare --depth 152 --batch 128 256 --peers torchvision.resnet152 timm.resnetv2_152
    uv run benchmarks/step.py ray --depth 20 --steps 60

`bare` times, in turn within each round, the loop's step (one ghost batch), the same model in a plain loop, and the
peers named, all with the same precision, memory format and compilation. `ray` trains the same recipe on generated
pictures with and without Ray, alternating, and compares the journals' step times. Medians over rounds are printed.
"""

import argparse
import contextlib
import dataclasses
import importlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from dist_resnet.data.input.batch import Batch
from dist_resnet.model import build_model
from dist_resnet.model.complexity import measure
from dist_resnet.recipe import Augment, Data, Evaluation, Execution, Model, Performance, Recipe
from dist_resnet.train.loop import create_state
from dist_resnet.train.precision import autocast
from dist_resnet.train.step import TrainStep
from dist_resnet.worker import Worker


def main() -> None:
    """Reads the options and runs one of the two comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    bare = commands.add_parser("bare", help="the loop's step beside the bare model's")
    bare.set_defaults(run=compare_with_bare)
    bare.add_argument("--size", type=int, default=224, help="side of the pictures")
    bare.add_argument("--batch", type=int, nargs="+", default=[32], help="pictures per step; one comparison each")
    bare.add_argument("--peers", nargs="*", default=[], help="torchvision.NAME or timm.NAME, measured the same way")
    bare.add_argument("--compile", action="store_true", help="torch.compile, on all alike")
    under_ray = commands.add_parser("ray", help="the loop under Ray Train beside the loop without Ray")
    under_ray.set_defaults(run=compare_with_ray)
    under_ray.add_argument("--workers", type=int, default=2)
    for command, steps in ((bare, 5), (under_ray, 60)):
        command.add_argument("--depth", type=int, default=50)
        command.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
        command.add_argument("--rounds", type=int, default=5)
        command.add_argument("--steps", type=int, default=steps, help="steps in a round")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {_device_name()}, {vars(options)}")
    options.run(options)


def compare_with_bare(options: argparse.Namespace) -> None:
    """Prints images/s of each contestant, their ratios, and what they reach of the card's arithmetic and memory."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classes = 1000
    macs = measure(Model(depth=options.depth, num_classes=classes), options.size).multiply_adds
    for batch in options.batch:
        steps: dict[str, Callable[[], object]] = {"loop": _loop_step(options, batch, device, classes)}
        bare = build_model(Model(depth=options.depth, num_classes=classes))
        steps["bare"] = _bare_step(bare, options, batch, device, classes)
        for peer in options.peers:
            library, name = peer.split(".", 1)
            steps[peer] = _bare_step(_peer(library, name), options, batch, device, classes)
        seconds = _interleaved(steps, options.rounds, options.steps, device)
        for name, times in seconds.items():
            rate = batch * options.steps / statistics.median(times)
            ratio = statistics.median(base / own for base, own in zip(seconds["bare"], times, strict=True))
            flops = f", {6 * macs * rate / 1e12:.2f} TFLOP/s" if name in ("loop", "bare") else ""
            print(f"batch {batch:4d} {name:24s} {rate:10.1f} images/s, {ratio:.3f} of bare{flops}")
        if device.type == "cuda":
            print(f"peak memory of all together: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


def compare_with_ray(options: argparse.Namespace) -> None:
    """Prints images/s with and without Ray from the journals of whole runs, the first tenth of each left out."""
    from dist_resnet.data.prepare.demo import write_demo
    from dist_resnet.launch import local
    from dist_resnet.launch.ray import train as ray_train
    from dist_resnet.tracking.journal import history, read_journal

    rates: dict[str, list[float]] = {"local": [], "ray": []}
    with tempfile.TemporaryDirectory() as folder:
        train, validation = write_demo(
            f"{folder}/pictures", size=32, num_classes=10, train_images=1280, validation_images=40, seed=0
        )
        recipe = Recipe(
            model=Model(depth=options.depth, num_classes=10),
            data=Data(train=train, validation=validation, dataset="cifar10"),
            augment=Augment(kind="pad", size=32),
            evaluation=Evaluation(crops=(32,), shorter_sides=(32,), every_epochs=1000),
            epochs=options.steps / 10,
            global_batch=128,
            ghost_batch=64,
        )
        execution = Execution(
            workers=options.workers, cpus_per_worker=1, storage=f"{folder}/runs", precision=options.precision
        )
        for round_number in range(options.rounds):
            for name, engine in (("local", local), ("ray", ray_train)):
                plan = engine.prepare_run(
                    recipe, dataclasses.replace(execution, name=f"{name}-{round_number}"), job="step"
                )
                engine.run(plan)
                points = history(read_journal(plan.directory))["time/step_seconds"]
                times = [value for step, _, value in points if step > options.steps // 10]
                rates[name].append(recipe.global_batch * len(times) / sum(times))
    for name, values in rates.items():
        print(f"{name:6s} {statistics.median(values):10.1f} images/s, rounds {[round(value, 1) for value in values]}")
    ratio = statistics.median(ray / alone for ray, alone in zip(rates["ray"], rates["local"], strict=True))
    print(f"Ray over no Ray: {ratio:.3f}")


def _loop_step(options: argparse.Namespace, batch: int, device: torch.device, classes: int) -> Callable[[], object]:
    recipe = Recipe(
        model=Model(depth=options.depth, num_classes=classes),
        data=Data(train="none", validation="none"),
        augment=Augment(size=options.size, shorter_side=(options.size, options.size)),
        global_batch=batch,
        ghost_batch=batch,
    )
    execution = Execution(
        precision=options.precision, performance=Performance(compile=options.compile, deterministic=False)
    )
    worker = Worker(rank=0, world_size=1, device=device)
    step = TrainStep(recipe, execution, worker, create_state(recipe, execution, worker))
    images, labels = _pictures(batch, options.size, device, classes)
    pictures = Batch(images, labels, np.arange(batch), 0, torch.ones(batch, device=device))
    return lambda: step([pictures], 0.01)


def _bare_step(
    model: torch.nn.Module, options: argparse.Namespace, batch: int, device: torch.device, classes: int
) -> Callable[[], object]:
    model = model.to(device).to(memory_format=torch.channels_last).train()
    if options.compile:
        model.compile()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)
    execution = Execution(precision=options.precision)
    images, labels = _pictures(batch, options.size, device, classes)

    def step() -> None:
        with autocast(execution, device):
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _peer(library: str, name: str) -> torch.nn.Module:
    if library == "timm":
        return importlib.import_module("timm").create_model(name)
    return getattr(importlib.import_module(f"{library}.models"), name)()


def _pictures(batch: int, size: int, device: torch.device, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    return images, torch.randint(0, classes, (batch,), device=device)


def _interleaved(
    steps: dict[str, Callable[[], object]], rounds: int, count: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds for `count` steps, per contestant and round; a warm-up goes before."""
    wait = torch.cuda.synchronize if device.type == "cuda" else contextlib.nullcontext
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(rounds + 1):
        for name, step in steps.items():
            wait()
            start = time.perf_counter()
            for _ in range(count):
                step()
            wait()
            if round_number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
