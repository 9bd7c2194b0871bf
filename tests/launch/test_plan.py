"""The driver's checks before any worker starts. Oracle: bad input of each kind, and its one line."""

import dataclasses
import os
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from jobs.inside import run_inside
from oracle.images import jpeg, read_row_group, smooth, write_rows
from oracle.sources import rename_classes

from dist_resnet.data.shards import classes
from dist_resnet.data.shards.split import Split, open_split
from dist_resnet.launch.plan import prepare
from dist_resnet.model import build_model
from dist_resnet.recipe import Augment, Execution, Model, Recipe, Tracking
from dist_resnet.tracking.journal import Journal
from dist_resnet.tracking.records import Metrics, Session


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


def test_a_run_that_resumes_at_another_precision_says_so(recipe: Recipe, execution: Execution):
    plan = prepare(recipe, execution, job="test")
    plan.claim()
    journal = Journal(plan.directory)
    journal.append(Session(start_step=0, precision="fp32"))
    journal.append(Metrics(step=1, values={"train/loss": 1.0}))
    journal.commit()
    assert prepare(recipe, execution, job="test").notes == ()
    (note,) = prepare(recipe, dataclasses.replace(execution, precision="bf16"), job="test").notes
    assert note.startswith("the run started with --execution.precision fp32 and resumes with bf16, which changes its n")
    (Path(plan.directory.uri) / "journal" / "000001.jsonl").write_bytes(b"\xff damaged")
    assert prepare(recipe, dataclasses.replace(execution, precision="bf16"), job="test").notes == ()


def test_a_run_cannot_have_the_name_of_a_sweep_or_a_probe(recipe: Recipe, execution: Execution):
    plan = prepare(recipe, execution, job="test")
    plan.directory.write_json("sweep.json", {})
    _refused(recipe, execution, "runs/run is the directory of a sweep; use another --execution.name for a run")
    plan.directory.delete("sweep.json")
    plan.claim()
    known = plan.directory.read_json("recipe.json")
    plan.directory.write_json("recipe.json", known | {"probe": {}})
    _refused(recipe, execution, "runs/run is the directory of a probe; use another --execution.name for a run")


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


def _of_sizes(folder: Path, sizes: list[tuple[int, int]]) -> str:
    """A set of images of these (height, width), each class in turn."""
    images = [jpeg(smooth(*size, number)) for number, size in enumerate(sizes)]
    folder.mkdir()
    write_rows(folder / "a.parquet", images, [number % 4 for number in range(len(sizes))])
    return str(folder)


@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [
        (
            [(64, 64)] * 40,
            r"none of the first 40 .*/a.parquet row 0 has 64 x 64; give images of that size, or train with "
            r"--augment.size 64 or --augment.kind scale",
        ),
        ([(28, 28)] * 40, "has 28 x 28; .* train with --augment.size 28 or"),
        ([(32, 48)] * 40, "has 48 x 32; .* train with --augment.kind scale"),
        ([(48, 32)] * 40, "has 32 x 48; .* train with --augment.kind scale"),
        ([(40 + number, 60) for number in range(40)], "has 60 x 40; .* train with --augment.kind scale"),
        ([(48, 48)] * 100 + [(32, 32)], "none of the first 100 "),
    ],
)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_images_of_another_size_than_pad_needs(
    recipe: Recipe, execution: Execution, tmp_path: Path, sizes: list[tuple[int, int]], complaint: str, split: str
):
    uri = _of_sizes(tmp_path / "other", sizes)
    of_them = dataclasses.replace(
        recipe, data=dataclasses.replace(recipe.data, **{split: uri}, match_classes="numbers")
    )
    _refused(of_them, execution, f"pad needs images of 32 x 32 .*{complaint}")
    assert not (tmp_path / "runs" / "run").exists()
    prepare(
        dataclasses.replace(of_them, augment=Augment(kind="scale", size=16, shorter_side=(20, 24))),
        dataclasses.replace(execution, spare_outputs=True),
        job="test",
    )


