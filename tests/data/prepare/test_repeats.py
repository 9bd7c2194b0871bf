"""Images that are in a set twice. Oracle: the files that were copied, and Python's own comparison of bytes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from oracle.sources import (
    SYNSETS,
    damaged_images,
    prepare_here,
    small_images,
    write_archives,
    write_downloaded,
    write_folders,
)

from dist_resnet.data.prepare.repeats import hash_of, pack, unpack

CAT, DOG = SYNSETS[:2]


@pytest.mark.parametrize("write", [write_folders, write_downloaded, write_archives])
def test_images_of_train_in_validation_are_counted_and_one_is_named(tmp_path: Path, write) -> None:
    images = small_images()
    assert prepare_here(write(tmp_path / "clean", images), tmp_path / "a")["repeated"] == []
    for number in range(2):
        name, _ = images["validation"][DOG][number]
        images["validation"][DOG][number] = (name, images["train"][CAT][number + 3][1])
    (line,) = prepare_here(write(tmp_path / "leaking", images), tmp_path / "b")["repeated"]
    assert line.startswith("2 of 10 validation images are in train too, byte for byte, such as ")
    assert any(name in line for name, _ in images["validation"][DOG])
    assert any(name in line for name, _ in images["train"][CAT][3:5])
    assert line.endswith("errors on these say nothing about other images")


def test_an_image_in_two_classes_is_counted_and_named(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_images())
    first = min((source / "train" / CAT).iterdir())
    shutil.copy(first, source / "train" / DOG / "copy.jpg")
    (line,) = prepare_here(source, tmp_path / "target")["repeated"]
    assert line == (
        f"1 train images are in two classes, such as train/{CAT}/{first.name} of {CAT} as train/{DOG}/copy.jpg of {DOG}"
    )


def test_damaged_images_are_like_no_other(tmp_path: Path) -> None:
    images = damaged_images()
    images["validation"][CAT].append(images["train"][DOG][3])
    images["validation"][DOG].append(("page.JPEG", b"<html>not found</html>"))
    manifest = prepare_here(write_folders(tmp_path / "source", images), tmp_path / "target")
    assert len(manifest["splits"]["validation"]["damaged"]) == 3
    assert manifest["repeated"] == []


def test_hashes_come_back_from_text() -> None:
    hashes = [0, hash_of(b"a"), hash_of(b"b"), (1 << 64) - 1]
    assert len(set(hashes)) == 4
    np.testing.assert_array_equal(unpack(pack(hashes)), np.array(hashes, np.uint64))
    assert len(unpack("")) == 0
