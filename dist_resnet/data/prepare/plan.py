"""The plan of a set, made before the first shard is written: classes, index of each split, number of shards."""

import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow.fs as pafs

from dist_resnet.data.image.ingest import DamagedError, difference, ingest
from dist_resnet.data.prepare.damaged_classes import DamagedClass, find_damaged_classes, refusal
from dist_resnet.data.prepare.index import Index, Source, check_index, read_index, write_index
from dist_resnet.data.prepare.index_source import index_source
from dist_resnet.data.prepare.options import Options
from dist_resnet.data.prepare.read_blocks import read_blocks
from dist_resnet.data.prepare.request import WORK, PrepareProgress, TaskRunner
from dist_resnet.data.shards.manifest import renamed
from dist_resnet.data.shards.spelling import describe_alike
from dist_resnet.storage.files import check_space, read_json, whole_file, write_json

_PLAN = f"{WORK}/plan.json"
_SAMPLE = 200


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The set to be written."""

    kind: str
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    """What of the source is left out, one line each."""
    shards: dict[str, int]
    """Number of shards of each split."""
    shrinking: dict[str, Any] | None
    """How shrinking changed a sample of the images."""


def make_plan(
    filesystem: pafs.FileSystem, folder: str, options: Options, run: TaskRunner, progress: PrepareProgress
) -> tuple[Plan, dict[str, Index]]:
    """The plan and the index of each split: those of an earlier start, or new ones.

    Raises ValueError, FileNotFoundError or OSError if the source cannot be prepared.
    """
    kept = renamed(read_json(filesystem, f"{folder}/{_PLAN}"))
    if kept is not None:
        plan = Plan(**kept | {key: tuple(kept[key]) for key in ("class_names", "notes")})
        uri = options.target if plan.kind == "parquet" else options.source
        return plan, {split: read_index(filesystem, _index_path(folder, split), uri) for split in plan.shards}
    source = index_source(options, run=run, progress=progress)
    _check_source(source, options, progress)
    plan = _new_plan(source, filesystem, folder, options, progress)
    for split, index in source.splits.items():
        with whole_file(filesystem, _index_path(folder, split)) as stream:
            write_index(stream, index)
    write_json(filesystem, f"{folder}/{_PLAN}", asdict(plan))
    return plan, source.splits


def _new_plan(
    source: Source, filesystem: pafs.FileSystem, folder: str, options: Options, progress: PrepareProgress
) -> Plan:
    """The plan of a source. Raises OSError if the target has no room for the set."""
    shrinking = None if options.shrink is None else _measure(source, options, progress)
    scale = 1.0 if shrinking is None else shrinking["bytes_after"] / max(1, shrinking["bytes_before"])
    check_space(filesystem, folder, round(scale * sum(index.num_bytes for index in source.splits.values())))
    return Plan(
        kind=source.kind,
        class_names=source.class_names,
        notes=source.notes + tuple(_empty_classes(source)),
        shards={
            split: min(len(index), max(1, round(index.num_bytes * scale / (options.shard_megabytes * 1e6))))
            for split, index in source.splits.items()
        },
        shrinking=shrinking,
    )


def _check_source(source: Source, options: Options, progress: PrepareProgress) -> None:
    """Raises ValueError for impossible labels, names given twice, and classes without an image or an intact one."""
    for split, index in source.splits.items():
        # A list may name classes without an image; an empty class folder or archive is a mistake.
        check_index(index, split, source.class_names, every_class=not source.listed and split != "test")
    for line in describe_alike(source.class_names, "source"):
        progress.say(line)
    if damaged := find_damaged_classes(source, progress):
        _judge_damaged_classes(damaged, options, progress)


def _judge_damaged_classes(damaged: list[DamagedClass], options: Options, progress: PrepareProgress) -> None:
    """Raises ValueError for classes without an intact image; with --on-damaged-class keep, reports them instead."""
    if options.on_damaged_class == "refuse":
        raise ValueError(
            f"{refusal(damaged)}; repair the source, or prepare the set without them with --on-damaged-class keep"
        )
    progress.say(f"{refusal(damaged)}; the set will not have them")


def _index_path(folder: str, split: str) -> str:
    return f"{folder}/{WORK}/index-{split}"


def _empty_classes(source: Source) -> Iterator[str]:
    for split, index in source.splits.items():
        empty = len(source.class_names) - len(np.unique(index.label))
        if empty:
            yield f"{empty} of {len(source.class_names)} classes have no {split} image"


def _measure(source: Source, options: Options, progress: PrepareProgress) -> dict[str, Any]:
    """How shrinking changes a sample of the first split; the seed decides which images are sampled."""
    assert options.shrink is not None
    split, index = next(iter(source.splits.items()))
    sample = index.take(shuffled(len(index), options.seed, split)[:_SAMPLE])
    progress.begin("measuring a sample", len(sample))
    before = after = 0
    differences = []
    for rows, images in read_blocks(sample):
        for encoded in images:
            try:
                ingested = ingest(encoded, options.shrink)
            except DamagedError:
                continue
            before, after = before + len(encoded), after + len(ingested.encoded)
            if ingested.shrunk:
                differences.append(difference(encoded, ingested.encoded, options.shrink.shorter_side))
        progress.advance(len(rows))
    return {
        "images": len(sample),
        "shrunk": len(differences),
        "bytes_before": before,
        "bytes_after": after,
        # In levels of 0 .. 255, within the center that an evaluation crops.
        "mean_difference": round(float(np.mean(differences or [0])), 3),
        "largest_difference": round(float(np.max(differences or [0])), 3),
    }


def shuffled(length: int, seed: int, split: str) -> np.ndarray:
    """The global shuffle: int64 [length]. It sorts raw 64-bit words, which are the same in all NumPy versions."""
    key = np.array([seed, zlib.crc32(split.encode())], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(length), kind="stable")