def test_a_first_image_of_another_size_is_not_refused(recipe: Recipe, execution: Execution, tmp_path: Path):
    uri = _of_sizes(tmp_path / "other", [(48, 64), (32, 31), *[(32, 32)] * 40])
    of_them = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, train=uri, match_classes="numbers"))
    assert prepare(of_them, dataclasses.replace(execution, spare_outputs=True), job="test").train.num_images == 42


def _both_splits(recipe: Recipe, folder: Path) -> str:
    """A folder in the layout of `datasets`: the shards of all splits next to each other."""
    folder.mkdir()
    shutil.copy(open_split(recipe.data.train).shards[0], folder / "train-00000-of-00001.parquet")
    shutil.copy(open_split(recipe.data.validation).shards[0], folder / "test-00000-of-00001.parquet")
    return str(folder)


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("form", ["{}", "{}/*.parquet", "{}/**", "{}/t*-00000-of-00001.parquet"])
def test_a_folder_that_has_the_shards_of_several_splits(
    recipe: Recipe, execution: Execution, tmp_path: Path, split: str, form: str
):
    uri = form.format(_both_splits(recipe, tmp_path / "data"))
    mixed = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, **{split: uri}))
    _refused(
        mixed, execution, r"several splits: .*/train-.* of train, .*/test-.* of test; give .* as in .*/train-\*, or"
    )


def test_a_run_that_started_with_the_shards_of_several_splits_resumes(
    recipe: Recipe, execution: Execution, tmp_path: Path
):
    folder = _both_splits(recipe, tmp_path / "data")
    names = [Path(folder, f"part-{number}.parquet") for number in range(2)]
    for name, link in zip(sorted(Path(folder).iterdir()), names, strict=True):
        name.rename(link)
    mixed = _with_train(recipe, folder)
    prepare(mixed, execution, job="test").claim()
    for name, link in zip(("test-0.parquet", "train-0.parquet"), names, strict=True):
        link.rename(Path(folder, name))
    assert prepare(mixed, execution, job="test").train.num_images > 0


def test_validation_on_training_images_is_said(recipe: Recipe, execution: Execution, tmp_path: Path):
    assert not any("training images too" in note for note in prepare(recipe, execution, job="test").notes)
    same = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, validation=recipe.data.train))
    copies = tmp_path / "copies"
    copies.mkdir()
    for shard in open_split(recipe.data.train).shards:
        shutil.copy(shard, copies)
    for one in (same, dataclasses.replace(same, data=dataclasses.replace(same.data, validation=str(copies)))):
        (note,) = prepare(one, execution, job="test").notes
        assert "are also training shards" in note


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


def test_shards_that_changed_since_the_run_started_are_named(recipe: Recipe, execution: Execution, tmp_path: Path):
    shutil.copytree(recipe.data.train, tmp_path / "train")
    recipe = _with_train(recipe, str(tmp_path / "train"))
    plan = prepare(recipe, execution, job="test")
    plan.claim()
    (shard,) = (tmp_path / "train").iterdir()
    table = pq.read_table(shard)
    pq.write_table(table.slice(0, len(table) - 1), shard)
    now = open_split(recipe.data.train).digest[:12]
    complaint = (
        f"^the train shards at {recipe.data.train} are not those that the run run under {execution.storage} started "
        f"with: their digest was {plan.train.digest[:12]}..., now it is {now}...; restore the shards to continue that "
        "run, or use another --execution.name$"
    )
    _refused(recipe, execution, complaint)
    _refused(dataclasses.replace(recipe, seed=9), execution, r"now it is .*, and seed changed too; restore the shards")


def test_a_recipe_file_that_cannot_be_read_is_named(recipe: Recipe, execution: Execution):
    plan = prepare(recipe, execution, job="test")
    plan.directory.write("recipe.json", b"{}")
    _refused(recipe, execution, "recipe.json cannot be read")


def test_a_given_digest_must_match(recipe: Recipe, execution: Execution):
    data = dataclasses.replace(recipe.data, train_digest="0" * 64)
    _refused(dataclasses.replace(recipe, data=data), execution, "data.train_digest must match: 000000000000... was")


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
    _refused(recipe, dataclasses.replace(execution, tracking=Tracking(uri=uri)), complaint)


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"])
@pytest.mark.parametrize(
    "uri", ["./mlruns", "file:///data/mlruns", "mysql://user@127.0.0.1/mlflow", "databricks-nowhere"]
)
def test_an_address_of_the_environment_that_cannot_be_one(recipe, execution: Execution, variable, uri, monkeypatch):
    monkeypatch.setenv(variable, uri)
    _refused(recipe, execution, f"{variable}: ")
    assert not Path(execution.storage, "run").exists()


