"""Runs on damaged images. Oracle: the same run on another number of workers, and the rows that were damaged."""

import dataclasses
from pathlib import Path

import pytest
from oracle.images import jpeg, smooth, write_rows

from dist_resnet.launch import local
from dist_resnet.launch.evaluate import evaluate_trained
from dist_resnet.launch.trained import of_run
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.tracking.journal import history, read_journal
from dist_resnet.tracking.records import Damaged, TooDamaged

HURT = {3: "cut short", 17: "no image", 41: "cut short"}


@pytest.fixture(params=["shard", "resident"])
def hurt_recipe(request, recipe: Recipe, shard_recipe: Recipe, tmp_path: Path) -> Recipe:
    """64 training images in two shards, three of them damaged, and 20 validation images, one of them damaged."""
    images = [jpeg(smooth(32, 32, index)) for index in range(64)]
    labels = [index % 4 for index in range(64)]
    for index, kind in HURT.items():
        images[index] = images[index][:300] if kind == "cut short" else b"<html>"
    write_rows(tmp_path / "train" / "a.parquet", images[:40], labels[:40])
    write_rows(tmp_path / "train" / "b.parquet", images[40:], labels[40:])
    write_rows(tmp_path / "validation" / "a.parquet", images[10:30], labels[10:30])
    base = recipe if request.param == "resident" else shard_recipe
    data = dataclasses.replace(base.data, train=str(tmp_path / "train"), validation=str(tmp_path / "validation"))
    return dataclasses.replace(base, data=data)


def test_damaged_images_do_not_stop_a_run_and_are_listed_by_file_and_row(hurt_recipe, execution: Execution, caplog):
    execution = dataclasses.replace(execution, max_damaged_fraction=0.1)
    plan = local.prepare_run(hurt_recipe, execution, job="test")
    summary = local.run(plan)
    assert summary["status"] == "finished"
    records = read_journal(plan.directory)
    events = [record for record in records if isinstance(record, Damaged)]
    named = {(event.split, event.file.rpartition("/")[2], event.row) for event in events}
    assert named == {
        ("train", "a.parquet", 3),
        ("train", "a.parquet", 17),
        ("train", "b.parquet", 1),
        ("validation", "a.parquet", 7),
    }
    assert len(events) == 4  # once each, in two epochs
    assert history(records)["data/damaged_images"][-1][2] == 3
    assert caplog.text.count("cannot be decoded and is excluded from the loss") == 3
    assert caplog.text.count("cannot be decoded and counts as an error") == 1
    listed = plan.directory.read("damaged_images.csv").decode().splitlines()
    assert len(listed) == 1 + 4
    assert any(line.startswith("train,") and line.split(",")[1].endswith("b.parquet") for line in listed)


def test_the_numbers_do_not_depend_on_the_number_of_workers(hurt_recipe: Recipe, execution: Execution):
    execution = dataclasses.replace(execution, max_damaged_fraction=0.1)
    losses = []
    for workers in (1, 2):
        plan = local.prepare_run(
            hurt_recipe, dataclasses.replace(execution, workers=workers, name=f"on-{workers}"), job="test"
        )
        local.run(plan)
        records = read_journal(plan.directory)
        losses.append([value for _, _, value in history(records)["train/loss"]])
        assert sum(isinstance(record, Damaged) for record in records) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_too_many_end_the_run_with_the_list_and_it_resumes_once_more_are_allowed(hurt_recipe, execution, caplog):
    plan = local.prepare_run(hurt_recipe, dataclasses.replace(execution, max_damaged_fraction=0.03), job="test")
    summary = local.run(plan)
    assert summary["status"] == "too_damaged"
    assert "2 of the 64 training images are damaged" in caplog.text or "3 of the 64 training" in caplog.text
    assert "--execution.max-damaged-fraction" in caplog.text
    assert not plan.directory.exists("summary.json")
    assert isinstance(read_journal(plan.directory)[-1], TooDamaged)
    again = local.prepare_run(hurt_recipe, dataclasses.replace(execution, max_damaged_fraction=0.05), job="test")
    assert local.run(again)["status"] == "finished"
    events = [record for record in read_journal(plan.directory) if isinstance(record, Damaged)]
    assert len(events) == 4


def headers_only(images: list[bytes]) -> list[bytes]:
    """JPEGs with a header and an end marker, but no image data."""
    return [image[: image.index(b"\xff\xda")] + b"\xff\xd9" for image in images]


def test_validation_images_that_all_fail_to_decode_are_an_error_and_not_a_result(
    recipe: Recipe, execution: Execution, tmp_path: Path, caplog
):
    images = headers_only([jpeg(smooth(32, 32, index)) for index in range(20)])
    write_rows(tmp_path / "validation" / "a.parquet", images, [index % 4 for index in range(20)])
    recipe = dataclasses.replace(
        recipe, data=dataclasses.replace(recipe.data, validation=str(tmp_path / "validation"), match_classes="numbers")
    )
    plan = local.prepare_run(recipe, execution, job="test")
    summary = local.run(plan)
    assert summary["status"] == "too_damaged"
    assert "none of the 20 validation images can be decoded, the first is " in caplog.text
    assert "validation/a.parquet row 0 (" in caplog.text
    assert not plan.directory.exists("summary.json")
    assert "val/loss" not in history(read_journal(plan.directory))
    with pytest.raises(ValueError, match=r"none of the 20 validation images can be decoded, the first is .*row 0"):
        evaluate_trained(of_run(plan.directory.uri), execution)
