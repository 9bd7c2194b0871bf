"""Prepared sets; oracle: the images that the test wrote, read back by pyarrow, and hashlib over the files."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from oracle.images import jpeg, smooth
from oracle.sources import (
    SYNSETS,
    WRITERS,
    damaged_images,
    expected_rows,
    in_turn,
    prepare_here,
    prepared_rows,
    real_images,
    small_images,
    write_archives,
    write_downloaded,
    write_folders,
)

from dist_resnet.data.image.ingest import Shrink
from dist_resnet.data.shards import byte_offsets
from dist_resnet.data.shards.split import open_split


def sums(folder: Path) -> dict[str, str]:
    return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in folder.iterdir() if one.is_file()}


@pytest.mark.parametrize("write", WRITERS)
def test_every_kind_of_source_becomes_the_same_images_under_the_same_labels(tmp_path: Path, write) -> None:
    images = small_images()
    manifest = prepare_here(write(tmp_path / "source", images), tmp_path / "target")
    for split in ("train", "validation"):
        assert sorted(prepared_rows(tmp_path / "target", split)) == expected_rows(images, split)
        opened = open_split(f"{tmp_path}/target/{split}-*.parquet")
        assert opened.class_names == SYNSETS
        assert opened.num_images == manifest["splits"][split]["images"] == len(expected_rows(images, split))
    assert len(manifest["splits"]["train"]["shards"]) > 2
    assert {one.name for one in (tmp_path / "target").iterdir() if one.suffix != ".parquet"} == {"manifest.json"}


def test_the_manifest_tells_counts_and_sums_of_the_files(tmp_path: Path) -> None:
    target = tmp_path / "target"
    returned = prepare_here(write_folders(tmp_path / "source", small_images()), target, seed=7)
    manifest = json.loads((target / "manifest.json").read_text())
    assert manifest == returned
    assert (manifest["seed"], manifest["source_kind"], manifest["class_names"]) == (7, "folder", list(SYNSETS))
    of_file = sums(target)
    for split, per_class in (("train", 8), ("validation", 2)):
        entry = manifest["splits"][split]
        assert entry["class_counts"] == [per_class] * 5
        assert np.sum([shard["class_counts"] for shard in entry["shards"]], axis=0).tolist() == [per_class] * 5
        assert entry["damaged"] == entry["converted"] == []
        for shard in entry["shards"]:
            assert shard["sha256"] == of_file[shard["file"]]
            assert shard["bytes"] == (target / shard["file"]).stat().st_size
            assert shard["images"] == pq.read_metadata(target / shard["file"]).num_rows


def test_the_footer_tells_where_each_image_lies(tmp_path: Path) -> None:
    prepare_here(write_folders(tmp_path / "source", small_images()), tmp_path / "target")
    for file in (tmp_path / "target").glob("*.parquet"):
        content = file.read_bytes()
        located = byte_offsets.decode(pq.read_metadata(file).metadata)
        assert located is not None
        for (offset, size, label), row in zip(located.T.tolist(), pq.read_table(file).to_pylist(), strict=True):
            assert content[offset : offset + size] == row["image"]["bytes"]
            assert label == row["label"]


def test_row_groups_hold_a_hundred_plain_images(tmp_path: Path) -> None:
    images = small_images(per_class=50)
    prepare_here(write_folders(tmp_path / "source", images), tmp_path / "target", shard_megabytes=500)
    metadata = pq.read_metadata(tmp_path / "target" / "train-00000-of-00001.parquet")
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [100, 100, 50]
    column = metadata.row_group(0).column(0)
    assert (column.compression, column.has_dictionary_page) == ("UNCOMPRESSED", False)


def test_images_are_shuffled_all_through_and_shards_are_of_one_size(tmp_path: Path) -> None:
    images = small_images(per_class=200)
    manifest = prepare_here(write_folders(tmp_path / "source", images), tmp_path / "a", shard_megabytes=0.1)
    shards = manifest["splits"]["train"]["shards"]
    assert len(shards) == round(sum(len(one) for _, one, _ in expected_rows(images, "train")) / 1e5)
    bytes_of = [shard["bytes"] for shard in shards]
    assert max(bytes_of) < 1.2 * min(bytes_of)
    # A shard draws n of 200 in each of 5 classes: within 5 standard deviations of the hypergeometric law.
    for shard in shards:
        share = shard["images"] / 1000
        spread = 5 * np.sqrt(200 * share * (1 - share))
        assert np.abs(np.array(shard["class_counts"]) - 200 * share).max() < spread
    labels = [label for _, _, label in prepared_rows(tmp_path / "a", "train")]
    neighbors = np.mean(np.array(labels[1:]) == np.array(labels[:-1]))
    assert abs(neighbors - 0.2) < 0.07


def test_there_are_no_more_shards_than_images(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_images(per_class=2, validation=1))
    manifest = prepare_here(source, tmp_path / "target", shard_megabytes=1e-6)
    assert [len(manifest["splits"][split]["shards"]) for split in ("train", "validation")] == [10, 5]
    assert open_split(f"{tmp_path}/target/train-*.parquet").num_images == 10


def test_the_seed_decides_the_order_and_nothing_else_does(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_images())
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepare_here(source, tmp_path / name, seed=seed)
    assert sums(tmp_path / "a") == sums(tmp_path / "b")
    a, c = (prepared_rows(tmp_path / name, "train") for name in "ac")
    assert sorted(a) == sorted(c)
    assert a != c


def test_class_folders_alone_are_the_split_that_is_named(tmp_path: Path) -> None:
    images = small_images()
    write_folders(tmp_path / "source", images)
    prepare_here(tmp_path / "source" / "train", tmp_path / "target", split="train")
    assert sorted(prepared_rows(tmp_path / "target", "train")) == expected_rows(images, "train")


def test_a_training_archive_alone_needs_no_devkit(tmp_path: Path) -> None:
    source = write_archives(tmp_path / "source", small_images())
    (source / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(
        ValueError, match=r"ILSVRC2012_img_val.tar needs ILSVRC2012_devkit_t12.tar.gz, which has the classes"
    ):
        prepare_here(source, tmp_path / "a")
    (source / "ILSVRC2012_img_val.tar").unlink()
    assert list(prepare_here(source, tmp_path / "b")["splits"]) == ["train"]


def test_a_test_split_without_labels_is_left_out_with_a_word(tmp_path: Path) -> None:
    manifest = prepare_here(write_downloaded(tmp_path / "source", small_images()), tmp_path / "target")
    assert sorted(manifest["splits"]) == ["train", "validation"]
    assert manifest["left_out"] == ["the 1 images of test, which have no labels"]


def test_what_is_of_no_split_or_class_is_left_out_with_a_word(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_images())
    for folder in ("test", "extra", ".cache"):
        (source / folder).mkdir()
    for file in ("stray.jpg", "LOC_synset_mapping.txt", "train/a.jpg", ".hidden"):
        (source / file).write_bytes(b"x")
    manifest = prepare_here(source, tmp_path / "target")
    assert manifest["left_out"] == [
        "extra/, test/, LOC_synset_mapping.txt and 1 more next to the split folders",
        "a.jpg, outside the class folders of train",
        "2 hidden and tools' files and folders: .cache (1), .hidden (1)",
    ]
    manifest = prepare_here(source / "train", tmp_path / "alone", split="train")
    assert manifest["left_out"] == ["a.jpg, outside the class folders of train"]


def test_damaged_images_are_left_out_and_listed_with_the_reason(tmp_path: Path) -> None:
    manifest = prepare_here(write_folders(tmp_path / "source", damaged_images()), tmp_path / "target")
    train, validation = (manifest["splits"][split] for split in ("train", "validation"))
    assert (train["images"], validation["images"]) == (39, 9)
    assert train["class_counts"] == [8, 7, 8, 8, 8]
    assert [(one["image"], one["class"]) for one in train["damaged"]] == [("train/n01443537/cut.JPEG", SYNSETS[1])]
    assert "truncated" in train["damaged"][0]["reason"]
    assert validation["damaged"][0]["image"] == "val/n07875152/page.JPEG"
    assert validation["damaged"][0]["reason"].startswith("not an image: 22 bytes that begin with 3c68746d6c3e6e6f")
    assert "cut.JPEG" not in [name for name, _, _ in prepared_rows(tmp_path / "target", "train")]


def test_a_damaged_image_stops_the_job_where_that_is_asked_for(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", damaged_images())
    with pytest.raises(ValueError, match=r"(cut|page).JPEG of class n\d+ is damaged \(.*\); repair or remove it"):
        prepare_here(source, tmp_path / "target", on_damaged="error")
    with pytest.raises(ValueError, match=r"is not fully prepared, it still has preparing.json"):
        open_split(f"{tmp_path}/target/train-*.parquet")
    # The same job goes on when told to leave such images out.
    assert prepare_here(source, tmp_path / "target")["splits"]["train"]["images"] == 39


def test_what_was_left_out_before_stops_a_job_that_is_to_stop(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", damaged_images())

    def all_but_one(function, tasks):
        yield from in_turn(function, tasks[:-1])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_here(source, tmp_path / "target", run=all_but_one)
    with pytest.raises(ValueError, match=r"cut.JPEG of class n01443537 is damaged .* was left out of train-"):
        prepare_here(source, tmp_path / "target", on_damaged="error")


def test_shrinking_says_what_it_did_to_size_and_to_the_images(tmp_path: Path) -> None:
    images = small_images()
    images["train"][SYNSETS[0]] = [(f"{n}.JPEG", jpeg(smooth(300, 400, n), quality=95)) for n in range(8)]
    source = write_folders(tmp_path / "source", images)
    manifest = prepare_here(source, tmp_path / "target", shrink=Shrink(shorter_side=128, quality=85))
    train = manifest["splits"]["train"]
    assert train["shrunk"] == 8
    before = sum(len(one) for _, one, _ in expected_rows(images, "train"))
    after = sum(len(one) for _, one, _ in prepared_rows(tmp_path / "target", "train"))
    assert (train["source_image_bytes"], train["image_bytes"]) == (before, after)
    assert after < before
    sample = manifest["shrinking_of_a_sample"]
    assert (sample["images"], sample["shrunk"], sample["bytes_before"]) == (40, 8, before)
    assert 0 < sample["mean_difference"] <= sample["largest_difference"] < 2


def test_the_real_images_come_out_of_every_kind_of_source_as_they_are(tmp_path: Path) -> None:
    images = real_images(100)
    if not images["train"]:
        pytest.skip("the real images are not in ../shared/data beside the project")
    for write in WRITERS:
        target = tmp_path / write.__name__
        manifest = prepare_here(write(tmp_path / f"{write.__name__}-source", images), target, shard_megabytes=3)
        for split in ("train", "validation"):
            assert manifest["splits"][split]["damaged"] == manifest["splits"][split]["converted"] == []
            assert sorted(prepared_rows(target, split)) == expected_rows(images, split)
