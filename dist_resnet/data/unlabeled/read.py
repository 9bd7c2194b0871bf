"""Reads images ahead of use, batch by batch; what cannot be read is a reason in the place of the image."""

import functools
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from dist_resnet.data.shards.column_values import encoded_images, image_path
from dist_resnet.data.unlabeled.images import Files, Images, Rows, cut
from dist_resnet.storage.files import read_bytes
from dist_resnet.storage.patience import patiently
from dist_resnet.storage.uri import is_local, open_uri
from dist_resnet.wording import one_line

Encoded = np.ndarray | str
"""An encoded image, uint8 [num_bytes], or why it cannot be read."""

_READERS, _BATCHES_AHEAD = 16, 2
# How long an object store may fail before the job ends; given again, it continues.
_PATIENCE_SECONDS = 300.0
_one_group = threading.Lock()


def read_batches(images: Sequence[Images], batch: int) -> Generator[list[Encoded]]:
    """Yields the images in their order, at most `batch` at a time. Raises OSError if an object store keeps failing."""
    wanted, reading = cut(images, batch), deque[list[Future[list[Encoded]]]]()
    pool = ThreadPoolExecutor(_READERS, "dist_resnet-read")
    try:
        for parts in wanted:
            reading.append([pool.submit(act) for part in parts for act in _acts(part)])
            if len(reading) > _BATCHES_AHEAD:
                yield _result(reading.popleft())
        while reading:
            yield _result(reading.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _result(parts: list[Future[list[Encoded]]]) -> list[Encoded]:
    return [image for part in parts for image in part.result()]


def _acts(part: Images) -> list[Callable[[], list[Encoded]]]:
    """What reads the images: each file alone, the rows of a row group together."""
    if isinstance(part, Rows):
        return [functools.partial(_read_rows, part)]
    return [functools.partial(_read_files, part.take(number, number + 1)) for number in range(len(part))]


def _read_files(files: Files) -> list[Encoded]:
    filesystem = _filesystem(files.uri)
    return [_read_file(filesystem, path) for path in files.paths]


def _read_file(filesystem: pafs.FileSystem, path: str) -> Encoded:
    here = is_local(filesystem)
    try:
        content = patiently(
            lambda: read_bytes(filesystem, path),
            what=f"{path} cannot be read",
            seconds=_PATIENCE_SECONDS,
            final=(OSError,) if here else (FileNotFoundError,),
        )
    except OSError as error:
        if not here and not isinstance(error, FileNotFoundError):
            raise
        return f"the file cannot be read: {one_line(error)}"
    return np.frombuffer(content, np.uint8)


def _read_rows(rows: Rows) -> list[Encoded]:
    """The images of rows. A row without bytes has a path, relative to its Parquet file's folder or from the root."""
    filesystem = _filesystem(rows.uri)
    with _one_group:  # otherwise each thread would read it
        found = _group(rows.uri, rows.file, rows.columns, rows.group)
    if isinstance(found, str):
        return [found] * len(rows)
    images, paths = found
    folder = rows.file.rpartition("/")[0]
    return [
        _row(filesystem, folder, images[number], paths[number] if paths else None)
        for number in range(rows.start, rows.stop)
    ]


def _row(filesystem: pafs.FileSystem, folder: str, image: np.ndarray | None, path: str | None) -> Encoded:
    if image is not None and (len(image) or path is None):
        return image
    if path is None:
        return "the row has neither bytes nor a path"
    return _read_file(filesystem, path if path.startswith("/") else f"{folder}/{path}")


@functools.lru_cache(maxsize=1)
def _group(
    uri: str, file: str, columns: tuple[str, str | None, str | None], group: int
) -> tuple[list[np.ndarray | None], list[str | None] | None] | str:
    """(images, their paths if there may be any without bytes) of a row group; why, if it cannot be read.

    One stays in memory: a file may have a single row group for many blocks.
    """
    filesystem, (image, *parts) = _filesystem(uri), columns
    here = is_local(filesystem)

    def read() -> pa.ChunkedArray:
        with filesystem.open_input_file(file) as source:
            wanted = [part for part in parts if part is not None]
            return pq.ParquetFile(source).read_row_group(group, columns=wanted, use_threads=False)[image]

    try:
        column = patiently(
            read,
            what=f"{file} cannot be read",
            seconds=_PATIENCE_SECONDS,
            final=(OSError,) if here else (FileNotFoundError,),
        )
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and not here and not isinstance(error, FileNotFoundError):
            raise
        return f"row group {group} cannot be read: {one_line(error)}"
    images = encoded_images(column)
    lacking = any(one is None or not len(one) for one in images)
    return images, [image_path(one) for one in column] if lacking and parts[1] is not None else None


@functools.cache
def _filesystem(uri: str) -> pafs.FileSystem:
    return open_uri(uri)[0]
