"""Class maps and chosen splits; oracle: the order of the file's lines, and the set prepared without a map."""

from pathlib import Path

import pytest
from oracle.sources import (
    SYNSETS,
    WRITERS,
    expected_rows,
    prepare_here,
    prepared_rows,
    small_images,
    write_downloaded,
    write_folders,
    write_table,
    write_webdataset,
)

from dist_resnet.data.shards.split import open_split

ORDER = (SYNSETS[3], "n99999999", SYNSETS[0], SYNSETS[4], SYNSETS[1], SYNSETS[2])


@pytest.mark.parametrize("write", WRITERS)
def test_the_order_of_a_class_map_is_the_order_of_the_labels_for_every_source(tmp_path: Path, write) -> None:
    images = small_images()
    source = write(tmp_path / "source", images)
    (tmp_path / "map.txt").write_text("\ufeff" + "".join(f"{name} some, words\r\n" for name in ORDER))
    manifest = prepare_here(source, tmp_path / "target", class_map=str(tmp_path / "map.txt"))
    assert tuple(manifest["class_names"]) == ORDER
    assert "1 of 6 classes have no train image" in manifest["left_out"]
    for split in ("train", "validation"):
        mapped = [(name, one, ORDER.index(SYNSETS[label])) for name, one, label in expected_rows(images, split)]
        assert sorted(prepared_rows(tmp_path / "target", split)) == sorted(mapped)
        assert open_split(f"{tmp_path}/target/{split}-*.parquet").class_names == ORDER


def test_a_line_without_synset_ids_is_a_class(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_images(classes=("great white shark", "cat", "dog")))
    (tmp_path / "map.txt").write_text("great white shark\ndog\ncat\n")
    manifest = prepare_here(source, tmp_path / "target", class_map=str(tmp_path / "map.txt"))
    assert manifest["class_names"] == ["great white shark", "dog", "cat"]


def test_folders_called_like_numbers_get_the_names_of_their_lines(tmp_path: Path) -> None:
    images = small_images(per_class=1, validation=1, classes=[str(number) for number in range(11)])
    source = write_folders(tmp_path / "source", images)
    names = [f"name{number}" for number in range(11)]
    (tmp_path / "map.txt").write_text("\n".join(names))
    manifest = prepare_here(source, tmp_path / "target", class_map=str(tmp_path / "map.txt"))
    assert manifest["class_names"] == names
    wanted = {(name, int(number)) for number, files in images["train"].items() for name, _ in files}
    assert {(name, label) for name, _, label in prepared_rows(tmp_path / "target", "train")} == wanted


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"cat\n", "class n01440764 of the source is not in the class map .*map.txt, which has cat; add it"),
        (b" N01440764 \n", "is not in the class map .*, which has N01440764, but 'N01440764' is; add it"),
        (b"", "is not a list of classes; give a text file with one class per line"),
        (b"a\0b\n", "is not a list of classes"),
        (b"\xff\xfe\n", "is not UTF-8 text; give a text file"),
        (b"cat\n\ndog\n", "line 2 of the class map .* is empty; a class's label is the number of its line"),
        (b"0 cat\n1 dog\n", "begin with numbers, such as '0 cat'; a class's label is the number of its line"),
        ("\n".join([*SYNSETS, SYNSETS[0]]).encode(), "names n01440764 twice; remove one of the lines"),
    ],
)
def test_a_class_map_that_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    source = write_folders(tmp_path / "source", small_images())
    (tmp_path / "map.txt").write_bytes(content)
    with pytest.raises(ValueError, match=complaint) as caught:
        prepare_here(source, tmp_path / "target", class_map=str(tmp_path / "map.txt"))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "target").iterdir())


def test_a_class_map_that_is_no_file_is_refused(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_images())
    for path, complaint in ((tmp_path / "absent", "does not exist"), (source, "is a folder")):
        with pytest.raises(FileNotFoundError, match=rf"the class map {path} {complaint}; give a text file"):
            prepare_here(source, tmp_path / "target", class_map=str(path))


def test_another_class_map_needs_another_target(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_images())
    (tmp_path / "map.txt").write_text("\n".join(SYNSETS))
    prepare_here(source, tmp_path / "target")
    with pytest.raises(ValueError, match=r"with other options: --class-map \(was None, now .*map.txt\)"):
        prepare_here(source, tmp_path / "target", class_map=str(tmp_path / "map.txt"))


