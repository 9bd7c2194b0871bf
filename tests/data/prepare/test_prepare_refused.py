"""Sources and targets that are refused, each in a line; oracle: the lines, and that nothing was left behind."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from oracle.images import jpeg, smooth
from oracle.sources import (
    SYNSETS,
    in_turn,
    prepare_here,
    prepared_rows,
    small_images,
    write_archives,
    write_downloaded,
    write_folders,
    write_parquet,
)

from dist_resnet.data.prepare.options import Options
from dist_resnet.data.shards.split import open_split
from dist_resnet.storage.files import PARTIAL


def sums(folder: Path) -> dict[str, str]:
    return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in folder.iterdir() if one.is_file()}


# Bad input


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    images = small_images()
    images["train"][SYNSETS[3]] = []
    with pytest.raises(ValueError, match=r"class n03126707 has no train image; complete the source"):
        prepare_here(write_folders(tmp_path / "folders", images), tmp_path / "a")
    with pytest.raises(ValueError, match=r"class n03126707 has no train image; complete the source"):
        prepare_here(write_archives(tmp_path / "archives", images), tmp_path / "b")
    images = small_images()
    del images["validation"][SYNSETS[0]], images["validation"][SYNSETS[1]]
    with pytest.raises(ValueError, match=r"class n01440764 and 1 more has no validation image"):
        prepare_here(write_folders(tmp_path / "partial", images), tmp_path / "c")


def test_classes_of_parquet_without_an_image_are_told(tmp_path: Path) -> None:
    write_parquet(tmp_path / "source" / "train-0.parquet", [("a", jpeg(smooth(9, 9, 1)), 1)], ["x", "y", "z"])
    manifest = prepare_here(tmp_path / "source", tmp_path / "target")
    assert manifest["left_out"] == ["2 of 3 classes have no train image"]


def test_two_images_of_one_name_in_a_class_are_named(tmp_path: Path) -> None:
    images = small_images()
    name, encoded = images["train"][SYNSETS[0]][0]
    images["train"][SYNSETS[0]].append((name, encoded + b"\0"))
    with pytest.raises(
        ValueError,
        match=rf"two images of class n01440764 are named {name}, in ILSVRC2012_img_train.tar/n01440764.tar and",
    ):
        prepare_here(write_archives(tmp_path / "archives", images), tmp_path / "a")


def test_one_name_in_two_classes_is_no_mistake(tmp_path: Path) -> None:
    images = small_images()
    for synset in SYNSETS:
        images["train"][synset][0] = ("1.JPEG", images["train"][synset][0][1])
    assert prepare_here(write_folders(tmp_path / "source", images), tmp_path / "target")["splits"]


@pytest.mark.parametrize(("label", "reason"), [(-1, "means no label"), (3, "is not in the class list, 0 .. 2")])
def test_labels_beyond_the_class_list_are_named_with_file_and_row(tmp_path: Path, label: int, reason: str) -> None:
    image = jpeg(smooth(9, 9, 1))
    rows = [("a", image, 0), ("b", image, 2), ("c", image, label)]
    write_parquet(tmp_path / "source" / "train-00000-of-00001.parquet", rows, ["x", "y", "z"])
    with pytest.raises(ValueError, match=rf"label {label} in .*train-00000-of-00001.parquet row 2 {reason}"):
        prepare_here(tmp_path / "source", tmp_path / "target")


def test_a_validation_class_that_training_has_not_is_named(tmp_path: Path) -> None:
    images = small_images()
    images["validation"]["n09999999"] = images["validation"].pop(SYNSETS[0])
    with pytest.raises(ValueError, match=r"val/n09999999 is not one of the 5 classes of .*/train;"):
        prepare_here(write_folders(tmp_path / "source", images), tmp_path / "target")


def test_a_source_that_is_not_there_or_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"the source .*absent does not exist"):
        prepare_here(tmp_path / "absent", tmp_path / "target")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "readme.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"odd is not a known kind of source; give folders train and val"):
        prepare_here(tmp_path / "odd", tmp_path / "target")
    write_folders(tmp_path / "source", small_images())
    with pytest.raises(ValueError, match=r"is not a known kind of source; .* \(or class folders and --split\)"):
        prepare_here(tmp_path / "source" / "train", tmp_path / "target")
    (tmp_path / "flat" / "train").mkdir(parents=True)
    (tmp_path / "flat" / "train" / "a.JPEG").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"flat/train has no class folders"):
        prepare_here(tmp_path / "flat", tmp_path / "target")


def test_a_download_that_is_not_complete_is_refused(tmp_path: Path) -> None:
    source = write_downloaded(tmp_path / "source", small_images())
    (source / "data" / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(ValueError, match=r"train has 2 of 3 shards, the first missing one is number 00001"):
        prepare_here(source, tmp_path / "target")


def test_shards_of_no_split_by_their_names_need_one(tmp_path: Path) -> None:
    images = small_images()
    write_parquet(tmp_path / "source" / "part-0.parquet", [("a", images["train"][SYNSETS[0]][0][1], 0)], ["x"])
    with pytest.raises(ValueError, match=r"part-0.parquet does not name its split"):
        prepare_here(tmp_path / "source", tmp_path / "a")
    assert prepare_here(tmp_path / "source", tmp_path / "b", split="train")["splits"]["train"]["images"] == 1


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ("Train-0", "Valid-0"),
        ("TRAIN", "VAL"),
        ("training-00000-of-00001", "dev-00000-of-00001"),
        ("train2017", "val2017"),
    ],
)
def test_shards_of_splits_in_any_case_and_form_are_taken(tmp_path: Path, train: str, validation: str) -> None:
    one, two = (jpeg(smooth(9, 9, seed)) for seed in (1, 2))
    write_parquet(tmp_path / "source" / f"{train}.parquet", [("one", one, 0)], ["x"])
    write_parquet(tmp_path / "source" / f"{validation}.parquet", [("two", two, 0)], ["x"])
    for name in ("._train-0.parquet", "._Valid.parquet"):
        (tmp_path / "source" / name).write_bytes(b"a Mac's")
    prepare_here(tmp_path / "source", tmp_path / "target")
    assert prepared_rows(tmp_path / "target", "train") == [("one", one, 0)]
    assert prepared_rows(tmp_path / "target", "validation") == [("two", two, 0)]


def test_hidden_shards_are_none_of_the_split_that_is_given(tmp_path: Path) -> None:
    one = jpeg(smooth(9, 9, 1))
    write_parquet(tmp_path / "source" / "part-0.parquet", [("one", one, 0)], ["x"])
    (tmp_path / "source" / "._part-0.parquet").write_bytes(b"a Mac's")
    assert prepare_here(tmp_path / "source", tmp_path / "target", split="train")["splits"]["train"]["images"] == 1


@pytest.mark.parametrize(
    ("write", "named"),
    [
        (write_folders, "source/train"),
        (write_archives, "img_train.tar"),
        (write_downloaded, "data/test-00000-of-00001.parquet"),
    ],
)
def test_a_source_whose_names_say_the_split_takes_no_other(tmp_path: Path, write, named: str) -> None:
    source = write(tmp_path / "source", small_images())
    with pytest.raises(ValueError, match=rf"{named} is by its name the split \w+; leave out --split train, or give"):
        prepare_here(source, tmp_path / "target", split="train")
    assert prepare_here(source, tmp_path / "target")["splits"]["validation"]["images"] == 10


def test_two_names_for_one_split_are_refused(tmp_path: Path) -> None:
    folders = write_folders(tmp_path / "folders", small_images())
    (folders / "validation").mkdir()
    with pytest.raises(ValueError, match=r"folders/val and .*folders/validation are both the split validation; move"):
        prepare_here(folders, tmp_path / "target")
    downloaded = write_downloaded(tmp_path / "downloaded", small_images())
    shutil.copy(downloaded / "data" / "test-00000-of-00001.parquet", downloaded / "data" / "val-0.parquet")
    with pytest.raises(
        ValueError, match=r"data holds val-0.parquet and validation-00000-of-00003.parquet, .* move one"
    ):
        prepare_here(downloaded, tmp_path / "target")


def test_source_shards_that_were_mended_added_or_removed_are_unpacked_again(tmp_path: Path) -> None:
    one, two, three = (jpeg(smooth(9, 9, seed)) for seed in (1, 2, 3))
    source = tmp_path / "source"
    write_parquet(source / "train-a.parquet", [("one", one, 0), ("two", one, 1)], ["x", "y"])
    write_parquet(source / "train-b.parquet", [("three", two, 0)], ["x", "y"])
    write_parquet(source / "train-c.parquet", [("four", three, 7)], ["x", "y"])
    with pytest.raises(ValueError, match=r"label 7 in .*train-c.parquet row 0 is not in"):
        prepare_here(source, tmp_path / "target")
    # Two labels in turn leave the size as it is, and what the footer tells of them.
    write_parquet(source / "train-a.parquet", [("one", one, 1), ("two", one, 0)], ["x", "y"])
    (source / "train-b.parquet").unlink()
    write_parquet(source / "train-0.parquet", [("five", three, 1)], ["x", "y"])
    write_parquet(source / "train-c.parquet", [("four", three, 0)], ["x", "y"])
    prepare_here(source, tmp_path / "target")
    assert sorted(prepared_rows(tmp_path / "target", "train")) == [
        ("five", three, 1),
        ("four", three, 0),
        ("one", one, 1),
        ("two", one, 0),
    ]


def test_unpacked_shards_that_are_no_longer_wanted_are_removed(tmp_path: Path) -> None:
    image = jpeg(smooth(9, 9, 1))
    source, work = tmp_path / "source", tmp_path / "target" / "preparing"
    for labels in ([0, 7], [1, 7]):
        for number, label in enumerate(labels):
            write_parquet(source / f"train-{number}.parquet", [(str(number), image, label)], ["x", "y"])
        with pytest.raises(ValueError, match="label 7"):
            prepare_here(source, tmp_path / "target")
        first, index = sorted(work.iterdir())
        assert index.name == f"{first.name}.index"


def test_images_of_parquet_without_names_get_one_of_their_shard(tmp_path: Path) -> None:
    images = [jpeg(smooth(9, 9, seed)) for seed in range(3)]
    write_parquet(tmp_path / "source" / "train-0.parquet", [(None, one, 0) for one in images[:2]], ["x"])
    write_parquet(tmp_path / "source" / "train-1.parquet", [(None, images[2], 0)], ["x"])
    prepare_here(tmp_path / "source", tmp_path / "target")
    assert sorted(prepared_rows(tmp_path / "target", "train")) == [
        ("train-0.parquet row 0", images[0], 0),
        ("train-0.parquet row 1", images[1], 0),
        ("train-1.parquet row 0", images[2], 0),
    ]


def test_a_source_shard_with_a_torn_page_is_named(tmp_path: Path) -> None:
    source = write_downloaded(tmp_path / "source", small_images())
    shard = source / "data" / "train-00001-of-00003.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[:4] + b"\xff" * 64 + content[68:])
    with pytest.raises(
        ValueError, match=rf"{shard} cannot be read \(.+\); replace the file with an intact copy"
    ) as caught:
        prepare_here(source, tmp_path / "target")
    assert "\n" not in str(caught.value)
    shard.write_bytes(content)
    prepare_here(source, tmp_path / "target")


def test_rows_without_bytes_and_splits_of_different_classes_are_refused(tmp_path: Path) -> None:
    image = jpeg(smooth(9, 9, 1))
    write_parquet(tmp_path / "a" / "train-0.parquet", [("a", image, 0), ("b", None, 0)], ["x"])
    with pytest.raises(ValueError, match=r"train-0.parquet row 1 has no image bytes, only the path b, which does not"):
        prepare_here(tmp_path / "a", tmp_path / "target-a")
    write_parquet(tmp_path / "b" / "train-0.parquet", [("a", image, 0)], ["x"])
    write_parquet(tmp_path / "b" / "validation-0.parquet", [("a", image, 0)], ["y"])
    with pytest.raises(
        ValueError, match=r"class 'y' of the validation images .* is not one of the model's 1 classes, 'x'"
    ):
        prepare_here(tmp_path / "b", tmp_path / "target-b")


def test_a_target_with_other_shards_is_refused(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_images())
    write_parquet(tmp_path / "target" / "mine.parquet", [("a", b"x", 0)], ["x"])
    with pytest.raises(ValueError, match=r"target already holds mine.parquet, which is not of this set"):
        prepare_here(source, tmp_path / "target")
    with pytest.raises(ValueError, match="source and target are both"):
        prepare_here(source, source)


def test_a_source_that_changes_meanwhile_is_named(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_images())
    victim = next((source / "train" / SYNSETS[0]).iterdir())

    def changed(function, tasks):
        victim.write_bytes(victim.read_bytes() + b"more")
        yield from in_turn(function, tasks)

    with pytest.raises(
        OSError, match=rf"{victim.name} has \d+ bytes but had \d+ when the job started; restore the source"
    ):
        prepare_here(source, tmp_path / "target", run=changed)
    assert not (tmp_path / "target" / "manifest.json").exists()


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    usage = namedtuple("usage", "free")
    source = write_folders(tmp_path / "source", small_images())
    monkeypatch.setattr("dist_resnet.storage.files.shutil.disk_usage", lambda path: usage(10_000))
    with pytest.raises(OSError, match=r"has room for 10\.\d kB and the set needs about 55\.\d kB; free space"):
        prepare_here(source, tmp_path / "target")
    assert not list((tmp_path / "target").iterdir())


def test_a_disk_that_fills_up_leaves_nothing_that_looks_finished(tmp_path: Path, monkeypatch) -> None:
    source = write_folders(tmp_path / "source", small_images())
    prepare_here(source, tmp_path / "undisturbed")
    written = []

    def full(path: str) -> None:
        written.extend([path] if path.endswith(PARTIAL) else [])
        if len(written) == 8 and path == written[-1]:
            raise OSError(errno.ENOSPC, "No space left on device", path)

    with monkeypatch.context() as patch:
        patch.setattr("dist_resnet.storage.files._make_durable", full)
        with pytest.raises(
            OSError, match=r"target is full \(.*No space left on device.*\); free space and run the same"
        ):
            prepare_here(source, tmp_path / "target")
    assert not list((tmp_path / "target").rglob("*.partial"))
    assert not (tmp_path / "target" / "manifest.json").exists()
    with pytest.raises(ValueError, match="is not fully prepared"):
        open_split(f"{tmp_path}/target/train-*.parquet")
    prepare_here(source, tmp_path / "target")
    assert sums(tmp_path / "target") == sums(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"seed": -1}, "seed must be in 0 .. 18446744073709551615, got -1"),
        ({"shard_megabytes": 0}, "--shard-megabytes must be more than 0, got 0"),
        ({"split": "Part 1"}, "must consist of the letters a .. z, got 'Part 1'"),
    ],
)
def test_impossible_options_are_refused(changes: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Options(source="a", target="b", **changes)


def test_a_limit_of_the_kernel_on_writing_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    """The kernel's own refusal in the middle of a shard, at the size that a file may have."""
    source = write_folders(tmp_path / "source", small_images(per_class=40))
    program = (
        "import resource, sys\n"
        "from oracle.sources import prepare_here\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        "prepare_here(sys.argv[1], sys.argv[2], shard_megabytes=0.1)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(source), str(tmp_path / "target")],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[3])]),
        },
    )
    assert "target is full (" in ended.stderr.splitlines()[-1], ended.stderr
    assert {one.name for one in (tmp_path / "target").iterdir()} == {"preparing.json", "preparing"}
    manifest = prepare_here(source, tmp_path / "target", shard_megabytes=0.1)
    assert manifest["splits"]["train"]["images"] == 200
