"""Writes one shard of a prepared set: its images read by range, decoded once, and laid out for reading by range.

Memory: the encoded images of one block of the index being decoded, of the next one being read, and of one row group
being written in two copies; each is at most `ROWS_PER_GROUP` images and, but for a single larger image, 64 MiB.
So at most 256 MiB, about 50 MiB for ImageNet's images, besides one decoded image (`headers.MOST_MEGAPIXELS`). An
object store's client may hold as much as a whole shard more where the link is slower than the decoding.
"""

import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from dist_resnet.data.image.ingest import DamagedError, Shrink, ingest
from dist_resnet.data.prepare import repeats
from dist_resnet.data.prepare.index import Container, Index
from dist_resnet.data.shards import byte_offsets
from dist_resnet.data.shards.write import encode_table
from dist_resnet.storage.files import whole_file, write_json
from dist_resnet.storage.uri import is_local, open_uri

ROWS_PER_GROUP = 100
_BLOCK_BYTES = 64 << 20
_READERS, _READERS_REMOTE = 1, 16
# More than the spool files of ImageNet, for opening one on an object store costs a request.
_OPEN_FILES = 512


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardTask:
    """One shard to be written."""

    index: Index
    """The images that go in, in their order."""
    class_names: tuple[str, ...]
    target: str
    """An address on the target's file system."""
    path: str
    """The shard's path there."""
    record: str
    """The path there of the record that says that the shard is finished."""
    shrink: Shrink | None
    stop_on_damaged: bool


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What was written, and left out."""

    file: str
    images: int
    bytes: int
    """Size of the file."""
    sha256: str
    """Of the file."""
    footer_sha256: str
    """Of the footer, which tells a shard from another without reading it all."""
    class_counts: list[int]
    damaged: list[dict[str, Any]] = field(default_factory=list)
    """`image`, `class`, `label` and `reason` of each that was left out."""
    converted: list[dict[str, str]] = field(default_factory=list)
    """`image` and `reason` of each that became a PNG."""
    shrunk: int = 0
    source_bytes: int = 0
    """Encoded bytes of the images as they came, without the damaged ones."""
    image_bytes: int = 0
    """Encoded bytes of the images in the shard."""
    hashes: str = ""
    """What `repeats` packs of all images of the task; empty in records of earlier versions."""


def write_shard(task: ShardTask) -> Iterator[int | ShardRecord]:
    """Writes a shard, yielding numbers of images as they are done and at last its record.

    Raises ValueError for a damaged image where the task says to stop, OSError where the source has changed or
    something cannot be read or written.
    """
    filesystem, _ = open_uri(task.target)
    counts = np.zeros(len(task.class_names), np.int64)
    hashes: list[int] = []
    found: dict[str, Any] = {"damaged": [], "converted": [], "shrunk": 0, "source_bytes": 0, "image_bytes": 0}
    with whole_file(filesystem, task.path) as stream, ShardWriter(stream, task.class_names) as writer:
        for rows, images in read_blocks(task.index):
            for row, encoded in zip(rows, images, strict=True):
                label = int(task.index.label[row])
                try:
                    ingested = ingest(encoded, task.shrink)
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
        **found,
    )
    write_json(filesystem, task.record, dataclasses.asdict(record))
    yield record


def _take_damaged(task: ShardTask, row: int, reason: str, damaged: list[dict[str, Any]]) -> None:
    image, label = task.index.describe(row), int(task.index.label[row])
    class_name = task.class_names[label]
    if task.stop_on_damaged:
        raise ValueError(
            f"{image} of class {class_name} is damaged ({reason}); repair or remove it, or leave such images out "
            "with --on-damaged skip"
        )
    damaged.append({"image": image, "class": class_name, "label": label, "reason": reason})


class ShardWriter:
    """Collects images into row groups of a shard and knows where each came to lie."""

    def __init__(self, stream: Any, class_names: Sequence[str]) -> None:
        """`stream`: a binary file to write to."""
        self._class_names = class_names
        self._sink = _Sink(stream)
        self._waiting: list[tuple[bytes, str, int]] = []
        self._waiting_bytes = 0
        self._places: list[np.ndarray] = []
        schema = encode_table([], [], np.empty(0, np.int64), class_names).schema
        self._parquet = pq.ParquetWriter(
            self._sink, schema, compression="none", use_dictionary=["label"], write_statistics=["label"]
        )

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        # Parquet's writer ends its file in any case, at the latest when it is forgotten.
        self._sink.discard = True
        self._parquet.close()

    def add(self, encoded: bytes, name: str, label: int) -> None:
        """Appends an image."""
        self._waiting.append((encoded, name, label))
        self._waiting_bytes += len(encoded)
        if len(self._waiting) == ROWS_PER_GROUP or self._waiting_bytes >= _BLOCK_BYTES:
            self._flush()

    def finish(self) -> bytes:
        """Ends the file and returns its footer."""
        if self._waiting:
            self._flush()
        located = np.concatenate([np.empty((3, 0), np.int64), *self._places], axis=1)
        self._parquet.add_key_value_metadata({byte_offsets.KEY: byte_offsets.encode(located)})
        self._parquet.close()
        tail = self._sink.take()
        length = int.from_bytes(tail[-8:-4], "little")
        return tail[-8 - length : -8]

    @property
    def size(self) -> int:
        """Bytes of the file so far."""
        return self._sink.place

    @property
    def sha256(self) -> str:
        """Of the file so far, in hexadecimal."""
        return self._sink.hash.hexdigest()

    def _flush(self) -> None:
        encoded, names, labels = zip(*self._waiting, strict=True)
        self._waiting, self._waiting_bytes = [], 0
        start = self._sink.take_place()
        table = encode_table(encoded, names, np.array(labels, np.int64), self._class_names)
        self._parquet.write_table(table, row_group_size=len(encoded))
        offsets = _locate(self._sink.take(), encoded)
        self._places.append(np.array([start + offsets, [len(one) for one in encoded], labels], np.int64))


def _locate(block: bytes, images: Sequence[bytes]) -> np.ndarray:
    """Where the images lie in what Parquet made of them: int64 [N]."""
    offsets, end = np.empty(len(images), np.int64), 0
    for number, image in enumerate(images):
        # Each value has its length before it; between pages there is a header more.
        place = end + 4
        if block[place : place + len(image)] != image:
            place = block.find(len(image).to_bytes(4, "little") + image, end) + 4
        assert place >= 4, "Parquet did not write the image plain"
        offsets[number], end = place, place + len(image)
    return offsets


class _Sink:
    """The stream below Parquet's writer: hashes what passes, and keeps it until it is taken."""

    closed = False

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._recent: list[bytes] = []
        self.place = 0
        self.hash = hashlib.sha256()
        self.discard = False

    def write(self, data: bytes) -> int:
        if self.discard:
            return len(data)
        self._stream.write(data)
        self.hash.update(data)
        self._recent.append(bytes(data))
        self.place += len(data)
        return len(data)

    def take(self) -> bytes:
        """What was written since it was last taken."""
        recent, self._recent = b"".join(self._recent), []
        return recent

    def take_place(self) -> int:
        """Forgets what was written and returns the place of what follows."""
        self._recent = []
        return self.place

    def tell(self) -> int:
        return self.place

    def flush(self) -> None:
        """Does nothing: the stream below is closed by its owner."""

    def close(self) -> None:
        self.closed = True

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


