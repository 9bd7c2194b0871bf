"""What a worker's loader holds in memory, over as many images as a worker takes in an hour.

    uv run benchmarks/loader_memory.py --data "/data/imagenet/train-*.parquet" --images 100000
    uv run benchmarks/loader_memory.py --images 1500000

Epoch after epoch is read, decoded, cut and normalized on one worker, without training. Without `--data` small images
are generated, so that a million and a half of them, an hour's worth for a GPU that trains ResNet-50 on 400 images/s,
take minutes. Prints the memory that is the process's own (anonymous; mapped files are the kernel's) as it goes, and its
growth over the second half.
"""

import gc
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import harness
import subject
import torch

from dist_resnet.data.prepare.demo import write_demo
from dist_resnet.recipe import Cache, Execution

PARTS = 20
GENERATED = 20_000


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    data: str | None = None  # Glob, folder or URI of shards; by default 20,000 generated images.
    size: int | None = None  # Side of the crops; by default 224, and 24 of generated images.
    images: int = harness.sized(1_500_000, quick=2000)  # Images that are read in all.
    ghost_batches: int = 8
    cache: str | None = None  # Folder for --execution.cache.folder.


def measure(options: Options) -> Iterator[str]:
    """The memory at every twentieth part."""
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or generated(folder, min(GENERATED, options.images))
        held: list[float] = []
        rows = watched(data, options.size or (224 if options.data else 24), options, held)
        yield from harness.table({"images": "", "own memory, MB": ".1f", "images/s so far": ".0f"}, rows)
    growth = max(held[len(held) // 2 :]) - max(held[: len(held) // 2])
    yield f"\nGrowth of the greatest value from the first half to the second: {growth:+.1f} MB"


def generated(folder: str, images: int) -> str:
    """Shards of generated images of 32 x 32."""
    return write_demo(folder, size=32, train_images=images, validation_images=10, seed=0)[0]


def watched(data: str, size: int, options: Options, held: list[float]) -> Iterator[tuple[float, ...]]:
    """A row at every twentieth part, whose memory is added to `held`."""
    recipe = subject.imagenet_recipe(data, size=size, ghost_batches=options.ghost_batches)
    execution = Execution(cpus_per_worker=torch.get_num_threads(), cache=Cache(folder=options.cache))
    images = subject.training_images(recipe, execution, subject.CPU)
    seen, begin = 0, time.perf_counter()
    for count in subject.step_sizes(images):
        seen += count
        if seen >= options.images * (len(held) + 1) / PARTS:
            held.append(own_megabytes())
            yield seen, held[-1], seen / (time.perf_counter() - begin)
        if seen >= options.images:
            break
    images.close()


def own_megabytes() -> float:
    """The memory of this process that no file backs."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000


if __name__ == "__main__":
    harness.main(measure, Options, __doc__)
