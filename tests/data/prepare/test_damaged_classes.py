"""Classes without an intact image; oracle: the classes that the test damaged, and the sets made of the others."""

import shutil
from pathlib import Path

import pytest
from oracle.sources import (
    SYNSETS,
    WRITERS,
    Images,
    Silent,
    in_turn,
    prepare_here,
    prepared_rows,
    small_images,
    write_folders,
)

from dist_resnet.data.prepare.options import Options
from dist_resnet.data.prepare.prepare import prepare
from dist_resnet.data.shards.split import open_split


def broken(split: str, *classes: str) -> Images:
    """In each of the classes one page in place of an image, and all others cut short."""
    images = small_images()
    for name in classes:
        files = images[split][name]
        images[split][name] = [(file, one[:-60]) for file, one in files[:-1]] + [(files[-1][0], b"<html>")]
    return images


def never(function, tasks):
    """Runs what unpacks Parquet, and nothing that writes shards."""
    assert function.__name__ == "spool_shard" or not tasks
    yield from in_turn(function, tasks)


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("write", WRITERS)
def test_it_is_refused_before_any_shard_is_written(tmp_path: Path, write, split: str) -> None:
    source = write(tmp_path / "source", broken(split, SYNSETS[2], SYNSETS[4]))
    complaint = (
        rf"every {split} image of class n02012849 is damaged, such as .*\(image file is truncated .*\) \(and of "
        r"1 other classes\); repair the source, or prepare the set without them with --on-damaged-class keep"
    )
    with pytest.raises(ValueError, match=complaint):
        prepare_here(source, tmp_path / "target", run=never)
    assert not list((tmp_path / "target").glob("*.parquet"))


@pytest.mark.parametrize("write", WRITERS)
def test_the_set_may_be_kept_without_it(tmp_path: Path, write) -> None:
    source = write(tmp_path / "source", broken("train", SYNSETS[2]))
    progress = Silent()
    options = Options(source=str(source), target=str(tmp_path / "target"), on_damaged_class="keep")
    manifest = prepare(options, run=in_turn, progress=progress)
    train = manifest["splits"]["train"]
    assert manifest["class_names"] == list(SYNSETS)
    assert train["class_counts"] == [8, 8, 0, 8, 8]
    assert len(train["damaged"]) == 8
    assert manifest["left_out"][-1] == "every train image of class n02012849, damaged"
    assert progress.said[0].startswith("every train image of class n02012849 is damaged")
    assert {label for _, _, label in prepared_rows(tmp_path / "target", "train")} == {0, 1, 3, 4}
    assert open_split(f"{tmp_path}/target/train-*.parquet").class_names == SYNSETS
    assert prepare(options, run=never, progress=progress) == manifest


def test_a_preparation_that_only_finds_it_at_the_end_keeps_its_shards(tmp_path: Path) -> None:
    """As one does whose source is damaged meanwhile, or that an earlier version began."""
    source = write_folders(tmp_path / "source", small_images())
    prepare_here(source, tmp_path / "undisturbed")

    def stopped(function, tasks):
        yield from in_turn(function, tasks[:1])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_here(source, tmp_path / "target", run=stopped)
    folder = source / "val" / SYNSETS[0]
    for file in folder.iterdir():
        content = file.read_bytes()
        file.write_bytes(content[:-60] + bytes(60))
    with pytest.raises(
        ValueError, match=r"n01440764 is damaged, .*; the finished shards are kept: run the same command"
    ):
        prepare_here(source, tmp_path / "target")
    written = {one.name: one.stat().st_mtime_ns for one in (tmp_path / "target").glob("*.parquet")}
    assert not (tmp_path / "target" / "manifest.json").exists()
    manifest = prepare_here(source, tmp_path / "target", on_damaged_class="keep", run=never)
    assert manifest["splits"]["validation"]["class_counts"] == [0, 2, 2, 2, 2]
    assert {one.name: one.stat().st_mtime_ns for one in (tmp_path / "target").glob("*.parquet")} == written
    for file in (tmp_path / "target").glob("train-*.parquet"):
        assert file.read_bytes() == (tmp_path / "undisturbed" / file.name).read_bytes()


@pytest.mark.parametrize("choice", ["refuse", "keep"])
def test_a_split_without_an_intact_image_is_always_refused(tmp_path: Path, choice: str) -> None:
    source = write_folders(tmp_path / "source", broken("validation", *SYNSETS))
    with pytest.raises(ValueError, match=r"every validation image is damaged, such as val/.*; give an intact"):
        prepare_here(source, tmp_path / "target", on_damaged_class=choice, run=never)


def test_one_intact_image_of_a_class_is_enough(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", broken("train", SYNSETS[1]))
    intact = sorted((source / "train" / SYNSETS[0]).iterdir())[0]
    shutil.copy(intact, source / "train" / SYNSETS[1] / "z.JPEG")
    manifest = prepare_here(source, tmp_path / "target")
    assert manifest["splits"]["train"]["class_counts"] == [8, 1, 8, 8, 8]
