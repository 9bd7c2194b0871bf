"""The demo of a training job: the same model, path and code, on generated images, in minutes on a laptop's CPU."""

import dataclasses

from dist_resnet.data.prepare.demo import write_demo
from dist_resnet.recipe import Checkpoints, Execution, Recipe
from dist_resnet.tracking.run_directory import RunDirectory

NUM_CLASSES, TRAIN_IMAGES, VALIDATION_IMAGES = 10, 960, 200
# The images are written a little larger than they are used, so that there is something to crop.
_SIZE, _IMAGE_SIZE = 64, 80


def shrink(recipe: Recipe, execution: Execution) -> tuple[Recipe, Execution]:
    """The demo's version of a job: the full depth; small images of ten classes, small batches, two epochs."""
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
    """Writes the demo's images beside the runs, unless they are there, and points the recipe at them.

    A split that the command line set to something else stays as it was set.
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
