"""Layouts that are refused; oracle: the line, and bash, which runs the command that it gives."""

import io
import subprocess
import zipfile
from pathlib import Path

import pytest
from oracle.sources import (
    SYNSETS,
    prepare_here,
    small_images,
    tar,
    write_folders,
)


def refusal(source: Path | str, target: Path, **options: object) -> str:
    with pytest.raises(ValueError, match=" ") as caught:
        prepare_here(source, target, **options)
    line = str(caught.value)
    assert line == " ".join(line.split())  # as the command prints it, on one line
    assert not target.exists() or not list(target.iterdir())
    return line


def bash(command: str) -> None:
    subprocess.run(["bash", "-c", command], check=True)


def test_other_archives_are_refused_by_name(tmp_path: Path) -> None:
    source = tmp_path / "inner"
    source.mkdir()
    for synset, files in small_images()["train"].items():
        (source / f"{synset}.tar").write_bytes(tar(files))
    line = refusal(source, tmp_path / "target", split="train")
    assert "holds n01440764.tar and 4 more, the inner archives of ImageNet" in line
    bash(line.partition(" with: ")[2])
    assert prepare_here(source, tmp_path / "a", split="train")["splits"]["train"]["images"] == 40
    packed = tmp_path / "packed"
    packed.mkdir()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("cat/1.jpg", b"x")
    (packed / "animals.zip").write_bytes(buffer.getvalue())
    assert "holds the archive animals.zip; only ILSVRC2012_img_train.tar" in refusal(packed, tmp_path / "target")
    line = refusal(packed / "animals.zip", tmp_path / "target")
    assert line.endswith("animals.zip is a file; unpack it and give the folder with its content")


def test_a_source_that_is_a_file_is_refused(tmp_path: Path) -> None:
    for name in ("train-0.parquet", "ILSVRC2012_img_train.tar", "a.jpg"):
        (tmp_path / name).write_bytes(b"x")
        assert refusal(tmp_path / name, tmp_path / "target").endswith("is a file; give the folder that holds it")


def test_an_archive_beside_split_folders_does_no_harm(tmp_path: Path) -> None:
    images = small_images()
    source = write_folders(tmp_path / "source", images)
    (source / "train.tar").write_bytes(tar(images["train"][SYNSETS[0]]))
    assert prepare_here(source, tmp_path / "target")["left_out"] == ["train.tar next to the split folders"]


def test_a_text_beside_flat_images_that_is_no_table_of_them_says_nothing(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_images())
    for file in (source / "val").glob("n*/*"):
        file.rename(source / "val" / file.name.replace("ILSVRC2012_val_", ""))
    for folder in (source / "val").glob("n*/"):
        folder.rmdir()
    (source / "val" / "README.txt").write_text("validation images of five classes\n")
    with pytest.raises(
        ValueError, match="val has no class folders; put the images of each class into a separate folder"
    ):
        prepare_here(source, tmp_path / "target")


def test_a_split_that_is_a_broken_link_is_refused_and_not_left_out(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_images())
    (source / "train").rename(source / "elsewhere")
    (source / "train").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match="train, by its name the split train, is a broken link; repair"):
        prepare_here(source, tmp_path / "target")