# Chosen splits


@pytest.mark.parametrize("write", [write_folders, write_downloaded, write_webdataset, write_table])
def test_a_labeled_test_split_can_be_validation(tmp_path: Path, write) -> None:
    images = small_images(per_class=4)
    renamed = {"train": images["train"], "test": images["validation"]}
    if write is write_webdataset:
        source = write_webdataset(tmp_path / "source", renamed, names={one: f"{one}-{{:04d}}.tar" for one in renamed})
    else:
        source = write(tmp_path / "source", renamed)
    for shard in source.glob("data/test-00000-of-00001.parquet"):
        shard.unlink()  # the one without labels
    manifest = prepare_here(source, tmp_path / "target", validation_split="test")
    assert set(manifest["splits"]) == {"train", "validation"}
    assert sorted(prepared_rows(tmp_path / "target", "validation")) == expected_rows(images, "validation")


def test_folders_of_any_name_can_be_splits(tmp_path: Path) -> None:
    images = small_images()
    source = write_folders(tmp_path / "source", images)
    (source / "train").rename(source / "seg_train")
    (source / "val").rename(source / "seg_test")
    with pytest.raises(ValueError, match="as in --train-split seg_train --validation-split seg_test, rename them"):
        prepare_here(source, tmp_path / "target")
    prepare_here(source, tmp_path / "target", train_split="seg_train", validation_split="seg_test")
    for split in ("train", "validation"):
        assert sorted(prepared_rows(tmp_path / "target", split)) == expected_rows(images, split)


def test_the_other_folder_of_a_chosen_split_is_left_out_with_a_word(tmp_path: Path) -> None:
    images = small_images()
    source = write_folders(tmp_path / "source", images | {"test": images["validation"]})
    manifest = prepare_here(source, tmp_path / "target", validation_split="test")
    assert manifest["left_out"] == ["val/ next to the split folders"]
    assert manifest["splits"]["validation"]["images"] == 10


@pytest.mark.parametrize("write", [write_webdataset, write_table, write_downloaded])
def test_the_images_of_a_split_that_is_not_chosen_are_left_out(tmp_path: Path, write) -> None:
    images = small_images(per_class=4)
    three = {"train": images["train"], "test": images["validation"]}
    three["validation"] = {synset: files[:1] for synset, files in small_images(per_class=5)["train"].items()}
    if write is write_webdataset:
        source = write_webdataset(tmp_path / "source", three, names={one: f"{one}-{{:04d}}.tar" for one in three})
    else:
        source = write(tmp_path / "source", three)
    for shard in source.glob("data/test-00000-of-00001.parquet"):
        shard.unlink()  # the one without labels
    manifest = prepare_here(source, tmp_path / "target", validation_split="test")
    assert sorted(prepared_rows(tmp_path / "target", "validation")) == expected_rows(images, "validation")
    assert (
        manifest["left_out"][:1]
        == {
            write_webdataset: ["validation-0000.tar, validation-0001.tar next to the archives"],
            write_table: ["5 lines of the split val: another is chosen"],
            write_downloaded: [],
        }[write]
    )


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"validation_split": "tset"}, "no labeled images under the name tset of --validation-split; it has train;"),
        ({"test_split": "test"}, "no labeled images under the name test of --test-split; it has train, validation;"),
        ({"validation_split": "a/test"}, "--validation-split takes the name of one folder, .* got 'a/test'"),
        ({"validation_split": ""}, "--validation-split takes the name of one folder"),
        ({"validation_split": "x", "test_split": "x"}, "--validation-split and --test-split name the same images"),
        ({"validation_split": "x", "split": "train"}, "leave out --validation-split, or --split"),
    ],
)
def test_chosen_splits_that_are_not_there_are_refused(tmp_path: Path, options: dict, complaint: str) -> None:
    source = write_folders(tmp_path / "source", small_images())
    (source / "test").mkdir()
    (source / "test" / "1.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match=complaint):
        prepare_here(source, tmp_path / "target", **options)
    assert not (tmp_path / "target").exists() or not list((tmp_path / "target").iterdir())
