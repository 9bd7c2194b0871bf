"""What counts as an image, a class and a split in folders; oracle: the images that the test wrote, read by pyarrow."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
from oracle.images import jpeg, smooth
from oracle.sources import SYNSETS, expected_rows, prepare_here, prepared_rows, small_images, write_folders

CLASSES = ("cat", "dog")


def make(root: Path, *, splits: tuple[str, ...] = ("train", "val"), per_class: int = 3) -> Path:
    """Images of two classes in folders of these names, each unlike the others."""
    number = 0
    for split in splits:
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for _ in range(per_class):
                number += 1
                (folder / f"{number}.jpg").write_bytes(jpeg(smooth(20, 20, number)))
    return root


def counts(manifest: dict[str, Any]) -> dict[str, list[int]]:
    return {split: entry["class_counts"] for split, entry in manifest["splits"].items()}


def upload(local: Path, uri: str) -> str:
    filesystem, root = pafs.FileSystem.from_uri(uri)
    for file in local.rglob("*"):
        if file.is_file():
            with filesystem.open_output_stream(f"{root}/{local.name}/{file.relative_to(local)}") as stream:
                stream.write(file.read_bytes())
    return f"{uri}/{local.name}"


# Hidden and tools' names


def add_clutter(root: Path) -> None:
    one = jpeg(smooth(20, 20, 99))
    places = [
        ".ipynb_checkpoints/1-checkpoint.jpg",
        "train/.ipynb_checkpoints/1-checkpoint.jpg",
        "train/cat/.ipynb_checkpoints/1-checkpoint.jpg",
        "train/cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_XL.jpg",
        "train/cat/._1.jpg",
        "train/dog/._2.jpg",
        "train/dog/Thumbs.db",
        "train/dog/deep/.git/objects/a.jpg",
        "__MACOSX/train/cat/._1.jpg",
        "train/__MACOSX/._cat",
        "train/$RECYCLE.BIN/1.jpg",
        "val/lost+found/1.jpg",
        "val/cat/.DS_Store",
        "val/.DS_Store",
    ]
    for place in places:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(one)


CLUTTER = (
    "14 hidden and tools' files and folders: .ipynb_checkpoints (3), .DS_Store (2), ._* (2), __MACOSX (2), "
    "$RECYCLE.BIN (1), .git (1), @eaDir (1), Thumbs.db (1), lost+found (1)"
)


def test_hidden_and_tools_names_are_skipped_at_every_depth_and_counted(tmp_path: Path) -> None:
    prepare_here(make(tmp_path / "clean"), tmp_path / "a")
    source = make(tmp_path / "source")
    add_clutter(source)
    manifest = prepare_here(source, tmp_path / "b")
    assert manifest["left_out"] == [CLUTTER]
    assert manifest["class_names"] == list(CLASSES)
    for split in ("train", "validation"):
        assert prepared_rows(tmp_path / "b", split) == prepared_rows(tmp_path / "a", split)


def test_they_are_skipped_and_counted_alike_on_an_object_store(tmp_path: Path, s3: str) -> None:
    source = make(tmp_path / "source")
    add_clutter(source)
    local = prepare_here(source, tmp_path / "local")
    stored = upload(source, f"{s3}/{tmp_path.name}")
    assert prepare_here(stored, tmp_path / "stored")["splits"] == local["splits"]
    assert prepare_here(stored, tmp_path / "stored")["left_out"] == [CLUTTER]


def test_class_folders_alone_are_cleared_too(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    add_clutter(source)
    manifest = prepare_here(source / "train", tmp_path / "target", split="train")
    assert manifest["class_names"] == list(CLASSES)
    assert counts(manifest) == {"train": [3, 3]}


# Links


def test_links_back_end_and_give_no_image_twice(tmp_path: Path) -> None:
    prepare_here(make(tmp_path / "clean"), tmp_path / "a")
    source = make(tmp_path / "source")
    train = source / "train"
    links = {
        "cat/loop": "..",
        "cat/self": ".",
        "cat/root": "../..",
        "cat/far": str(tmp_path),
        "cat/more": "../dog",
        "dog/val": "../../val/dog",
        "loop": ".",
        "up": "..",
        "zebra": "cat",
    }
    for place, target in links.items():
        (train / place).symlink_to(target)
    manifest = prepare_here(source, tmp_path / "b")
    assert manifest["class_names"] == list(CLASSES)
    first = ", ".join(f"{train}/{place}" for place in ("cat/far", "cat/loop", "cat/more"))
    assert manifest["left_out"] == [f"9 links to folders that are already read: {first} and 6 more"]
    for split in ("train", "validation"):
        assert prepared_rows(tmp_path / "b", split) == prepared_rows(tmp_path / "a", split)


def test_links_to_files_and_to_other_folders_are_followed(tmp_path: Path) -> None:
    """As people make a subset of classes: by links to the whole set's folders and files."""
    images = small_images()
    whole = write_folders(tmp_path / "whole", images)
    subset = tmp_path / "subset"
    for split in ("train", "val"):
        (subset / split).mkdir(parents=True)
        (subset / split / SYNSETS[0]).symlink_to(whole / split / SYNSETS[0])
        (subset / split / SYNSETS[1]).mkdir()
        for file in (whole / split / SYNSETS[1]).iterdir():
            (subset / split / SYNSETS[1] / file.name).symlink_to(file)
        (subset / split / SYNSETS[2]).mkdir()
        (subset / split / SYNSETS[2] / "deep").symlink_to(whole / split / SYNSETS[2])
    manifest = prepare_here(subset, tmp_path / "target")
    assert manifest["left_out"] == []
    rows = prepared_rows(tmp_path / "target", "train")
    wanted = [row for row in expected_rows(images, "train") if row[2] < 3]
    assert sorted(one for _, one, _ in rows) == sorted(one for _, one, _ in wanted)
    assert {name.split("/")[0] for name, _, label in rows if label == 2} == {"deep"}


