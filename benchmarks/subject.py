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
CPU = torch.device("cpu")
DEVICE = torch.device("cuda") if torch.cuda.is_available() else CPU


def wait() -> None:
    """Returns once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def worker(device: torch.device = DEVICE) -> Worker:
    """The only worker."""
    return Worker(rank=0, world_size=1, device=device)


def imagenet_recipe(
    data: str = "none", *, depth: int = 50, size: int = 224, batch: int = 32, ghost_batches: int = 1
) -> Recipe:
    """ImageNet's training at a size, with windows of 8 % to 100 % of the area; `batch` images in each ghost batch."""
    return Recipe(
        model=Model(depth=depth, num_classes=1000),
        data=Data(train=data, validation=data),
        augment=Augment(kind="inception", size=size),
        evaluation=Evaluation(crops=(size,), shorter_sides=(size * 8 // 7,)),
        global_batch=batch * ghost_batches,
        ghost_batch=batch,
    )


def cifar_recipe(
    train: str = "none", validation: str = "none", *, depth: int, batch: int, ghost_batches: int = 1, epochs: float = 1
) -> Recipe:
    """CIFAR-10's training, evaluated at its end only; `batch` images in each ghost batch."""
    return Recipe(
        model=Model(depth=depth, num_classes=10),
        data=Data(train=train, validation=validation, dataset="cifar10"),
        augment=Augment(kind="pad", size=32),
        evaluation=Evaluation(crops=(32,), shorter_sides=(32,), every_epochs=1000),
        epochs=epochs,
        global_batch=batch * ghost_batches,
        ghost_batch=batch,
    )


def demo_recipe(folder: str, *, depth: int, epochs: float) -> Recipe:
    """CIFAR's training for two workers on generated images, ten steps an epoch; writes the images to the folder."""
    train, validation = write_demo(folder, size=32, train_images=1280, validation_images=40, seed=0)
    return cifar_recipe(train, validation, depth=depth, batch=64, ghost_batches=2, epochs=epochs)


def training_images(recipe: Recipe, execution: Execution, device: torch.device = DEVICE) -> TrainingImages:
    """The loader of a recipe's training images."""
    return TrainingImages(recipe, open_split(recipe.data.train), worker(device), InputOptions.of(execution))


def endless(images: TrainingImages) -> Iterator[Batch]:
    """The ghost batches of step after step, epoch after epoch."""
    return itertools.chain.from_iterable(map(images.epoch, itertools.count()))


def step_sizes(images: TrainingImages) -> Iterator[int]:
    """The number of images of each of the endless steps, whose ghost batches are taken one after another."""
    batches = endless(images)
    while True:
        yield sum(len(batch.images) for batch in itertools.islice(batches, images.ghosts_per_step))


def training_step(recipe: Recipe, execution: Execution, device: torch.device = DEVICE) -> tuple[TrainStep, TrainState]:
    """The loop's step, and the state that it changes."""
    state = create_state(recipe, execution, worker(device))
    return TrainStep(recipe, execution, worker(device), state), state


def step_on_random_images(
    recipe: Recipe, execution: Execution, device: torch.device = DEVICE
) -> tuple[Callable[[], object], TrainState]:
    """The loop's step on random numbers, the same in each ghost batch and each time, and the state that it changes."""
    step, state = training_step(recipe, execution, device)
    images, labels = random_images(recipe.ghost_batch, recipe.augment.size, recipe.model.num_outputs, device)
    weights, indices = torch.ones(len(labels), device=labels.device), np.arange(len(labels))
    batches = [Batch(images, labels, indices, ghost, weights) for ghost in range(recipe.num_ghost_batches)]
    return lambda: step(batches, LEARNING_RATE), state


def random_images(
    count: int, size: int, classes: int, device: torch.device = DEVICE
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random numbers float32 [count, 3, size, size], channels last, and labels int64 [count]."""
    images = torch.randn(count, 3, size, size, device=device).to(memory_format=torch.channels_last)
    return images, torch.randint(0, classes, (count,), device=device)
