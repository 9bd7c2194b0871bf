"""The manifest of a set, from the records of its shards."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from dist_resnet.data.image.colors import added, mean_and_deviation
from dist_resnet.data.prepare import repeats
from dist_resnet.data.prepare.damaged_classes import DamagedClass, refusal
from dist_resnet.data.prepare.index import Index
from dist_resnet.data.prepare.options import Options
from dist_resnet.data.prepare.plan import Plan, shuffled
from dist_resnet.data.prepare.write_shard import ShardRecord
from dist_resnet.data.shards.manifest import FORMAT


def make_manifest(options: Options, plan: Plan, records: dict[str, list[ShardRecord]]) -> dict[str, Any]:
    """The content of the set's manifest. Raises ValueError if a split, or a class, has only damaged images."""
    splits = {split: _split_entry(of_split) for split, of_split in records.items()}
    empty = [one for split, entry in splits.items() for one in _damaged_classes(split, entry)]
    if empty and options.on_damaged_class == "refuse":
        raise ValueError(
            f"{refusal(empty)}; the finished shards are kept: run the same command with --on-damaged-class keep to "
            "finish the set without them, or repair the source and prepare it into another --target"
        )
    return {
        "format": FORMAT,
        "source": options.source,
        "source_kind": plan.kind,
        "seed": options.seed,
        "options": options.identity(),
        "on_damaged": options.on_damaged,
        "left_out": [*plan.notes, *(f"every {one.split} image of class {one.name}, damaged" for one in empty)],
        "shrinking_of_a_sample": plan.shrinking,
        "class_names": list(plan.class_names),
        "splits": splits,
    }


def describe_repeats(
    options: Options, plan: Plan, indexes: dict[str, Index], records: dict[str, list[ShardRecord]]
) -> list[str]:
    """A line for each kind of duplicate images; none if an earlier version of this package wrote some shards."""
    splits = {}
    for split, of_split in records.items():
        order = shuffled(len(indexes[split]), options.seed, split)
        found = np.concatenate([repeats.unpack(record.hashes) for record in of_split])
        if len(found) != len(order):
            return []
        hashes = np.empty_like(found)
        hashes[order] = found
        splits[split] = indexes[split], hashes
    return repeats.describe(splits, plan.class_names)


def _damaged_classes(split: str, entry: dict[str, Any]) -> Iterator[DamagedClass]:
    """The classes of a split that have only damaged images. Raises ValueError if the whole split has no other."""
    if not entry["images"]:
        one = entry["damaged"][0]
        raise ValueError(
            f"every {split} image is damaged, such as {one['image']} ({one['reason']}); repair the source and "
            "prepare it into another --target"
        )
    found: dict[int, DamagedClass] = {}
    for one in entry["damaged"]:
        if not entry["class_counts"][one["label"]]:
            found.setdefault(
                one["label"],
                DamagedClass(split=split, name=one["class"], image=one["image"], reason=one["reason"]),
            )
    yield from found.values()


def _colors(records: list[ShardRecord]) -> tuple[list[float] | None, list[float] | None]:
    """Mean and deviation of a split's images; None if an earlier version of this package wrote some shards."""
    filled = [record for record in records if record.images]
    if not filled or not all(record.color_sums for record in filled):
        return None, None
    return mean_and_deviation(added(record.color_sums for record in filled), sum(record.images for record in filled))


def _split_entry(records: list[ShardRecord]) -> dict[str, Any]:
    counts = np.sum([record.class_counts for record in records], axis=0)
    damaged = [one for record in records for one in record.damaged]
    mean, std = _colors(records)
    keys = ("file", "images", "bytes", "sha256", "footer_sha256", "class_counts")
    return {
        "images": sum(record.images for record in records),
        "bytes": sum(record.bytes for record in records),
        "image_bytes": sum(record.image_bytes for record in records),
        "source_image_bytes": sum(record.source_bytes for record in records),
        "shrunk": sum(record.shrunk for record in records),
        "class_counts": counts.tolist(),
        "mean": mean,
        "std": std,
        "shards": [{key: getattr(record, key) for key in keys} for record in records],
        "damaged": damaged,
        "converted": [one for record in records for one in record.converted],
    }
