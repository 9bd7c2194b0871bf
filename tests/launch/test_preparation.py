"""What the driver checks before any worker starts. Oracle: bad input of each kind, and its one line."""

import dataclasses
import os
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dist_resnet.data.parquet import open_split
from dist_resnet.launch.preparation import prepare
from dist_resnet.recipe import Execution, Model, Recipe


def _with_train(recipe: Recipe, uri: str) -> Recipe:
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, train=uri))


def _refused(recipe: Recipe, execution: Execution, complaint: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=complaint) as caught:
        prepare(recipe, execution, job="test")
    assert "\n" not in str(caught.value)


def test_a_good_run_is_planned_and_nothing_is_written_yet(recipe: Recipe, execution: Execution):
    plan = prepare(recipe, execution, job="test")
    assert plan.num_steps == 6
    assert plan.recipe.data.train_digest == plan.train.digest
    assert plan.directory.list("") == []


def test_a_run_without_a_name_is_named_by_job_and_fingerprint(recipe: Recipe, execution: Execution):
    plan = prepare(recipe, dataclasses.replace(execution, name=None), job="cifar")
    assert plan.name == f"cifar-{plan.recipe.fingerprint()[:8]}"


def test_no_shards(recipe: Recipe, execution: Execution, tmp_path: Path):
    _refused(
        _with_train(recipe, str(tmp_path / "nothing" / "*.parquet")), execution, "no Parquet shards .*--data.train"
    )


def test_an_unreadable_shard(recipe: Recipe, execution: Execution, tmp_path: Path):
    (tmp_path / "bad.parquet").write_bytes(b"this is not Parquet")
    _refused(_with_train(recipe, str(tmp_path / "*.parquet")), execution, "bad.parquet")


def test_a_shard_of_another_schema(recipe: Recipe, execution: Execution, tmp_path: Path):
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "text.parquet")
    _refused(_with_train(recipe, str(tmp_path / "*.parquet")), execution, "text.parquet.*image")


def test_labels_out_of_range(recipe: Recipe, execution: Execution):
    few = dataclasses.replace(recipe, model=Model(depth=8, num_classes=3))
    _refused(few, execution, "label 3.*--model.num-classes|label.*3.*num_classes")


def test_a_global_batch_larger_than_the_data(recipe: Recipe, execution: Execution):
    _refused(dataclasses.replace(recipe, global_batch=128), execution, "96.*128")


def test_more_workers_than_ghost_batches(recipe: Recipe, execution: Execution):
    _refused(recipe, dataclasses.replace(execution, workers=5), "execution.workers 5 exceeds the 4 ghost batches")


def test_a_depth_that_no_network_has(recipe: Recipe, execution: Execution):
    deep = dataclasses.replace(recipe, model=Model(depth=21, num_classes=4, shortcut="exclusive_gating"))
    _refused(deep, execution, "no network has 21 layers")


def test_a_storage_that_cannot_be_written(recipe: Recipe, execution: Execution, tmp_path: Path):
    (tmp_path / "file").write_text("")
    _refused(recipe, dataclasses.replace(execution, storage=str(tmp_path / "file/runs")), "cannot be written")


def test_a_name_used_with_another_recipe_names_the_fields(recipe: Recipe, execution: Execution):
    prepare(recipe, execution, job="test").claim()
    other = dataclasses.replace(recipe, seed=7, epochs=3)
    _refused(other, execution, re.escape("epochs (was 2.0, now 3.0), seed (was 0, now 7)"))


def test_the_same_recipe_may_continue_under_another_execution(recipe: Recipe, execution: Execution):
    prepare(recipe, execution, job="test").claim()
    prepare(recipe, dataclasses.replace(execution, workers=2, precision="bf16"), job="test")


def test_shards_that_changed_since_the_run_began_are_named(recipe: Recipe, execution: Execution, tmp_path: Path):
    shutil.copytree(recipe.data.train, tmp_path / "train")
    recipe = _with_train(recipe, str(tmp_path / "train"))
    plan = prepare(recipe, execution, job="test")
    plan.claim()
    (shard,) = (tmp_path / "train").iterdir()
    table = pq.read_table(shard)
    pq.write_table(table.slice(0, len(table) - 1), shard)
    now = open_split(recipe.data.train).digest[:12]
    complaint = (
        f"^the train shards at {recipe.data.train} are not those that the run run under {execution.storage} began "
        f"with: their digest was {plan.train.digest[:12]}..., now it is {now}...; restore the shards to continue that "
        "run, or use another --execution.name$"
    )
    _refused(recipe, execution, complaint)
    _refused(dataclasses.replace(recipe, seed=9), execution, r"now it is .*, and seed changed too; restore the shards")


def test_a_recipe_file_that_cannot_be_read_is_named(recipe: Recipe, execution: Execution):
    plan = prepare(recipe, execution, job="test")
    plan.directory.write("recipe.json", b"{}")
    _refused(recipe, execution, "recipe.json cannot be read")


def test_an_insisted_digest_must_match(recipe: Recipe, execution: Execution):
    data = dataclasses.replace(recipe.data, train_digest="0" * 64)
    _refused(dataclasses.replace(recipe, data=data), execution, "data.train_digest 000000000000... was asked for")


def test_relative_paths_mean_the_same_to_every_worker(recipe: Recipe, execution: Execution, monkeypatch, tmp_path):
    folder = Path(recipe.data.train).parent
    monkeypatch.chdir(folder)
    relative = _with_train(recipe, os.path.basename(recipe.data.train))
    plan = prepare(relative, execution, job="test")
    assert Path(plan.recipe.data.train).is_absolute()
    assert plan.recipe.fingerprint() == prepare(recipe, execution, job="test").recipe.fingerprint()


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("htp://server", "a tracking address is http://HOST:PORT"),
        ("http://server:port", "does not parse"),
        ("http://server.invalid", "the host of the tracking address http://server.invalid is not found"),
    ],
)
def test_a_tracking_address_that_cannot_be_one(recipe: Recipe, execution: Execution, uri: str, complaint: str):
    _refused(recipe, dataclasses.replace(execution, tracking_uri=uri), complaint)


def test_a_run_goes_on_though_its_tracking_server_is_not_found(recipe: Recipe, execution: Execution):
    prepare(recipe, execution, job="test").claim()
    prepare(recipe, dataclasses.replace(execution, tracking_uri="http://server.invalid"), job="test")


def test_a_password_in_an_address_is_refused_and_not_repeated(recipe: Recipe, execution: Execution):
    secret = "s3://key:secret@bucket/runs"
    for bad in (_with_train(recipe, secret), recipe):
        where = execution if bad is not recipe else dataclasses.replace(execution, storage=secret)
        with pytest.raises(ValueError, match="has a password in it, s3://\\*\\*\\*@bucket/runs") as caught:
            prepare(bad, where, job="test")
        assert "secret@" not in str(caught.value)
