"""WebDataset archives; oracle: the images and classes that tarfile put in, and the set of the same class folders."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from oracle.images import jpeg, smooth
from oracle.sources import (
    SYNSETS,
    damaged_images,
    expected_rows,
    prepare_here,
    prepared_rows,
    small_images,
    tar,
    write_webdataset,
)

IMAGE = jpeg(smooth(9, 9, 1))
OTHER = jpeg(smooth(9, 9, 2))


def refusal(source: Path, target: Path, **options: object) -> str:
    with pytest.raises(ValueError, match=" ") as caught:
        prepare_here(source, target, **options)
    line = str(caught.value)
    assert line == " ".join(line.split())  # as the command prints it, on one line
    assert not target.exists() or not list(target.iterdir())
    return line


def write_one(root: Path, files: list[tuple[str, bytes]], name: str = "train-0000.tar") -> Path:
    root.mkdir(exist_ok=True)
    (root / name).write_bytes(tar(files))
    return root


@pytest.mark.parametrize("ending", ["cls", "json"])
@pytest.mark.parametrize(
    ("names", "split"),
    [
        ({"train": "imagenet1k-train-{:04d}.tar"}, None),
        ({"train": "{:06d}.tar"}, "train"),
        ({"train": "train/{:06d}.tar"}, None),
        ({"train": "train-{:05d}-of-00002.tar", "validation": "validation-{:05d}-of-00002.tar"}, None),
        ({"train": "Train/a{:04d}.tar", "validation": "valid/b{:04d}.tar"}, None),
    ],
)
def test_images_and_classes_are_those_put_in(
    tmp_path: Path, ending: str, names: dict[str, str], split: str | None
) -> None:
    images = small_images()
    source = write_webdataset(tmp_path / "source", images, ending=ending, names=names)
    manifest = prepare_here(source, tmp_path / "target", split=split)
    assert (manifest["source_kind"], manifest["left_out"]) == ("webdataset", [])
    assert list(manifest["splits"]) == list(names)
    for name in names:
        assert sorted(prepared_rows(tmp_path / "target", name)) == expected_rows(images, name)


def test_damaged_images_are_left_out_and_listed_by_archive(tmp_path: Path) -> None:
    source = write_webdataset(tmp_path / "source", damaged_images())
    splits = prepare_here(source, tmp_path / "target")["splits"]
    assert [one["image"] for one in splits["train"]["damaged"]] == ["train-0000.tar/cut.JPEG"]
    assert [one["image"] for one in splits["validation"]["damaged"]] == ["val-0001.tar/page.JPEG"]


def test_the_job_runs_in_any_order_of_tasks_to_the_same_bytes(tmp_path: Path) -> None:
    source = write_webdataset(tmp_path / "source", small_images())

    def backwards(function, tasks):
        for task in reversed(tasks):
            yield from function(task)

    prepare_here(source, tmp_path / "a")
    prepare_here(source, tmp_path / "b", run=backwards)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_numbers_are_the_labels_and_names_come_from_a_list(tmp_path: Path) -> None:
    images = small_images()
    # Neither sorted nor complete: the images have five of seven classes.
    classes = [SYNSETS[3], "n00000001", SYNSETS[0], SYNSETS[4], SYNSETS[1], SYNSETS[2], "n00000000"]
    source = write_webdataset(tmp_path / "source", images, classes=classes)
    manifest = prepare_here(source, tmp_path / "bare")
    assert manifest["class_names"] == ["0", "1", "2", "3", "4", "5"]
    assert manifest["left_out"] == [
        "1 of 6 classes have no train image",
        "1 of 6 classes have no validation image",
    ]
    wanted = {(name, classes.index(synset)) for synset, files in images["train"].items() for name, _ in files}
    assert {(name, label) for name, _, label in prepared_rows(tmp_path / "bare", "train")} == wanted
    lines = "".join(f"{name} some words\n" for name in classes)
    (tmp_path / "map.txt").write_text(lines)
    (source / "classnames.txt").write_text(lines)
    for target, options in (("beside", {}), ("given", {"class_map": str(tmp_path / "map.txt")})):
        manifest = prepare_here(source, tmp_path / target, **options)
        assert manifest["class_names"] == classes
        assert prepared_rows(tmp_path / target, "train") == prepared_rows(tmp_path / "bare", "train")
    (source / "classes.txt").write_text(lines)
    assert "both name the classes; choose one with --class-map" in refusal(source, tmp_path / "target")
    (source / "classes.txt").unlink()
    (source / "classnames.txt").write_text("a\nb\n")
    line = refusal(source, tmp_path / "target")
    assert f"the images have the class 5, but the class map {source}/classnames.txt names 2 classes, 0 .. 1" in line


def test_keys_that_start_anew_in_each_archive_are_told_apart(tmp_path: Path) -> None:
    source = write_one(tmp_path / "source", [("0.jpg", IMAGE), ("0.cls", b"a")])
    write_one(source, [("0.jpg", OTHER), ("0.cls", b"a\n")], "train-0001.tar")
    prepare_here(source, tmp_path / "target")
    found = {(name, one) for name, one, _ in prepared_rows(tmp_path / "target", "train")}
    assert found == {("0.jpg", IMAGE), ("train-0001.tar/0.jpg", OTHER)}


def test_files_of_a_sample_may_be_in_any_order_and_in_folders(tmp_path: Path) -> None:
    files = [("./b/1.v2.cls", b"x"), ("a/1.cls", b"b"), ("a/1.txt", b"text"), ("a/1.png", IMAGE), ("c/2.cls", b"c")]
    files += [("._a.jpg", b"x"), ("b/1.jpg", OTHER), ("b/1.cls", b"a"), ("a/1.json", b"{}"), ("a/1.mask.png", OTHER)]
    manifest = prepare_here(write_one(tmp_path / "source", files), tmp_path / "target")
    assert sorted((name, label) for name, _, label in prepared_rows(tmp_path / "target", "train")) == [
        ("a/1.png", 1),
        ("b/1.jpg", 0),
    ]
    assert manifest["left_out"] == [
        "1 classes without an image, such as of c/2 in train-0000.tar",
        "3 other files of samples: .mask.png (1), .txt (1), .v2.cls (1)",
        "1 hidden and tools' files and folders: ._* (1)",
    ]


@pytest.mark.parametrize(
    ("fields", "column", "label"),
    [
        ({"label": 3, "class_name": "cat"}, None, "3"),
        ({"label": 3, "class_name": "cat"}, "class_name", "cat"),
        ({"width": 3, "category": "cat"}, None, "cat"),
        ({"label": 3.0}, None, "3"),
        ({"breed": " cat "}, "breed", "cat"),
    ],
)
def test_the_class_is_a_field_of_json(tmp_path: Path, fields: dict, column: str | None, label: str) -> None:
    files = [("1.jpg", IMAGE), ("1.json", json.dumps(fields).encode())]
    manifest = prepare_here(write_one(tmp_path / "source", files), tmp_path / "target", label_column=column)
    assert manifest["class_names"][-1] == label


def test_a_chosen_field_wins_over_cls(tmp_path: Path) -> None:
    files = [("1.jpg", IMAGE), ("1.cls", b"0"), ("1.json", b'{"name": "cat"}')]
    source = write_one(tmp_path / "source", files)
    assert prepare_here(source, tmp_path / "a")["class_names"] == ["0"]
    assert prepare_here(source, tmp_path / "b", label_column="name")["class_names"] == ["cat"]


@pytest.mark.parametrize(
    ("files", "options", "complaint"),
    [
        ([("1.txt", b"a cat")], {}, "has no class for 1.jpg: neither a file 1.cls nor a label in 1.json; write one"),
        ([("1.cls", b"")], {}, "has no class for 1.jpg: neither"),
        ([("1.cls", b"a\nb")], {}, "has several lines in 1.cls; a class is one line"),
        ([("1.cls", b"\xff\xfe")], {}, "has 1.cls, which is not UTF-8 text; write the class"),
        ([("1.cls", b"-1")], {}, "1.jpg in .* has label -1, which means no label"),
        ([("1.cls", b"a"), ("1.cls", b"a")], {}, "has 1.cls twice; give each key one image and one class"),
        ([("1.cls", b"a"), ("1.png", IMAGE)], {}, "has 1.jpg and 1.png of one key; give each"),
        ([("1.cls", b"a"), ("1.jpg", IMAGE)], {}, "has 1.jpg and 1.jpg of one key; give each"),
        ([("1.json", b"{")], {}, r"has 1.json, which is not JSON \(.*\); write it again"),
        ([("1.json", b"[3]")], {}, "has no class for 1.jpg"),
        ([("1.json", b'{"label": null}')], {}, "has no class for 1.jpg"),
        ([("1.json", b'{"label": [1]}')], {}, r"has label \[1\] in 1.json; a class is a text or a whole number"),
        ([("1.json", b'{"label": 1.5}')], {}, "has label 1.5 in 1.json; a class is"),
        ([("1.json", b'{"label": true}')], {}, "has label True in 1.json; a class is"),
        ([("1.json", b'{"cls": 1, "category": 2}')], {}, "several fields that may be the class in 1.json, cls, cat"),
        ([("1.json", b'{"cls": 1}')], {"label_column": "x"}, "has no field x in 1.json, it has cls; choose another"),
        ([("1.cls", b"a")], {"label_column": "x"}, "has no class for 1.jpg"),
    ],
)
def test_samples_without_one_class_are_refused_by_name(
    tmp_path: Path, files: list[tuple[str, bytes]], options: dict, complaint: str
) -> None:
    source = write_one(tmp_path / "source", [("1.jpg", IMAGE), *files])
    with pytest.raises(ValueError, match=f"{source}/train-0000.tar {complaint}|{complaint}"):
        prepare_here(source, tmp_path / "target", **options)
    assert not list((tmp_path / "target").iterdir())


def test_names_that_state_no_split_or_another_one_are_refused(tmp_path: Path) -> None:
    files = [("1.jpg", IMAGE), ("1.cls", b"a")]
    source = write_one(tmp_path / "source", files, "0000.tar")
    assert "0000.tar does not name its split; begin the name with train-" in refusal(source, tmp_path / "target")
    source = write_one(tmp_path / "other", files)
    assert "is by its name the split train; leave out --split val" in refusal(source, tmp_path / "target", split="val")


def test_a_validation_class_that_training_lacks_is_refused_by_image(tmp_path: Path) -> None:
    source = write_one(tmp_path / "source", [("1.jpg", IMAGE), ("1.cls", b"cat")])
    write_one(source, [("7.jpg", OTHER), ("7.cls", b"Cat")], "val-0000.tar")
    line = refusal(source, tmp_path / "target")
    assert line.startswith(f"7.jpg in {source}/val-0000.tar has class Cat, which is not one of the 1 classes of the ")
    assert "but 'cat' is" in line


def test_archives_that_are_missing_by_number_are_refused_or_reported(tmp_path: Path) -> None:
    source = write_webdataset(tmp_path / "a", small_images(), names={"train": "train-{:05d}-of-00003.tar"})
    assert "train-* are 2 of 3 archives, the first missing one is number 2; download" in refusal(source, tmp_path / "t")
    source = write_webdataset(tmp_path / "b", small_images(), names={"train": "train-{:04d}.tar"})
    (source / "train-0001.tar").rename(source / "train-0003.tar")
    (left_out,) = prepare_here(source, tmp_path / "target")["left_out"]
    assert left_out == f"2 archives {source}/train-*.tar that do not exist, the first is number 1"


def test_compressed_archives_are_refused_with_what_to_do(tmp_path: Path) -> None:
    content = tar([("1.jpg", IMAGE), ("1.cls", b"a")])
    for name in ("train-0000.tar.gz", "train-0000.tgz", "train-0000.tar"):
        source = tmp_path / name.replace(".", "-")
        source.mkdir()
        (source / name).write_bytes(gzip.compress(content))
        assert "decompress them with gzip -d, so that their names end in .tar" in refusal(source, tmp_path / "target")


def test_an_archive_cut_short_is_refused(tmp_path: Path) -> None:
    source = write_webdataset(tmp_path / "source", small_images())
    file = source / "train-0001.tar"
    file.write_bytes(file.read_bytes()[:12345])
    assert "train-0001.tar is cut short or not a tar archive" in refusal(source, tmp_path / "target")


def test_test_images_without_classes_are_left_out_with_a_word(tmp_path: Path) -> None:
    source = write_webdataset(tmp_path / "source", small_images())
    write_one(source, [("1.jpg", IMAGE), ("1.json", b'{"width": 9}')], "test-0000.tar")
    manifest = prepare_here(source, tmp_path / "target")
    assert manifest["left_out"] == ["the 1 images of test, which have no class"]
    assert list(manifest["splits"]) == ["train", "validation"]
    line = refusal(source, tmp_path / "chosen", test_split="test")
    assert "has no labeled images under the name test of --test-split; it has train, validation;" in line


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read_in_any_tar_format(tmp_path: Path, form: int) -> None:
    (tmp_path / "source").mkdir()
    name = "ä" + "x" * 200
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for ending, content in (("jpg", IMAGE), ("cls", b"a")):
            member = tarfile.TarInfo(f"{name}.{ending}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (tmp_path / "source" / "train-0.tar").write_bytes(buffer.getvalue())
    prepare_here(tmp_path / "source", tmp_path / "target")
    assert prepared_rows(tmp_path / "target", "train") == [(f"{name}.jpg", IMAGE, 0)]
