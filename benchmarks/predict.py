"""Prediction of a folder of images beside torchvision with a DataLoader.

    python benchmarks/predict.py --data '/data/imagenet/train-*.parquet' --result predict.md
    python benchmarks/predict.py --data '/data/cifar10/test-*.parquet' --depth 20 --images 2000

All read the same image files, cut the center crop and classify it with a network of the same shape and random weights,
on the CPU. `jobs/predict.py` has a worker for each core under Ray, which has started before the first round; the
DataLoader has a process for each core beside the network's process, and keeps them. With 50 layers or more the others'
network is torchvision's, with fewer it is this package's. Rounds are interleaved, and each takes every image once; the
start of Ray and the workers is a line of its own.
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import harness
import subject
import torch
from clock import timed
from PIL import Image
from torchvision import models
from torchvision.transforms import v2

from dist_resnet.data.shards.reader import ShardReader
from dist_resnet.data.shards.split import open_split
from dist_resnet.data.unlabeled.find import find_images
from dist_resnet.data.unlabeled.images import cut
from dist_resnet.launch.prediction import options as prediction
from dist_resnet.launch.progress import ImageProgress
from dist_resnet.launch.ray import predict
from dist_resnet.launch.trained import Trained
from dist_resnet.model import build_model
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.train.loop import create_state

Round = tuple[float]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    data: str  # Glob or folder of local Parquet shards, whose images are written as files first.
    depth: int = harness.sized(50, quick=20)
    images: int = harness.sized(128, quick=16)
    rounds: int = harness.sized(3, quick=1)
    batch: int = harness.sized(64, quick=8)
    threads: int = os.cpu_count() or 1  # Workers under Ray, processes of the DataLoader, and threads of its network.


def measure(options: Options) -> Iterator[str]:
    """A row for each way to classify the folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        megabytes = write_files(options, folder) / 1e6
        yield f"{options.images} files of {megabytes / options.images * 1000:.0f} kB on average.\n"
        recipe = recipe_of(options)
        contestants: dict[str, Callable[[], Round]] = {}
        started = timed(lambda: contestants.update(ours(options, recipe, folder)))
        contestants |= others(options, recipe, folder)
        found = harness.interleaved(contestants, options.rounds, warm_up=1)
        yield from harness.comparison(found, {"images/s": ".1f"}, *list(contestants)[1:2])
        yield f"\nRay and its workers took {started:.0f} s to start."


def write_files(options: Options, folder: Path) -> int:
    """Writes the first images of the shards as files, and returns their bytes."""
    reader, images = ShardReader(open_split(options.data)), []
    for number in range(reader.split.num_row_groups):
        if len(images) < options.images:
            images += reader.read(number).images
    for number, image in enumerate(images[: options.images]):
        (folder / f"{number:06d}.jpg").write_bytes(image.tobytes())
    return sum(len(image) for image in images[: options.images])


def recipe_of(options: Options) -> Recipe:
    """ImageNet's network of 50 layers or more, else CIFAR's."""
    if options.depth >= 50:
        return subject.imagenet_recipe(depth=options.depth)
    return subject.cifar_recipe(depth=options.depth, batch=64)


def ours(options: Options, recipe: Recipe, folder: Path) -> dict[str, Callable[[], Round]]:
    """What jobs/predict.py does, once its workers have started."""
    state = create_state(recipe, Execution(), subject.worker(subject.CPU))
    asked = prediction.Options(
        images=(str(folder),), model="", output="", device="cpu", workers=options.threads, batch=options.batch
    )
    model = predict.prepare_model(Trained(recipe=recipe, read_weights=state.weights), asked)
    settled = predict.settle(asked, most=options.threads)
    shared = predict.share(state.weights())
    workers = predict.start_workers(settled, model, shared, most=options.threads)

    def act() -> None:
        assert shared  # kept while the workers may start again
        images, _ = find_images([str(folder)])
        per_block = max(options.batch, -(-options.images // (8 * options.threads)))
        blocks = list(enumerate(cut(images, per_block)))
        for _, answers in predict.answers_of(workers, blocks, ImageProgress()):
            assert not any(part.errors for part in answers)

    return {"dist_resnet, jobs/predict.py": lambda: (options.images / timed(act),)}


def others(options: Options, recipe: Recipe, folder: Path) -> dict[str, Callable[[], Round]]:
    """A script as people write it, in both memory formats, and its network alone."""
    network = models.get_model(f"resnet{options.depth}") if options.depth >= 50 else build_model(recipe.model)
    loader = torch.utils.data.DataLoader(
        _Files(folder, recipe),
        options.batch,
        num_workers=options.threads,
        persistent_workers=True,
        # A fork of a process that uses Ray is not safe.
        multiprocessing_context="spawn",
    )
    whose = "torchvision" if options.depth >= 50 else "the same network"
    crop = recipe.evaluation.crops[0]
    ready = [torch.randn(options.batch, 3, crop, crop) for _ in range(max(1, options.images // options.batch))]

    def turn(batches: Iterable[torch.Tensor], images: int, form: torch.memory_format) -> Round:
        return (images / timed(lambda: classify(network, form, options.threads, batches)),)

    last = torch.channels_last
    return {
        f"{whose}, DataLoader": lambda: turn(loader, options.images, torch.contiguous_format),
        f"{whose}, DataLoader, channels last": lambda: turn(loader, options.images, last),
        "its network alone, channels last": lambda: turn(ready, len(ready) * options.batch, last),
    }


@torch.inference_mode()
def classify(
    network: torch.nn.Module, form: torch.memory_format, threads: int, batches: Iterable[torch.Tensor]
) -> None:
    """The five best classes of every image."""
    torch.set_num_threads(threads)
    network = network.eval().to(memory_format=form)
    for batch in batches:
        network(batch.to(memory_format=form)).softmax(1).topk(5)


class _Files(torch.utils.data.Dataset):
    """Image files, decoded by PIL and cut by torchvision's transforms."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self._files = sorted(folder.iterdir())
        crop, side = recipe.evaluation.crops[0], recipe.evaluation.shorter_sides[0]
        self._transform = v2.Compose(
            [
                v2.PILToTensor(),
                v2.Resize(side, antialias=True),
                v2.CenterCrop(crop),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self._files[index]) as image:
            return self._transform(image.convert("RGB"))


if __name__ == "__main__":
    harness.main(measure, Options, __doc__)