def test_a_folder_that_two_links_lead_to_is_read_once(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    more = tmp_path / "more"
    (more / "deep").mkdir(parents=True)
    (more / "a.jpg").write_bytes(jpeg(smooth(20, 20, 77)))
    (more / "deep" / "b.jpg").write_bytes(jpeg(smooth(20, 20, 78)))
    for place in ("cat/x", "cat/y", "dog/z"):
        (source / "train" / place).symlink_to(more)
    (source / "train" / "cat" / "w").symlink_to(more / "deep")
    manifest = prepare_here(source, tmp_path / "target")
    assert counts(manifest)["train"] == [5, 3]
    assert len(manifest["left_out"]) == 1
    assert manifest["left_out"][0].startswith("2 links to folders that are already read")
    assert {name for name, _, label in prepared_rows(tmp_path / "target", "train") if "/" in name} == {
        "w/b.jpg",
        "x/a.jpg",
    }


def test_a_cycle_in_a_folder_that_is_linked_ends_too(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole")
    (whole / "train" / "cat" / "loop").symlink_to("..")
    subset = tmp_path / "subset" / "train"
    subset.mkdir(parents=True)
    (subset / "cat").symlink_to(whole / "train" / "cat")
    manifest = prepare_here(tmp_path / "subset", tmp_path / "target")
    assert counts(manifest) == {"train": [3]}
    assert manifest["left_out"] == [f"1 links to folders that are already read: {subset}/cat/loop"]


def test_a_split_that_is_a_link_to_another_is_what_its_owner_wants(tmp_path: Path) -> None:
    source = make(tmp_path / "source", splits=("train",))
    (source / "val").symlink_to("train")
    assert counts(prepare_here(source, tmp_path / "target")) == {"train": [3, 3], "validation": [3, 3]}


def test_links_to_nothing_and_pipes_are_left_out_with_a_word(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    (source / "train" / "cat" / "gone.jpg").symlink_to("nowhere")
    (source / "train" / "cat" / "round.jpg").symlink_to("round.jpg")
    os.mkfifo(source / "train" / "cat" / "pipe.jpg")
    manifest = prepare_here(source, tmp_path / "target")
    assert counts(manifest)["train"] == [3, 3]
    cat = source / "train" / "cat"
    assert manifest["left_out"] == [
        "1 files that are not images: device or pipe (1)",
        f"2 broken links: {cat}/gone.jpg, {cat}/round.jpg",
    ]


# Images


def test_files_are_taken_by_their_first_bytes_and_the_others_counted_by_kind(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    cat, one = source / "train" / "cat", smooth(20, 20, 50)
    for name in ("a.jfif", "b.jpe", "c", "d.dat", "e.jpg.bak"):
        (cat / name).write_bytes(jpeg(one))
    (cat / "f.avif").write_bytes(jpeg(one, format="AVIF"))
    (cat / "g.image").write_bytes(jpeg(one, format="WEBP"))
    (cat / "notes.txt").write_text("eight cats")
    (cat / "more.txt").write_text("and a dog")
    (cat / "boxes.xml").write_text("<?xml version='1.0'?><annotation/>")
    (cat / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (cat / "nothing").write_bytes(b"")
    manifest = prepare_here(source, tmp_path / "target")
    assert counts(manifest)["train"] == [10, 3]
    assert manifest["left_out"] == ["5 files that are not images: text (.txt) (2), HEIC (1), XML (1), empty (1)"]
    assert [(one["image"], one["reason"]) for one in manifest["splits"]["train"]["converted"]] == [
        ("train/cat/f.avif", "AVIF")
    ]
    assert manifest["splits"]["train"]["damaged"] == []


def test_a_file_of_an_image_ending_that_is_none_is_a_damaged_image(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    (source / "train" / "cat" / "page.jpg").write_bytes(b"<html>not found</html>")
    manifest = prepare_here(source, tmp_path / "target")
    assert [one["image"] for one in manifest["splits"]["train"]["damaged"]] == ["train/cat/page.jpg"]
    assert manifest["left_out"] == []


def test_a_class_folder_of_other_files_is_told_what_it_holds(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    (source / "train" / "boxes").mkdir()
    for number in range(3):
        (source / "train" / "boxes" / f"{number}.xml").write_text("<?xml version='1.0'?><annotation/>")
    with pytest.raises(
        ValueError,
        match=r"train/boxes should be a class but holds no image, only 3 files that are not images: XML \(3\);",
    ):
        prepare_here(source, tmp_path / "target")


def test_what_may_not_be_read_is_found_before_anything_is_decoded(tmp_path: Path, monkeypatch) -> None:
    source = make(tmp_path / "source")
    closed = source / "train" / "dog" / "closed.jpg"
    closed.write_bytes(jpeg(smooth(20, 20, 1)))
    closed.chmod(0o600)
    access = os.access
    monkeypatch.setattr("os.access", lambda path, mode: path != str(closed) and access(path, mode))
    with pytest.raises(ValueError, match=rf"{closed} is not readable; change its permissions"):
        prepare_here(source, tmp_path / "target")
    assert not list((tmp_path / "target").iterdir())


def test_a_name_that_is_not_utf8_is_refused_with_its_bytes(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    with open(os.fsencode(source) + b"/train/cat/caf\xe9.jpg", "wb") as file:
        file.write(jpeg(smooth(20, 20, 1)))
    with pytest.raises(ValueError, match=re.escape(r"train/cat/caf\xe9.jpg is not UTF-8; rename")):
        prepare_here(source, tmp_path / "target")


# Splits


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ("train", "valid"),
        ("Train", "Valid"),
        ("TRAIN", "VAL"),
        ("training", "validation"),
        ("Training", "Validation"),
        ("train", "dev"),
        ("training_set", "val_set"),
        ("train2017", "val2017"),
    ],
)
def test_split_folders_of_any_case_and_form_make_the_same_set(tmp_path: Path, train: str, validation: str) -> None:
    prepare_here(make(tmp_path / "usual"), tmp_path / "a")
    manifest = prepare_here(make(tmp_path / "source", splits=(train, validation)), tmp_path / "b")
    assert counts(manifest) == {"train": [3, 3], "validation": [3, 3]}
    assert manifest["left_out"] == []
    for split in ("train", "validation"):
        assert prepared_rows(tmp_path / "b", split) == prepared_rows(tmp_path / "a", split)


def test_split_folders_are_no_classes_of_the_split_that_is_given(tmp_path: Path) -> None:
    source = make(tmp_path / "source", splits=("Train", "Valid"))
    with pytest.raises(ValueError, match=r"source/Train is by its name the split train; leave out --split train"):
        prepare_here(source, tmp_path / "target", split="train")


@pytest.mark.parametrize(("given", "name"), [("Train", "train"), ("val", "validation"), ("VALID", "validation")])
def test_the_split_that_is_given_may_have_any_form_too(tmp_path: Path, given: str, name: str) -> None:
    source = make(tmp_path / "source")
    manifest = prepare_here(source / "train", tmp_path / "target", split=given)
    assert list(manifest["splits"]) == [name]
    assert manifest["splits"][name]["shards"][0]["file"].startswith(f"{name}-00000-of-")


def test_a_test_folder_of_classes_is_the_test_split(tmp_path: Path) -> None:
    source = make(tmp_path / "source", splits=("train", "valid", "Test"))
    shutil.rmtree(source / "Test" / "dog")
    manifest = prepare_here(source, tmp_path / "target")
    assert counts(manifest) == {"train": [3, 3], "validation": [3, 3], "test": [3, 0]}
    assert manifest["left_out"] == ["1 of 2 classes have no test image"]


def test_a_test_folder_without_classes_is_left_out_with_a_word(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    (source / "test").mkdir()
    (source / "test" / "1.jpg").write_bytes(jpeg(smooth(20, 20, 1)))
    assert prepare_here(source, tmp_path / "flat")["left_out"] == ["test/ next to the split folders"]
    (source / "test" / "unknown").mkdir()
    (source / "test" / "1.jpg").rename(source / "test" / "unknown" / "1.jpg")
    left = prepare_here(source, tmp_path / "unknown")["left_out"]
    assert left[-1] == f"{source}/test, whose folders (unknown) are not classes of train"


def test_a_class_may_be_called_as_a_split_is(tmp_path: Path) -> None:
    """CIFAR-100 has a class train."""
    source = make(tmp_path / "source")
    (source / "train" / "dog").rename(source / "train" / "train")
    manifest = prepare_here(source / "train", tmp_path / "target", split="train")
    assert manifest["class_names"] == ["cat", "train"]


@pytest.mark.parametrize(
    ("moves", "split", "complaint"),
    [
        # Unpacked twice.
        (
            {"train": "train/train"},
            None,
            r"train/train should be a class but is by its name the split train and holds",
        ),
        (
            {"train": "seg_train", "val": "seg_test"},
            "train",
            r"source/seg_test should be a class but is by its name the split test",
        ),
        ({"train": "seg_train", "val": "seg_test"}, None, r"holds seg_test, seg_train, which look like splits"),
        (
            {"train": "set/train", "val": "set/val"},
            None,
            r"holds set, whose folders are named like splits; give --source .*source/set",
        ),
        ({"train": "set/train", "val": "set/val"}, "train", r"set should be a class of train but holds a folder val"),
        (
            {"train/cat": "cat/train", "val/cat": "cat/val"},
            "train",
            r"cat should be a class of train but holds .* val,",
        ),
        (
            {"train": "train/ImageNet", "val": "val/ImageNet"},
            None,
            r"train has one class, ImageNet, which holds",
        ),
    ],
)
def test_folders_of_splits_where_classes_should_be_are_refused_by_name(
    tmp_path: Path, moves: dict[str, str], split: str | None, complaint: str
) -> None:
    made = make(tmp_path / "made")
    for old, new in moves.items():
        (tmp_path / "source" / new).parent.mkdir(parents=True, exist_ok=True)
        (made / old).rename(tmp_path / "source" / new)
    with pytest.raises(ValueError, match=complaint):
        prepare_here(tmp_path / "source", tmp_path / "target", split=split)
    assert not list((tmp_path / "target").iterdir())


def test_class_folders_without_split_are_of_no_known_kind_even_with_a_class_called_like_a_split(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    (source / "train" / "cat").rename(source / "train" / "test_tube")
    with pytest.raises(
        ValueError, match=r"source/train is not a known kind of source; .* \(or class folders and --split\)"
    ):
        prepare_here(source / "train", tmp_path / "target")


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    source = make(tmp_path / "source", splits=("train", "val", "Valid"))
    with pytest.raises(ValueError, match=r"source/Valid and .*source/val are both the split validation; move one"):
        prepare_here(source, tmp_path / "target")


def test_class_sets_that_differ_are_found_before_anything_is_decoded(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    (source / "val" / "dog").rename(source / "val" / "Dog")
    with pytest.raises(ValueError, match=r"val/Dog is not one of the 2 classes of .*/train, but 'dog' is"):
        prepare_here(source, tmp_path / "target")
    shutil.rmtree(source / "val" / "Dog")
    with pytest.raises(ValueError, match=r"class dog has no validation image"):
        prepare_here(source, tmp_path / "target")
    assert not list((tmp_path / "target").iterdir())
