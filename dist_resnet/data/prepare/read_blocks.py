"""Reads the images of an index by their byte ranges, block by block."""

from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow.fs as pafs

from dist_resnet.data.prepare.index import Container, Index
from dist_resnet.storage.uri import is_local, open_uri

BLOCK_IMAGES = 100
BLOCK_BYTES = 64 << 20
_READERS, _READERS_REMOTE = 1, 16
# More than the spool files of ImageNet: opening one on an object store costs a request.
_OPEN_FILES = 512


def read_blocks(index: Index) -> Iterator[tuple[list[int], list[bytes]]]:
    """The images of an index, block by block: (rows, encoded images); the next block is read ahead."""
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
    """Rows cut into blocks of at most `BLOCK_IMAGES` images and `BLOCK_BYTES` bytes, or one larger image."""
    blocks: list[list[int]] = [[]]
    held = 0
    for row, size in enumerate(sizes.tolist()):
        if blocks[-1] and (len(blocks[-1]) == BLOCK_IMAGES or held + size > BLOCK_BYTES):
            blocks.append([])
            held = 0
        blocks[-1].append(row)
        held += size
    return blocks


class _Reader:
    """Reads images by their byte ranges, in the order of their offsets."""

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
        by_offset = np.lexsort((offset, container))
        jobs = [(self._index.containers[container[one]], rows[one]) for one in by_offset]
        opened = [None if container.path.endswith("/") else self._open(container) for container, _ in jobs]
        read = map if is_local(self._filesystem) else self._pool.map
        images: list[bytes] = [b""] * len(rows)
        for number, image in zip(by_offset, read(self._read_one, jobs, opened), strict=True):
            images[number] = image
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
                f"{self._index.describe(row)} has {len(image)} bytes but had {size} when the job started; restore the "
                "source, or prepare it again into another --target"
            )
        return image
