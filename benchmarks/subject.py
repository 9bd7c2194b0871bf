"""What of the package is measured: its loader and its training step, on one worker without Ray."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch

from dist_resnet.data.input.batch import Batch
from dist_resnet.data.input.decoders import InputOptions
from dist_resnet.data.loader import TrainingImages
from dist_resnet.data.prepare.demo import write_demo
from dist_resnet.data.shards.split import open_split
from dist_resnet.recipe import Augment, Data, Evaluation, Execution, Model, Recipe
from dist_resnet.train.loop import create_state
from dist_resnet.train.state import TrainState
from dist_resnet.train.step import TrainStep
from dist_resnet.worker import Worker

LEARNING_RATE = 0.01


def device() -> torch.device:
    """The GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait() -> None:
    """Returns once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def worker(on: torch.device | None = None) -> Worker:
    """The only worker, by default on the GPU, if there is one."""
    return Worker(rank=0, world_size=1, device=on or device())


def imagenet_recipe(
    data: str = "none",
    *,
    depth: int = 50,
    classes: int = 1000,
    size: int = 224,
    batch: int = 32,
    ghost_batches: int = 1,
) -> Recipe:
    """ImageNet's training at a size, with windows of 8 % to 100 % of the area; `batch` images in each ghost batch."""
    return Recipe(
        model=Model(depth=depth, num_classes=classes),
        data=Data(train=data, validation=data),
        augment=Augment(kind="inception", size=size),
        evaluation=Evaluation(crops=(size,), shorter_sides=(size * 8 // 7,)),
        global_batch=batch * ghost_batches,
        ghost_batch=batch,
    )


def cifar_recipe(
    train: str = "none",
    validation: str | None = None,
    *,
    depth: int,
    batch: int = 64,
    ghost_batches: int = 1,
    epochs: float = 1000,
) -> Recipe:
    """CIFAR-10's training, evaluated at its end only; `batch` images in each ghost batch."""
    return Recipe(
        model=Model(depth=depth, num_classes=10),
        data=Data(train=train, validation=validation or train, dataset="cifar10"),
        augment=Augment(kind="pad", size=32),
        evaluation=Evaluation(crops=(32,), shorter_sides=(32,), every_epochs=1000),
        epochs=epochs,
        global_batch=batch * ghost_batches,
        ghost_batch=batch,
    )


def demo_recipe(folder: str, *, depth: int, epochs: float = 1000) -> Recipe:
    """CIFAR's training for two workers on generated images, ten steps an epoch; writes the images to the folder."""
    train, validation = write_demo(folder, size=32, train_images=1280, validation_images=40, seed=0)
    return cifar_recipe(train, validation, depth=depth, ghost_batches=2, epochs=epochs)


def training_images(recipe: Recipe, execution: Execution, on: torch.device | None = None) -> TrainingImages:
    """The loader of a recipe's training images."""
    return TrainingImages(recipe, open_split(recipe.data.train), worker(on), InputOptions.of(execution))


def endless(images: TrainingImages) -> Iterator[list[Batch]]:
    """The ghost batches of each step, epoch after epoch."""
    return itertools.chain.from_iterable(map(images.epoch, itertools.count()))


def training_step(recipe: Recipe, execution: Execution, on: torch.device | None = None) -> tuple[TrainStep, TrainState]:
    """The loop's step, and the state that it changes."""
    state = create_state(recipe, execution, worker(on))
    return TrainStep(recipe, execution, worker(on), state), state


def step_on_random_images(
    recipe: Recipe, execution: Execution, on: torch.device | None = None
) -> tuple[Callable[[], object], TrainState]:
    """The loop's step on a batch of random numbers, the same each time, and the state that it changes."""
    step, state = training_step(recipe, execution, on)
    images, labels = random_images(recipe.ghost_batch, recipe.augment.size, recipe.model.num_classes, on)
    weights = torch.ones(len(labels), device=labels.device)
    return lambda: step([Batch(images, labels, np.arange(len(labels)), 0, weights)], LEARNING_RATE), state


def random_images(
    count: int, size: int, classes: int, on: torch.device | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random numbers float32 [count, 3, size, size], channels last, and labels int64 [count]."""
    images = torch.randn(count, 3, size, size, device=on or device()).to(memory_format=torch.channels_last)
    return images, torch.randint(0, classes, (count,), device=on or device())