def test_a_store_next_to_the_runs_that_is_not_a_database_is_refused(recipe: Recipe, execution: Execution):
    store = Path(execution.storage, "mlflow.db")
    store.parent.mkdir()
    store.write_text("no database " * 100)
    _refused(recipe, execution, f"{store} is not a sqlite database .* --execution.tracking.uri")


def test_a_run_resumes_although_its_tracking_server_is_not_found(recipe: Recipe, execution: Execution):
    prepare(recipe, execution, job="test").claim()
    prepare(
        recipe,
        dataclasses.replace(execution, tracking=Tracking(uri="http://server.invalid")),
        job="test",
    )


def test_a_password_in_an_address_is_refused_and_not_repeated(recipe: Recipe, execution: Execution):
    secret = "s3://key:secret@bucket/runs"
    for bad in (_with_train(recipe, secret), recipe):
        where = execution if bad is not recipe else dataclasses.replace(execution, storage=secret)
        with pytest.raises(ValueError, match="contains a password, s3://\\*\\*\\*@bucket/runs") as caught:
            prepare(bad, where, job="test")
        assert "secret@" not in str(caught.value)


def _labels(split: Split) -> list[int]:
    return [label for n in range(split.num_row_groups) for label in read_row_group(split, n).labels.tolist()]


def _with_validation(recipe: Recipe, uri: str, **changes) -> Recipe:
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, validation=uri, **changes))


NAMES = ["horizontal stripes", "vertical stripes", "diagonal stripes", "checkerboard"]
TURNED = [3, 1, 0, 2]


@pytest.fixture
def turned(recipe: Recipe, tmp_path: Path) -> Recipe:
    """The recipe with the same validation images, whose classes have other numbers."""
    names = [NAMES[TURNED.index(label)] for label in range(4)]
    return _with_validation(recipe, rename_classes(recipe.data.validation, tmp_path / "turned", names, TURNED))


def test_validation_images_with_other_class_numbers_get_the_labels_of_the_training_images(recipe, turned, execution):
    plan = prepare(turned, execution, job="test")
    expected = _labels(open_split(recipe.data.validation))
    assert _labels(plan.validation) == expected
    assert _labels(open_split(turned.data.validation)) != expected
    assert plan.classes == tuple(NAMES)
    (note,) = plan.notes
    assert "have their classes in another order than the model; they are matched by name" in note


def test_a_run_resumes_with_the_labels_that_it_recorded(turned: Recipe, execution: Execution):
    plan = prepare(turned, execution, job="test")
    plan.claim()
    again = prepare(turned, execution, job="test")
    assert again.validation.label_map.tolist() == plan.validation.label_map.tolist() == [2, 1, 3, 0]
    assert again.classes == plan.classes
    # Even if a later version treats the names differently.
    record = plan.directory.read_json("recipe.json")
    record["classes"] = {"names": None, "validation_labels": [0, 2, 1, 3]}
    plan.directory.write_json("recipe.json", record)
    again = prepare(turned, execution, job="test")
    assert (again.validation.label_map.tolist(), again.classes) == ([0, 2, 1, 3], None)


def test_validation_images_of_fewer_classes_are_mapped_with_a_note(recipe, execution, tmp_path):
    uri = rename_classes(
        recipe.data.validation, tmp_path / "few", ["vertical stripes", "checkerboard"], [None, 0, None, 1]
    )
    plan = prepare(_with_validation(recipe, uri), execution, job="test")
    assert _labels(plan.validation) == [
        label for label in _labels(open_split(recipe.data.validation)) if label in (1, 3)
    ]
    assert plan.notes[-1].endswith(
        "have 2 of the model's 4 classes; without images: 'horizontal stripes', 'diagonal stripes'"
    )


