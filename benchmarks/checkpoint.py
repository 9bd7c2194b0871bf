"""How long a checkpoint stops the training loop: ours, written beside it, and a synchronous torch.save.

    uv run benchmarks/checkpoint.py
    uv run benchmarks/checkpoint.py --depth 50 --size 64 --batch 8 --steps 20

Trains the model on random images; in turn, within each round, with no checkpoint, with ours in mid-round and with
`torch.save` of the same state in mid-round. The stall is what the call takes. The whole round takes longer than the one
without, too: the writing thread uses cores and memory that the step wants.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import harness
import subject
import torch
from clock import timed

from dist_resnet.recipe import Execution
from dist_resnet.tracking.recorder import Recorder
from dist_resnet.tracking.run_directory import RunDirectory
from dist_resnet.train.state import TrainState
from dist_resnet.train.writer import CheckpointWriter

COLUMNS = {"": "", "the call, s": ".3f", "steps": ".2f", "the round longer by, s": ".3f", "by steps": ".2f"}
Round = tuple[float, float]
"""Seconds that the checkpoint's call takes, and that the steps take."""


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    depth: int = harness.sized(200, quick=50)
    size: int = harness.sized(64, quick=32)  # Side of the images.
    batch: int = harness.sized(16, quick=2)  # Images in a step.
    steps: int = harness.sized(4, quick=2)  # Steps in a round; the checkpoint comes after the first.
    rounds: int = harness.sized(5, quick=1)


def measure(options: Options) -> Iterator[str]:
    """The stalls in seconds and in steps."""
    recipe = subject.imagenet_recipe(depth=options.depth, size=options.size, batch=options.batch)
    step, state = subject.step_on_random_images(recipe, Execution(precision="bf16"))
    step()
    size = sum(tensor.nbytes for part in (state.weights(), state.slots()) for tensor in part.values())
    with tempfile.TemporaryDirectory() as folder:
        found = rounds(options, step, state, Path(folder))
    one = statistics.median(seconds for _, seconds in found["none"]) / options.steps
    yield f"A state of {size / 1e6:.0f} MB; a step takes {one:.3f} s.\n"
    rows = []
    for name in ("ours", "torch.save"):
        stall = statistics.median(stall for stall, _ in found[name])
        extra = statistics.median(own - bare for (_, own), (_, bare) in zip(found[name], found["none"], strict=True))
        rows.append((name, stall, stall / one, extra, extra / one))
    yield from harness.table(COLUMNS, rows)


def rounds(options: Options, step: Callable[[], object], state: TrainState, folder: Path) -> dict[str, list[Round]]:
    """Rounds of steps by what is called after the first step."""
    directory = RunDirectory(str(folder))
    directory.write("recipe.json", b"{}")
    run = Recorder.of_rank(0, directory)
    writer = CheckpointWriter(directory, run, keep=1, patience_seconds=60, errors={})

    def plain() -> None:
        everything = {"model": state.model.state_dict(), "optimizer": state.optimizer.state_dict()}
        torch.save(everything, folder / "plain.pt")

    def round_of(act: Callable[[], object]) -> Round:
        first = timed(step, subject.wait)
        stall = timed(act)
        others = timed(lambda: [step() for _ in range(options.steps - 1)], subject.wait)
        writer.wait(lambda: None)
        return stall, first + stall + others

    acts: dict[str, Callable[[], object]] = {
        "none": lambda: None,
        "ours": lambda: writer.save(state),
        "torch.save": plain,
    }
    try:
        contestants = {name: lambda act=act: round_of(act) for name, act in acts.items()}
        return harness.interleaved(contestants, options.rounds, warm_up=1)
    finally:
        writer.close()
        run.close()


if __name__ == "__main__":
    harness.main(measure, Options, __doc__)
