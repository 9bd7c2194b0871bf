"""The demo's version of a job. Oracle: the job's own recipe."""

import dataclasses

from dist_resnet.launch.demo import shrink, write_images
from dist_resnet.recipe import Augment, Data, Evaluation, Execution, Model, Recipe

JOB = Recipe(
    model=Model(depth=200, num_classes=1000),
    data=Data(train="imagenet/train", validation="imagenet/validation"),
    augment=Augment(color="full"),
)


def test_the_demo_keeps_the_network_and_the_augmentation_and_shrinks_size_data_and_length():
    recipe, _ = shrink(JOB, Execution())
    assert recipe.model == dataclasses.replace(JOB.model, num_classes=10)
    assert (recipe.augment.kind, recipe.augment.color) == ("scale", "full")
    assert recipe.augment.size < 100
    assert recipe.epochs < 5


def test_a_cifar_demo_keeps_the_cifar_images_size():
    job = dataclasses.replace(
        JOB, augment=Augment(kind="pad", size=32), evaluation=Evaluation(crops=(32,), shorter_sides=(32,))
    )
    recipe, _ = shrink(job, Execution())
    assert (recipe.augment, recipe.evaluation) == (job.augment, job.evaluation)


def test_the_images_are_written_next_to_the_runs_once(tmp_path):
    execution = Execution(storage=str(tmp_path))
    recipe, _ = shrink(JOB, execution)
    first = write_images(recipe, execution)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    assert files
    assert write_images(recipe, execution) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == files


def test_data_given_on_the_command_line_is_kept(tmp_path):
    execution = Execution(storage=str(tmp_path))
    recipe, _ = shrink(JOB, execution)
    mine = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, train="/my/images"))
    assert write_images(mine, execution).data.train == "/my/images"