def test_validation_images_of_unknown_classes_are_refused_and_nothing_is_written(recipe, execution, tmp_path):
    uri = rename_classes(recipe.data.validation, tmp_path / "other", [*NAMES[:3], "chessboard"], [0, 1, 2, 3])
    _refused(_with_validation(recipe, uri), execution, "class 'chessboard' of .* is not one of the model's 4 classes")
    assert not (Path(execution.storage) / "run").exists()
    plan = prepare(_with_validation(recipe, uri, match_classes="numbers"), execution, job="test")
    assert plan.validation.label_map is None
    assert "equal labels are taken as equal classes" in plan.notes[0]


def test_more_outputs_than_classes_are_refused_unless_asked_for(recipe: Recipe, execution: Execution):
    many = dataclasses.replace(recipe, model=Model(depth=8, num_classes=1000))
    _refused(many, execution, "1000 outputs, .* 4 classes; give --model.num-classes 4, .* --execution.spare-outputs")
    assert not (Path(execution.storage) / "run").exists()
    plan = prepare(many, dataclasses.replace(execution, spare_outputs=True), job="test")
    assert plan.classes == tuple(NAMES)


def _claim_as_before(recipe: Recipe, execution: Execution) -> None:
    """Claims a run as versions did that did not compare classes."""
    plan = prepare(
        _with_validation(recipe, recipe.data.validation, match_classes="numbers"),
        dataclasses.replace(execution, spare_outputs=True),
        job="test",
    )
    recipe = _with_validation(plan.recipe, plan.recipe.data.validation, match_classes="names")
    values = recipe.to_dict()
    del values["data"]["match_classes"]
    plan.directory.write_json("recipe.json", {"fingerprint": recipe.fingerprint(), "recipe": values})


def test_a_run_from_before_classes_were_compared_resumes_with_images_matched_by_name(turned, execution):
    _claim_as_before(turned, execution)
    plan = prepare(turned, execution, job="test")
    assert plan.validation.label_map.tolist() == [2, 1, 3, 0]
    assert len(plan.notes) == 1


def test_a_run_from_before_classes_were_compared_is_not_refused_for_names_or_outputs(recipe, execution, tmp_path):
    uri = rename_classes(recipe.data.validation, tmp_path / "other", ["e", "f", "g", "h"], [0, 1, 2, 3])
    old = dataclasses.replace(_with_validation(recipe, uri), model=Model(depth=8, num_classes=7))
    _claim_as_before(old, execution)
    plan = prepare(old, execution, job="test")
    assert plan.validation.label_map is None
    (note,) = plan.notes
    assert note.startswith("the run keeps the validation images' labels that it started with, although class '")


def test_a_refused_validation_set_ends_a_job_with_one_line_before_ray_starts(recipe, execution, tmp_path):
    uri = rename_classes(recipe.data.validation, tmp_path / "other", ["a", "b", "c", "d"], [0, 1, 2, 3])
    data = ["--data.train", recipe.data.train, "--data.validation", uri, "--execution.storage", execution.storage]
    started = ray.is_initialized()  # other tests' Ray may be there
    done = run_inside(
        "cifar_preact164", *data, "--model.num-classes", "4", "--global-batch", "32", "--ghost-batch", "8"
    )
    assert done.returncode == 2
    assert done.stderr.startswith("cifar_preact164.py: class '")
    assert done.stderr.count("\n") == 1
    assert ray.is_initialized() == started
    assert not [path for path in Path(execution.storage).iterdir() if path.is_dir()]


def test_an_old_runs_names_are_its_training_shards_while_these_are_the_same(recipe, execution, tmp_path):
    shutil.copytree(recipe.data.train, tmp_path / "train")
    plan = prepare(_with_train(recipe, str(tmp_path / "train")), execution, job="test")
    record = {"recipe": plan.recipe.to_dict()}
    assert classes.recorded(record, plan.recipe) == tuple(NAMES)
    (shard,) = (tmp_path / "train").iterdir()
    table = pq.read_table(shard)
    pq.write_table(table.slice(0, len(table) - 1), shard)
    assert classes.recorded(record, plan.recipe) is None
    shutil.rmtree(tmp_path / "train")
    assert classes.recorded(record, plan.recipe) is None
    plan.claim()
    assert classes.recorded(plan.directory.read_json("recipe.json"), plan.recipe) == tuple(NAMES)


