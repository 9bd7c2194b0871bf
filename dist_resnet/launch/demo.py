"""The demo of a training job: the same model and code on generated images, in minutes on a laptop's CPU."""

import dataclasses

from dist_resnet.data.prepare.demo import write_demo
from dist_resnet.recipe import Checkpoints, Execution, Recipe
from dist_resnet.tracking.run_directory import RunDirectory

NUM_CLASSES, TRAIN_IMAGES, VALIDATION_IMAGES = 10, 960, 200
# The stored images are a little larger than the crops.
_SIZE, _IMAGE_SIZE = 64, 80


def make_demo(recipe: Recipe, execution: Execution) -> tuple[Recipe, Execution]:
    """The demo of a run: the same model on generated images of ten classes, written under `execution.storage`.

    Two epochs on two workers, minutes on a laptop's CPU. Raises OSError if the images cannot be written.

    >>> import tempfile
    >>> from dist_resnet import Augment, Data, Evaluation, Model
    >>> recipe = Recipe(
    ...     model=Model(depth=20, num_classes=100),
    ...     data=Data(train="cifar100/train-*.parquet", validation="cifar100/test-*.parquet", dataset="cifar100"),
    ...     augment=Augment(kind="pad", size=32),
    ...     evaluation=Evaluation(crops=(32,), shorter_sides=(32,)),
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     recipe, execution = make_demo(recipe, Execution(storage=folder))
    >>> recipe.model.depth, recipe.model.num_classes, recipe.epochs, execution.workers
    (20, 10, 2.0, 2)
    """
    recipe, execution = shrink(recipe, execution)
    return write_images(recipe, execution), execution


def shrink(recipe: Recipe, execution: Execution) -> tuple[Recipe, Execution]:
    """The demo's recipe and execution: the full depth, small images of ten classes, small batches, two epochs."""
    cifar = recipe.augment.kind == "pad"
    model = dataclasses.replace(recipe.model, num_classes=NUM_CLASSES)
    data = dataclasses.replace(recipe.data, train="demo", validation="demo")
    augment, evaluation = recipe.augment, recipe.evaluation
    if not cifar:
        augment = dataclasses.replace(augment, size=_SIZE, shorter_side=(_SIZE, 96))
        evaluation = dataclasses.replace(evaluation, crops=(_SIZE, _IMAGE_SIZE), shorter_sides=(72, _IMAGE_SIZE))
    schedule = dataclasses.replace(recipe.schedule, learning_rate=0.05, kind="cosine", warmup=0.1, warmup_kind="linear")
    recipe = dataclasses.replace(
        recipe,
        model=model,
        data=data,
        augment=augment,
        evaluation=evaluation,
        schedule=schedule,
        epochs=2.0,
        global_batch=32,
        ghost_batch=16,
    )
    return recipe, dataclasses.replace(execution, workers=2, log_every=1, checkpoints=Checkpoints(every=10))


def write_images(recipe: Recipe, execution: Execution) -> Recipe:
    """The recipe with the demo's images, which are written next to the runs unless they exist.

    A split that the command line set to something else stays.
    """
    size = recipe.augment.size if recipe.augment.kind == "pad" else _IMAGE_SIZE
    target = RunDirectory(execution.storage).child(f"demo-images-{size}px")
    train, validation = write_demo(
        target,
        size=size,
        num_classes=NUM_CLASSES,
        train_images=TRAIN_IMAGES,
        validation_images=VALIDATION_IMAGES,
        seed=0,
    )
    data = recipe.data
    if data.train == "demo":
        data = dataclasses.replace(data, train=train)
    if data.validation == "demo":
        data = dataclasses.replace(data, validation=validation)
    return dataclasses.replace(recipe, data=data)
