"""Writes one shard of a prepared set: reads its images by range, decodes each once, and stores them for range reads.

Memory: the encoded images of one block that is decoded, the next one that is read, and two copies of the row group
that is written. Each is at most `BLOCK_IMAGES` images and, unless a single image is larger, 64 MiB: together at most
256 MiB, about 50 MiB for ImageNet, plus one decoded image (`headers.MOST_MEGAPIXELS`). An object store's client may
hold up to one more shard if the link is slower than decoding.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dist_resnet.data.image.colors import added, color_moments
from dist_resnet.data.image.ingest import DamagedError, Shrink, ingest
from dist_resnet.data.prepare import repeats
from dist_resnet.data.prepare.index import Index
from dist_resnet.data.prepare.read_blocks import read_blocks
from dist_resnet.data.prepare.shard_writer import ShardWriter
from dist_resnet.storage.files import whole_file, write_json
from dist_resnet.storage.uri import open_uri


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardTask:
    """One shard to be written."""

    index: Index
    """Its images, in their order."""
    class_names: tuple[str, ...]
    target: str
    """An address on the target's file system."""
    path: str
    """The shard's path there."""
    record: str
    """The path there of the record that marks the shard as finished."""
    shrink: Shrink | None
    stop_on_damaged: bool


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What was written to a shard, and what was left out."""

    file: str
    images: int
    bytes: int
    """Size of the file."""
    sha256: str
    """sha256 of the file."""
    footer_sha256: str
    """sha256 of the footer, which identifies a shard without reading it all."""
    class_counts: list[int]
    damaged: list[dict[str, Any]] = field(default_factory=list)
    """`image`, `class`, `label` and `reason` of each that was left out."""
    converted: list[dict[str, str]] = field(default_factory=list)
    """`image` and `reason` of each that became a PNG."""
    shrunk: int = 0
    source_bytes: int = 0
    """Encoded bytes of the images in the source, without the damaged ones."""
    image_bytes: int = 0
    """Encoded bytes of the images in the shard."""
    hashes: str = ""
    """The hashes of all images of the task, packed by `repeats`; empty in records of earlier versions."""
    color_sums: list[float] = field(default_factory=list)
    """The sums of the images' color moments; empty without images and in records of earlier versions."""


def write_shard(task: ShardTask) -> Iterator[int | ShardRecord]:
    """Writes a shard; yields numbers of images as they are done, and last the shard's record.

    Raises ValueError for a damaged image if the task says to stop, OSError if the source has changed or cannot be
    read, or the target cannot be written.
    """
    filesystem, _ = open_uri(task.target)
    counts = np.zeros(len(task.class_names), np.int64)
    hashes: list[int] = []
    colors: list[list[float]] = []
    found: dict[str, Any] = {"damaged": [], "converted": [], "shrunk": 0, "source_bytes": 0, "image_bytes": 0}
    with whole_file(filesystem, task.path) as stream, ShardWriter(stream, task.class_names) as writer:
        for rows, images in read_blocks(task.index):
            for row, encoded in zip(rows, images, strict=True):
                label = int(task.index.label[row])
                try:
                    ingested = ingest(encoded, task.shrink)
                    moments = color_moments(ingested.pixels())
                except DamagedError as error:
                    _take_damaged(task, row, str(error), found["damaged"])
                    hashes.append(repeats.NONE)
                    continue
                hashes.append(repeats.hash_of(encoded))
                if ingested.converted:
                    found["converted"].append({"image": task.index.describe(row), "reason": ingested.converted})
                found["shrunk"] += ingested.shrunk
                found["source_bytes"] += len(encoded)
                found["image_bytes"] += len(ingested.encoded)
                counts[label] += 1
                colors.append(moments)
                writer.add(ingested.encoded, task.index.name[row].as_py(), label)
            yield len(rows)
        footer = writer.finish()
    record = ShardRecord(
        file=task.path.rpartition("/")[2],
        images=int(counts.sum()),
        bytes=writer.size,
        sha256=writer.sha256,
        footer_sha256=hashlib.sha256(footer).hexdigest(),
        class_counts=counts.tolist(),
        hashes=repeats.pack(hashes),
        color_sums=added(colors),
        **found,
    )
    write_json(filesystem, task.record, dataclasses.asdict(record))
    yield record


def _take_damaged(task: ShardTask, row: int, reason: str, damaged: list[dict[str, Any]]) -> None:
    image, label = task.index.describe(row), int(task.index.label[row])
    class_name = task.class_names[label]
    if task.stop_on_damaged:
        raise ValueError(
            f"{image} of class {class_name} is damaged ({reason}); repair or remove it, or skip damaged images "
            "with --on-damaged skip"
        )
    damaged.append({"image": image, "class": class_name, "label": label, "reason": reason})
