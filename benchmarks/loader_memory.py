"""What a worker's loader holds in memory, over as many pictures as a worker takes in an hour.

    uv run benchmarks/loader_memory.py --data "/data/imagenet/train-*.parquet" --pictures 100000
    uv run benchmarks/loader_memory.py --pictures 1500000

Epoch after epoch is read, decoded, cut and normalised on one worker, without training. Without `--data` small pictures
are generated, so that a million and a half of them, an hour's worth for a GPU that trains ResNet-50 on 400 pictures/s,
take minutes. Prints the memory that is the process's own (anonymous; mapped files are the kernel's) as it goes, and its
growth over the second half.
"""

import argparse
import gc
import platform
import tempfile
import time
from pathlib import Path

import torch

from dist_resnet.data.input.decoders import InputOptions
from dist_resnet.data.loader import TrainingImages
from dist_resnet.data.prepare.demo import write_demo
from dist_resnet.data.shards.split import open_split
from dist_resnet.recipe import Augment, Cache, Data, Execution, Model, Recipe
from dist_resnet.worker import Worker


def main() -> None:
    """Reads the options, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="glob, folder or URI of shards; by default 20,000 generated pictures")
    parser.add_argument("--size", type=int, help="side of the crops; by default 224, and 24 of generated pictures")
    parser.add_argument("--pictures", type=int, default=1_500_000)
    parser.add_argument("--ghost-batches", type=int, default=8)
    parser.add_argument("--cache", help="folder for --execution.cache.folder")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {vars(options)}")
    with tempfile.TemporaryDirectory() as folder:
        data, size = options.data, options.size or 224
        if data is None:
            data, _ = write_demo(folder, size=32, num_classes=10, train_images=20_000, validation_images=10, seed=0)
            size = options.size or 24
        watch(data, size, options)


def watch(data: str, size: int, options: argparse.Namespace) -> None:
    """Prints the memory at every twentieth part."""
    split = open_split(data)
    recipe = Recipe(
        model=Model(depth=50, num_classes=split.label_range[1] + 1),
        data=Data(train=data, validation=data),
        augment=Augment(kind="inception", size=size),
        global_batch=32 * options.ghost_batches,
        ghost_batch=32,
    )
    execution = Execution(cpus_per_worker=torch.get_num_threads(), cache=Cache(folder=options.cache))
    worker = Worker(rank=0, world_size=1, device=torch.device("cpu"))
    images = TrainingImages(recipe, split, worker, InputOptions.of(execution))
    seen, epoch, held, begin = 0, 0, [], time.perf_counter()
    while seen < options.pictures:
        for step in images.epoch(epoch):
            seen += sum(len(batch.labels) for batch in step)
            if seen >= options.pictures * (len(held) + 1) / 20:
                held.append(_megabytes())
                rate = seen / (time.perf_counter() - begin)
                print(f"{seen:9d} pictures, epoch {epoch:4d}: {held[-1]:7.1f} MB, {rate:.0f} pictures/s", flush=True)
        epoch += 1
    images.close()
    growth = max(held[10:]) - max(held[:10])
    print(f"growth of the greatest value from the first half to the second: {growth:+.1f} MB")


def _megabytes() -> float:
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000


if __name__ == "__main__":
    main()
