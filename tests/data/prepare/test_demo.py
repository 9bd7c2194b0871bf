"""The generated images; oracle: their promises, and a nearest-centroid classifier."""

import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
from oracle.images import read_row_group
from PIL import Image

from dist_resnet.data.prepare.demo import write_demo
from dist_resnet.data.shards.split import Split, open_split

ARGUMENTS = {"size": 32, "train_images": 100, "validation_images": 40, "seed": 5}


def pixels_of(split: Split) -> tuple[np.ndarray, np.ndarray]:
    groups = [read_row_group(split, number) for number in range(split.num_row_groups)]
    images = [np.asarray(Image.open(io.BytesIO(image.tobytes()))) for group in groups for image in group.images]
    return np.stack(images).astype(float), np.concatenate([group.labels for group in groups])


def test_the_splits_are_balanced_and_of_the_asked_size(tmp_path: Path) -> None:
    train, validation = (open_split(uri) for uri in write_demo(str(tmp_path), **ARGUMENTS))
    for split, count in ((train, 100), (validation, 40)):
        images, labels = pixels_of(split)
        assert images.shape == (count, 32, 32, 3)
        assert np.bincount(labels).tolist() == [count // 10] * 10
        assert split.group_rows.max() == 32
        assert split.class_names is not None
        assert len(split.class_names) == 10


def test_the_same_arguments_give_the_same_images_anywhere(tmp_path: Path) -> None:
    digests = [
        [open_split(uri).digest for uri in write_demo(target, **{**ARGUMENTS, "seed": seed})]
        for target, seed in ((str(tmp_path / "a"), 5), ((tmp_path / "b").as_uri(), 5), (str(tmp_path / "c"), 6))
    ]
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[2][0]
    assert digests[0][0] != digests[0][1]


def test_a_complete_set_is_kept_and_a_missing_shard_is_written_again(tmp_path: Path) -> None:
    train, _ = write_demo(str(tmp_path), **ARGUMENTS)
    (shard,) = open_split(train).shards
    digest, written = open_split(train).digest, os.stat(shard).st_mtime_ns
    assert write_demo(str(tmp_path), **ARGUMENTS)[0] == train
    assert os.stat(shard).st_mtime_ns == written
    os.remove(shard)
    write_demo(str(tmp_path), **ARGUMENTS)
    assert open_split(train).digest == digest
    assert not list(tmp_path.rglob("*.partial"))


def test_other_arguments_get_a_folder_of_their_own(tmp_path: Path) -> None:
    first, _ = write_demo(str(tmp_path), **ARGUMENTS)
    second, _ = write_demo(str(tmp_path), **{**ARGUMENTS, "num_classes": 4})
    assert open_split(first).label_range == (0, 9)
    assert open_split(second).label_range == (0, 3)


def test_unseen_images_are_recognized_by_their_mean_colors(tmp_path: Path) -> None:
    train, validation = (open_split(uri) for uri in write_demo(str(tmp_path), **ARGUMENTS))
    images, labels = pixels_of(train)
    centroids = np.stack([images[labels == label].mean(axis=(0, 1, 2)) for label in range(10)])
    unseen, truth = pixels_of(validation)
    distance = np.linalg.norm(unseen.mean(axis=(1, 2))[:, None] - centroids, axis=2)
    assert np.mean(distance.argmin(axis=1) == truth) > 0.7


def test_a_demo_takes_seconds(tmp_path: Path) -> None:
    begin = time.process_time()
    write_demo(str(tmp_path), size=96, train_images=500, validation_images=100, seed=0)
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("change", [{"num_classes": 11}, {"num_classes": 1}, {"train_images": 5}, {"size": 8}])
def test_impossible_demos_are_refused(tmp_path: Path, change: dict) -> None:
    with pytest.raises(ValueError, match=r"num_classes must be|a demo needs at least"):
        write_demo(str(tmp_path), **{**ARGUMENTS, **change})
