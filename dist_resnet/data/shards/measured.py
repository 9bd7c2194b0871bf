"""Mean and deviation of a prepared set's training images, from its manifest."""

import dataclasses
from typing import Any

from dist_resnet.data.datasets import Normalization
from dist_resnet.data.shards.manifest import MANIFEST, read_manifest
from dist_resnet.data.shards.split import Split
from dist_resnet.recipe import Data
from dist_resnet.storage.uri import open_uri

_WAY_OUT = "give --data.mean and --data.std, or prepare the images with jobs/prepare_imagenet.py, which measures both"


def with_measured(data: Data, train: Split) -> Data:
    """A recipe's data with the mean and deviation of its own training images, if it asks for them; the recipe keeps
    them from then on. Raises as `measured` does."""
    if data.dataset != "own" or data.mean is not None:
        return data
    found = measured(train)
    try:
        return dataclasses.replace(data, mean=found.mean, std=found.std)
    except ValueError as error:
        raise ValueError(
            f"the training images at {train.uri} have a mean and deviation that cannot normalize them ({error}); "
            "give --data.mean and --data.std"
        ) from error


def measured(train: Split) -> Normalization:
    """The mean and deviation of the training images, as preparing measured them on the whole split.

    Raises ValueError if the shards are not of one prepared set, or an earlier version prepared it.
    """
    filesystem, _ = open_uri(train.uri)
    folders = sorted({shard.rpartition("/")[0] for shard in train.shards})
    if len(folders) > 1:
        raise ValueError(
            f"the mean of the training images at {train.uri} is unknown, because they are in several folders, "
            f"{folders[0]} and {folders[1]}; {_WAY_OUT}"
        )
    manifest = read_manifest(filesystem, folders[0])
    if manifest is None:
        raise ValueError(
            f"the mean of the training images at {train.uri} is unknown, because {folders[0]} has no {MANIFEST}; "
            f"{_WAY_OUT}"
        )
    split = _split_of(manifest, train)
    if split.get("mean") is None:
        raise ValueError(
            f"{folders[0]}/{MANIFEST} has no mean of the training images, because an earlier version prepared them; "
            f"{_WAY_OUT}"
        )
    return Normalization(_color(split["mean"]), _color(split["std"]))


def _split_of(manifest: dict[str, Any], train: Split) -> dict[str, Any]:
    """The entry of the split that has the first shard; opening the split has checked that all are of one."""
    name = train.shards[0].rpartition("/")[2]
    return next(
        split for split in manifest["splits"].values() if any(shard["file"] == name for shard in split["shards"])
    )


def _color(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue
