"""Writes Parquet shards whose images are stored plain, with each image's byte range in the footer."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dist_resnet.data.prepare.read_blocks import BLOCK_BYTES, BLOCK_IMAGES
from dist_resnet.data.shards import byte_offsets
from dist_resnet.data.shards.write import encode_table


class ShardWriter:
    """Collects images into row groups of a shard and records the byte range of each."""

    def __init__(self, stream: Any, class_names: Sequence[str]) -> None:
        """`stream`: a binary file to write to."""
        self._class_names = class_names
        self._sink = _Sink(stream)
        self._waiting: list[tuple[bytes, str, int]] = []
        self._waiting_bytes = 0
        self._ranges: list[np.ndarray] = []
        schema = encode_table([], [], np.empty(0, np.int64), class_names).schema
        self._parquet = pq.ParquetWriter(
            self._sink, schema, compression="none", use_dictionary=["label"], write_statistics=["label"]
        )

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        # Parquet's writer completes its file in any case, at the latest when it is garbage collected.
        self._sink.discard = True
        self._parquet.close()

    def add(self, encoded: bytes, name: str, label: int) -> None:
        """Appends an image."""
        self._waiting.append((encoded, name, label))
        self._waiting_bytes += len(encoded)
        if len(self._waiting) == BLOCK_IMAGES or self._waiting_bytes >= BLOCK_BYTES:
            self._flush()

    def finish(self) -> bytes:
        """Completes the file and returns its footer."""
        if self._waiting:
            self._flush()
        located = np.concatenate([np.empty((3, 0), np.int64), *self._ranges], axis=1)
        self._parquet.add_key_value_metadata({byte_offsets.KEY: byte_offsets.encode(located)})
        self._parquet.close()
        tail = self._sink.take()
        length = int.from_bytes(tail[-8:-4], "little")
        return tail[-8 - length : -8]

    @property
    def size(self) -> int:
        """Bytes of the file so far."""
        return self._sink.position

    @property
    def sha256(self) -> str:
        """sha256 of the file so far, in hexadecimal."""
        return self._sink.hash.hexdigest()

    def _flush(self) -> None:
        encoded, names, labels = zip(*self._waiting, strict=True)
        self._waiting, self._waiting_bytes = [], 0
        start = self._sink.start_block()
        table = encode_table(encoded, names, np.array(labels, np.int64), self._class_names)
        self._parquet.write_table(table, row_group_size=len(encoded))
        offsets = _locate(self._sink.take(), encoded)
        self._ranges.append(np.array([start + offsets, [len(one) for one in encoded], labels], np.int64))


def _locate(block: bytes, images: Sequence[bytes]) -> np.ndarray:
    """The offset of each image in the bytes that Parquet wrote: int64 [N]."""
    offsets, end = np.empty(len(images), np.int64), 0
    for number, image in enumerate(images):
        # A value follows its length, and in a new page also the page's header.
        offset = end + 4
        if block[offset : offset + len(image)] != image:
            offset = block.find(len(image).to_bytes(4, "little") + image, end) + 4
        assert offset >= 4, "Parquet did not write the image plain"
        offsets[number], end = offset, offset + len(image)
    return offsets


class _Sink:
    """The stream below Parquet's writer: hashes the bytes that pass, and keeps them until they are taken."""

    closed = False

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._recent: list[bytes] = []
        self.position = 0
        self.hash = hashlib.sha256()
        self.discard = False

    def write(self, data: bytes) -> int:
        if self.discard:
            return len(data)
        self._stream.write(data)
        self.hash.update(data)
        self._recent.append(bytes(data))
        self.position += len(data)
        return len(data)

    def take(self) -> bytes:
        """The bytes written since the last take."""
        recent, self._recent = b"".join(self._recent), []
        return recent

    def start_block(self) -> int:
        """Drops the bytes written so far and returns the position of the next."""
        self._recent = []
        return self.position

    def tell(self) -> int:
        return self.position

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
