"""Layouts that are refused; oracle: bash, which runs the command that the refusal gives, and the set made after it."""

import io
import json
import re
import subprocess
import zipfile
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from oracle.images import jpeg, smooth
from oracle.sources import (
    SYNSETS,
    Images,
    expected_rows,
    prepare_here,
    prepared_rows,
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


def write_kaggle(root: Path, images: Images, folder: str) -> Path:
    """As the archive of Kaggle's challenge unpacks."""
    write_folders(root / folder, {"train": images["train"]})
    (root / folder / "val").mkdir()
    lines = ["ImageId,PredictionString"]
    for synset, files in images["validation"].items():
        for name, encoded in files:
            (root / folder / "val" / name).write_bytes(encoded)
            lines.append(f"{name.removesuffix('.JPEG')},{synset} 85 1 499 272 {synset} 1 1 9 9 ")
    (root / "LOC_val_solution.csv").write_text("\r\n".join(lines) + "\r\n")
    (root / "LOC_synset_mapping.txt").write_text("n01440764 tench\n")
    return root


@pytest.mark.parametrize("given", ["", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"])
def test_kaggles_imagenet_is_refused_with_the_command_that_converts_it(tmp_path: Path, given: str) -> None:
    images = small_images()
    root = write_kaggle(tmp_path / "a set", images, "ILSVRC/Data/CLS-LOC")
    line = refusal(root / given, tmp_path / "target")
    assert "val holds 10 images without class folders, as in Kaggle's ImageNet; LOC_val_solution.csv has" in line
    found = re.search(r" with: (.*); then give --source '?([^']*)'?$", line)
    assert found is not None
    bash(found[1])
    prepare_here(found[2], tmp_path / "target")
    for split in ("train", "validation"):
        assert sorted(prepared_rows(tmp_path / "target", split)) == expected_rows(images, split)


def test_on_an_object_store_the_addresses_are_what_can_be_given(tmp_path: Path, s3: str) -> None:
    root = write_kaggle(tmp_path / "source", small_images(per_class=1), "ILSVRC/Data/CLS-LOC")
    filesystem, bucket = pafs.FileSystem.from_uri(s3)
    pafs.copy_files(str(root), f"{bucket}/{tmp_path.name}", destination_filesystem=filesystem)
    line = refusal(f"{s3}/{tmp_path.name}", tmp_path / "target")
    assert "(on a disk: copy the set there first) with: cd " in line
    assert line.endswith(f"then give --source {s3}/{tmp_path.name}/ILSVRC/Data/CLS-LOC")


def test_kaggles_root_with_class_folders_tells_which_folder_to_give(tmp_path: Path) -> None:
    root = tmp_path / "source"
    write_folders(root / "ILSVRC" / "Data" / "CLS-LOC", small_images())
    for split in (None, "train"):
        line = refusal(root, tmp_path / "target", split=split)
        assert line.endswith(f"give its folder of images, --source {root}/ILSVRC/Data/CLS-LOC")


def test_a_flat_validation_folder_beside_kaggles_list_is_refused(tmp_path: Path) -> None:
    root = write_kaggle(tmp_path / "source", small_images(), ".")
    assert "LOC_val_solution.csv has" in refusal(root, tmp_path / "target")


def write_webdataset(root: Path, images: Images, *, ending: str, names: dict[str, str]) -> Path:
    root.mkdir(parents=True)
    for split, name in names.items():
        files = []
        for synset, ones in images[split].items():
            for file, encoded in ones:
                key = file.removesuffix(".JPEG")
                told = synset if ending == "cls" else json.dumps({"width": 3, "label": synset})
                files += [(f"{key}.jpg", encoded), (f"{key}.{ending}", told.encode())]
        for shard in range(2):
            half = len(files) // 4 * 2
            content = files[half:] if shard else files[:half]
            file = root / name.format(shard)
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(tar(content))
    return root


@pytest.mark.parametrize("ending", ["cls", "json"])
@pytest.mark.parametrize(
    "names",
    [
        {"train": "imagenet1k-train-{:04d}.tar"},
        {"train": "{:06d}.tar"},
        {"train": "train/{:06d}.tar"},
        {"train": "train-{:04d}.tar", "validation": "validation-{:04d}.tar"},
    ],
)
def test_webdatasets_archives_are_refused_with_the_command_that_unpacks_them(
    tmp_path: Path, ending: str, names: dict[str, str]
) -> None:
    images = small_images()
    root = write_webdataset(tmp_path / "source", images, ending=ending, names=names)
    line = refusal(root, tmp_path / "target")
    assert f"in the WebDataset layout (files .jpg, .{ending} with one name), which is not supported" in line
    found = re.search(r" with: (.*); do so for each split, then give --source (\S+)$", line)
    assert found is not None
    bash(found[1])
    prepare_here(found[2], tmp_path / "target")
    unpacked = sorted(
        (name.removesuffix(".jpg") + ".JPEG", one, label)
        for name, one, label in prepared_rows(tmp_path / "target", "train")
    )
    assert unpacked == expected_rows(images, "train")


def test_a_webdataset_that_tells_no_class_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    files = [("1.jpg", jpeg(smooth(9, 9, 1))), ("1.txt", b"a cat on a mat")]
    (tmp_path / "source" / "0.tar").write_bytes(tar(files))
    assert "none of them has a class; unpack the images" in refusal(tmp_path / "source", tmp_path / "target")


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


@pytest.mark.parametrize(
    ("below", "table", "line", "heading"),
    [
        ("images", "val_annotations.txt", "{name}\t{kind}\t0\t0\t62\t57", None),
        ("", "val.csv", "{name},{kind}", "image,label"),
        ("", "../val.csv", "{name},{kind},more", "image,label,x"),
        ("", "labels.txt", "{name} {kind}", None),
        ("", "labels.tsv", "{name}\t{kind}", "file\tclass"),
    ],
)
def test_images_whose_classes_a_table_tells_are_refused_with_what_moves_them(
    tmp_path: Path, below: str, table: str, line: str, heading: str | None
) -> None:
    source = write_folders(tmp_path / "a set", small_images())
    val = source / "val"
    lines = [] if heading is None else [heading]
    (val / below).mkdir(exist_ok=True)
    for number, file in enumerate(sorted(val.glob("n*/*"))):
        lines.append(line.format(name=f"{number} a.jpg" if "," in line else f"{number}.jpg", kind=file.parent.name))
        file.rename(val / below / lines[-1].split(file.parent.name)[0][:-1])
    for folder in val.glob("n*/"):
        folder.rmdir()
    (val / table).write_bytes("\r\n".join(lines).encode())
    with pytest.raises(ValueError, match=r"val holds 10 images without class folders; .* has their classes") as caught:
        prepare_here(source, tmp_path / "target")
    bash(str(caught.value).partition("in bash, with: ")[2])
    assert prepare_here(source, tmp_path / "target")["splits"]["validation"]["class_counts"] == [2] * 5


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
