"""How long a checkpoint stops the training loop: ours, written beside it, and a synchronous torch.save.

    uv run benchmarks/checkpoint.py
    uv run benchmarks/checkpoint.py --depth 50 --size 64 --batch 8 --steps 20

Trains the model on random pictures; in turn, within each round, with no checkpoint, with ours in mid-round and with
`torch.save` of the same state in mid-round. The stall is what the call takes; besides it is told how much longer the
whole round takes than the one without, for the writing thread uses cores and memory that the step wants too.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dist_resnet.data.input.batch import Batch
from dist_resnet.recipe import Augment, Data, Execution, Model, Recipe
from dist_resnet.tracking.recorder import Run
from dist_resnet.tracking.run_directory import RunDirectory
from dist_resnet.train.loop import create_state
from dist_resnet.train.step import TrainStep
from dist_resnet.train.writer import CheckpointWriter
from dist_resnet.worker import Worker


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=200)
    parser.add_argument("--size", type=int, default=64, help="side of the pictures")
    parser.add_argument("--batch", type=int, default=16, help="pictures in a step")
    parser.add_argument("--steps", type=int, default=4, help="steps in a round; the checkpoint comes after the first")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    worker = Worker(rank=0, world_size=1, device=device)
    recipe = Recipe(
        model=Model(depth=options.depth, num_classes=1000),
        data=Data(train="none", validation="none"),
        augment=Augment(size=options.size, shorter_side=(options.size, options.size)),
        global_batch=options.batch,
        ghost_batch=options.batch,
    )
    execution = Execution(precision="bf16")
    state = create_state(recipe, execution, worker)
    step = TrainStep(recipe, execution, worker, state)
    images = torch.randn(options.batch, 3, options.size, options.size, device=device)
    images = images.to(memory_format=torch.channels_last)
    batch = Batch(
        images,
        torch.arange(options.batch, device=device) % 1000,
        np.arange(options.batch),
        0,
        torch.ones(options.batch, device=device),
    )
    step([batch], 0.01)
    size = sum(tensor.nbytes for part in (state.weights(), state.slots()) for tensor in part.values())
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {name}, {vars(options)}")
    print(f"state of {size / 1e6:.0f} MB")

    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(folder)
        directory.write("recipe.json", b"{}")
        run = Run.of_rank(0, directory)
        writer = CheckpointWriter(directory, run, keep=1, patience_seconds=60, errors={})

        def plain() -> None:
            everything = {"model": state.model.state_dict(), "optimizer": state.optimizer.state_dict()}
            torch.save(everything, Path(folder, "plain.pt"))

        acts: dict[str, Callable[[], object]] = {
            "none": lambda: None,
            "ours": lambda: writer.save(state),
            "torch.save": plain,
        }
        stalls: dict[str, list[float]] = {act: [] for act in acts}
        rounds: dict[str, list[float]] = {act: [] for act in acts}
        for number in range(options.rounds + 1):
            for act, call in acts.items():
                stall, seconds = _round(lambda: step([batch], 0.01), call, options.steps, device)
                writer.wait(lambda: None)
                if number:
                    stalls[act].append(stall)
                    rounds[act].append(seconds)
        writer.close()
        run.close()
    one = statistics.median(rounds["none"]) / options.steps
    print(f"a step takes {one:.3f} s")
    for act in ("ours", "torch.save"):
        extra = statistics.median(own - base for own, base in zip(rounds[act], rounds["none"], strict=True))
        stall = statistics.median(stalls[act])
        print(
            f"{act:12s} stall {stall:.3f} s = {stall / one:.2f} steps, whole round longer by {extra:.3f} s = "
            f"{extra / one:.2f} steps"
        )


def _round(
    step: Callable[[], object], act: Callable[[], object], steps: int, device: torch.device
) -> tuple[float, float]:
    """Seconds that `act` takes after the first step, and that the whole round takes."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    step()
    wait()
    before = time.perf_counter()
    act()
    stall = time.perf_counter() - before
    for _ in range(steps - 1):
        step()
    wait()
    return stall, time.perf_counter() - start


if __name__ == "__main__":
    main()
