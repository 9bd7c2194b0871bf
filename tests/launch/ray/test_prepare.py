"""Preparation as Ray tasks; oracle: the same set prepared in this process."""

import json
from pathlib import Path

import pytest
from oracle.sources import damaged_images, prepare_here, small_images, write_downloaded, write_folders

from dist_resnet.data.prepare.options import Options
from dist_resnet.launch.ray import prepare as ray_prepare

pytestmark = pytest.mark.ray


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("write", [write_folders, write_downloaded])
@pytest.mark.parametrize("workers", [None, 1])
def test_tasks_make_the_same_set_as_one_process(tmp_path: Path, write, workers: int | None) -> None:
    source = write(tmp_path / "source", small_images())
    prepare_here(source, tmp_path / "here")
    options = Options(source=str(source), target=str(tmp_path / "there"), shard_megabytes=0.01)
    ray_prepare.prepare(options, workers=workers)
    here, there = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("here", "there"))
    assert here == there


@pytest.mark.usefixtures("ray_cluster")
def test_an_error_of_a_task_is_raised_unchanged(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", damaged_images())
    options = Options(source=str(source), target=str(tmp_path / "target"), shard_megabytes=0.01, on_damaged="error")
    with pytest.raises(ValueError, match=r"^(train/.*cut|val/.*page).JPEG of class n\d+ is damaged") as caught:
        ray_prepare.prepare(options, workers=2)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "target" / "manifest.json").exists()


def test_an_address_with_a_password_is_refused_before_anything_starts(tmp_path: Path) -> None:
    options = Options(source="s3://key:secret@bucket/raw", target=str(tmp_path / "target"))
    with pytest.raises(ValueError, match="source contains a password, s3://"):
        ray_prepare.prepare(options, workers=None)
    assert not (tmp_path / "target").exists()