def test_missing_images_and_labels_are_refused_before_anything_starts(
    recipe: Recipe, execution: Execution, tmp_path: Path
):
    table = pq.read_table(recipe.data.train)
    rows = len(table)
    for number, (columns, complaint) in enumerate(
        [
            ({"label": pa.array([0] * 5 + [None] * (rows - 5), pa.int64())}, "train.parquet row 5 has no label"),
            ({"label": pa.array([0.5] + [0.0] * (rows - 1))}, "train.parquet row 0 has the label 0.5, which is no"),
            (
                {"label": pa.array([0, -1] + [0] * (rows - 2))},
                "label -1 in .*train.parquet row 1 is not (in|one of the model.s classes,) 0",
            ),
            ({"image": pa.array([{"bytes": None, "path": "a.jpg"}] * rows, table.field("image").type)}, "row 0 has no"),
            ({"image": pa.array([b"<html>"] * rows)}, "none of the 96 images .* can be decoded; the first is .* row 0"),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        kept = {name: table[name] for name in ("image", "label")}
        pq.write_table(pa.table(kept | columns), folder / "train.parquet")
        _refused(_with_train(recipe, str(folder)), execution, complaint)
        data = dataclasses.replace(recipe.data, validation=str(folder), match_classes="numbers")
        _refused(dataclasses.replace(recipe, data=data), execution, complaint)
    assert not Path(execution.storage, "run").exists()


def test_a_run_uses_the_given_column_of_labels(recipe: Recipe, execution: Execution, tmp_path: Path):
    table = pq.read_table(recipe.data.train)
    zeros = pa.array([0] * len(table), pa.uint8())
    for split in ("train", "validation"):
        columns = {"img": table["image"], "coarse_label": zeros, "fine_label": table["label"].cast(pa.int8())}
        pq.write_table(pa.table(columns), tmp_path / f"{split}.parquet")
    data = {"train": str(tmp_path / "train.parquet"), "validation": str(tmp_path / "validation.parquet")}
    both = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, **data))
    _refused(both, execution, "train.parquet has several columns of labels, coarse_label, fine_label; .*--data.label-c")
    fine = dataclasses.replace(both, data=dataclasses.replace(both.data, label_column="fine_label"))
    plan = prepare(fine, execution, job="test")
    assert (plan.train.label_range, plan.validation.label_range) == ((0, 3), (0, 3))
    assert plan.recipe.fingerprint() != prepare(recipe, execution, job="test").recipe.fingerprint()


def _with_classes_of_the_images(recipe: Recipe) -> Recipe:
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, num_classes=None))


def test_the_number_of_classes_is_that_of_the_training_images_unless_it_is_given(recipe: Recipe, execution: Execution):
    plan = prepare(_with_classes_of_the_images(recipe), execution, job="test")
    assert plan.recipe == prepare(recipe, execution, job="test").recipe
    assert (plan.recipe.model.num_classes, len(plan.classes or ())) == (4, 4)


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ([0] * 40, "have one class; give images of two classes or more"),
        (
            [0, 1, 7, 10**9] * 10,
            "labels of the 40 training images at .* run to 1000000000, .* choose their column with",
        ),
        ([0, 1, -1, 2] * 10, "label -1 in .*a.parquet row 2 .* a label below 0 means no label"),
    ],
)
def test_labels_that_give_no_number_of_classes_are_refused(
    recipe: Recipe, execution: Execution, tmp_path: Path, labels: list[int], complaint: str
):
    images = [jpeg(smooth(32, 32, number)) for number in range(40)]
    pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / "a.parquet")
    _refused(_with_train(_with_classes_of_the_images(recipe), str(tmp_path)), execution, complaint)


def test_a_network_without_a_number_of_classes_is_refused_where_no_images_give_it(recipe: Recipe):
    with pytest.raises(ValueError, match="model.num_classes is unset, .*; give --model.num-classes"):
        build_model(_with_classes_of_the_images(recipe).model)
