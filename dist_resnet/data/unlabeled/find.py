"""Finds the images that folders, globs, files and Parquet files name, on a disk or an object store.

A folder is searched with its subfolders for files that are images by their ending or, whatever their name, by their
first bytes; if it directly holds Parquet files, their rows are meant. A glob means every file that it matches: one that
is no image gets an error and is not left out.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from dist_resnet.data.image.kinds import HEAD_BYTES, IMAGES, is_named_image, kind_of
from dist_resnet.data.prepare.left_out import LeftOut
from dist_resnet.data.prepare.tree import Folder, leads_back, list_files, walk
from dist_resnet.data.shards.columns import find_image_columns
from dist_resnet.data.shards.globs import find_files
from dist_resnet.data.unlabeled.images import Files, Images, Rows
from dist_resnet.storage.files import read_bytes
from dist_resnet.storage.uri import is_local, open_uri, uri_of
from dist_resnet.wording import one_line, some

_THREADS = 16
_PARQUET = ".parquet"


def find_images(addresses: Sequence[str]) -> tuple[list[Images], list[str]]:
    """The images at all addresses, each file once, and a line about each kind of file that was left out.

    Addresses come in the order given, their files sorted by path. Raises FileNotFoundError if an address has no images,
    ValueError if it cannot be listed, names both images and Parquet files, or a Parquet file cannot be read.
    """
    left, found, seen = LeftOut(), [], set()
    for address in addresses:
        filesystem, _ = open_uri(address)
        files = _files_at(address, left)
        fresh = [path for path in files if uri_of(filesystem, path) not in seen]
        seen.update(uri_of(filesystem, path) for path in fresh)
        found += _images_of(address, fresh)
    return found, left.lines()


def _files_at(address: str, left: LeftOut) -> list[str]:
    """The sorted paths of all images or of all Parquet files at an address."""
    filesystem, path = open_uri(address)
    if _is_folder(filesystem, path):
        shards = [name for name in list_files(filesystem, path) if name.endswith(_PARQUET)]
        files = [f"{path}/{name}" for name in shards] + _images_below(filesystem, path, left)
    else:
        files, _ = find_files(filesystem, path, address, inside="*")
    if not files:
        raise FileNotFoundError(
            f"{address} has no images; give --images a folder, files or a glob of images, or Parquet files with images"
        )
    shards = [file for file in files if file.endswith(_PARQUET)]
    if 0 < len(shards) < len(files):
        image = next(file for file in files if not file.endswith(_PARQUET))
        raise ValueError(
            f"{address} has both Parquet files and images, such as {shards[0]} and {image}; give --images one kind, "
            "such as a glob"
        )
    return sorted(files)


def _is_folder(filesystem: pafs.FileSystem, path: str) -> bool:
    kind = filesystem.get_file_info(path).type
    # An object store without folder markers does not know a folder as such.
    return kind == pafs.FileType.Directory or (kind == pafs.FileType.NotFound and not set("*?[") & set(path))


def _images_below(filesystem: pafs.FileSystem, root: str, left: LeftOut) -> list[str]:
    """The images in a folder and its subfolders; links are followed, but each folder is read once."""
    if is_local(filesystem) and not os.path.isdir(root):
        return []
    names = [f"{one.place}{name}" for one in _folders(filesystem, root, left) for name, _ in one.files]
    with ThreadPoolExecutor(_THREADS) as pool:
        kinds = pool.map(lambda name: _other_kind(filesystem, f"{root}/{name}"), names)
        images = []
        for name, kind in zip(names, kinds, strict=True):
            if kind is None:
                images.append(f"{root}/{name}")
            elif not name.endswith(_PARQUET):
                left.kinds[kind] += 1
    return images


def _folders(filesystem: pafs.FileSystem, root: str, left: LeftOut) -> Iterator[Folder]:
    """A folder and all below it, also through links to folders that are not below it themselves."""
    waiting, known = deque([""]), set()
    while waiting:
        place = waiting.popleft()
        if place and (leads_back(f"{root}/{place}") or os.path.realpath(f"{root}/{place}") in known):
            left.links.append(f"{root}/{place}")
            continue
        prefix = f"{place}/" if place else ""
        found = [one for one in walk(filesystem, f"{root}/{prefix}".rstrip("/"), left) if one.real not in known]
        known |= {one.real for one in found if one.real}
        waiting += sorted(f"{prefix}{one.place}{link}" for one in found for link in one.links)
        yield from (
            Folder(place=f"{prefix}{one.place}", real=one.real, files=one.files, links=one.links) for one in found
        )


def _other_kind(filesystem: pafs.FileSystem, path: str) -> str | None:
    """The kind of a file that is no image; None for an image, which a name with an image's ending is."""
    if is_named_image(path):
        return None
    kind = kind_of(path, read_bytes(filesystem, path, size=HEAD_BYTES))
    return None if kind in IMAGES else kind


def _images_of(address: str, files: Sequence[str]) -> list[Images]:
    if not files or not files[0].endswith(_PARQUET):
        return [Files(uri=address, paths=tuple(files))]
    filesystem, _ = open_uri(address)
    with ThreadPoolExecutor(_THREADS) as pool:
        rows = pool.map(lambda file: _rows_of(filesystem, address, file), files)
        found: list[Images] = [one for same in rows for one in same]
    if not found:
        raise FileNotFoundError(f"{address} has no images: {some(list(files))} have no rows")
    return found


def _rows_of(filesystem: pafs.FileSystem, address: str, file: str) -> list[Rows]:
    """The row groups of a Parquet file. Raises ValueError, naming the file, if it cannot be read."""
    try:
        with filesystem.open_input_file(file) as source:
            metadata = pq.ParquetFile(source).metadata
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{file} cannot be read as Parquet ({one_line(error)}); replace it with an intact copy"
        ) from error
    counts = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    if not sum(counts):
        return []
    columns = find_image_columns(file, metadata.schema.to_arrow_schema())
    return [
        Rows(uri=address, file=file, columns=columns, group=number, first=sum(counts[:number]), start=0, stop=rows)
        for number, rows in enumerate(counts)
        if rows
    ]