def read_blocks(index: Index) -> Iterator[tuple[list[int], list[bytes]]]:
    """The images of an index, block by block: (rows, encoded); the next block is read meanwhile."""
    filesystem, _ = open_uri(index.uri)
    blocks = _blocks(index.size)
    with _Reader(filesystem, index) as reader, ThreadPoolExecutor(1) as ahead:
        reading = ahead.submit(reader.read, blocks[0])
        for number, block in enumerate(blocks):
            images = reading.result()
            if number + 1 < len(blocks):
                reading = ahead.submit(reader.read, blocks[number + 1])
            yield block, images


def _blocks(sizes: np.ndarray) -> list[list[int]]:
    """Rows cut into blocks of at most `ROWS_PER_GROUP` images and `_BLOCK_BYTES` bytes, or one larger image."""
    blocks: list[list[int]] = [[]]
    held = 0
    for row, size in enumerate(sizes.tolist()):
        if blocks[-1] and (len(blocks[-1]) == ROWS_PER_GROUP or held + size > _BLOCK_BYTES):
            blocks.append([])
            held = 0
        blocks[-1].append(row)
        held += size
    return blocks


class _Reader:
    """Reads images by their byte ranges, in the order of their places."""

    def __init__(self, filesystem: pafs.FileSystem, index: Index) -> None:
        self._filesystem, self._index = filesystem, index
        self._files: OrderedDict[str, Any] = OrderedDict()
        self._pool = ThreadPoolExecutor(_READERS if is_local(filesystem) else _READERS_REMOTE)

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        for file in self._files.values():
            file.close()

    def read(self, rows: list[int]) -> list[bytes]:
        """The images of the given rows, in their order."""
        container, offset = self._index.container[rows], self._index.offset[rows]
        by_place = np.lexsort((offset, container))
        jobs = [(self._index.containers[container[one]], rows[one]) for one in by_place]
        opened = [None if container.path.endswith("/") else self._open(container) for container, _ in jobs]
        read = map if is_local(self._filesystem) else self._pool.map
        images: list[bytes] = [b""] * len(rows)
        for place, image in zip(by_place, read(self._read_one, jobs, opened), strict=True):
            images[place] = image
        return images

    def _open(self, container: Container) -> Any:
        if container.path not in self._files:
            self._files[container.path] = self._filesystem.open_input_file(container.path)
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)
        self._files.move_to_end(container.path)
        return self._files[container.path]

    def _read_one(self, job: tuple[Container, int], opened: Any) -> bytes:
        container, row = job
        size = int(self._index.size[row])
        if opened is None:
            with self._filesystem.open_input_file(container.path + self._index.name[row].as_py()) as file:
                image = file.read()
        else:
            image = opened.read_at(size, int(self._index.offset[row]))
        if len(image) != size:
            raise OSError(
                f"{self._index.describe(row)} has {len(image)} bytes and had {size} when the job began; restore the "
                "source, or prepare it anew into another --target"
            )
        return image
