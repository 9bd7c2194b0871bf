"""Images that are not sorted into class folders, and a table of their classes.

The images may be at any depth below the source. A row names an image by its path, the end of its path or its name, each
with or without its ending. The split of a row is stated by a column, by the name of the table (`train.csv`), by the
first folder of the image (`train/`, `val_images/`), or by --split.
"""

import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.fs as pafs

from dist_resnet.data.image.kinds import HEAD_BYTES, IMAGES, is_named_image, kind_of
from dist_resnet.data.prepare import other_layouts
from dist_resnet.data.prepare.class_numbers import Stated, number_classes
from dist_resnet.data.prepare.files_below import FilesBelow
from dist_resnet.data.prepare.index import Container, Index, IndexBuilder, Source, check_no_split
from dist_resnet.data.prepare.label_table import TABLES, Row, Table, TableColumns, read_table, sample_table
from dist_resnet.data.prepare.request import SourceRequest
from dist_resnet.data.prepare.tree import list_files
from dist_resnet.data.shards.split_names import ORDER
from dist_resnet.storage.files import read_bytes
from dist_resnet.storage.uri import open_uri
from dist_resnet.wording import some


@dataclass(frozen=True, kw_only=True)
class _Listed:
    """An image that a table lists."""

    row: Row
    table: str
    path: str
    """Its path below the folder of images."""
    split: str

    @property
    def place(self) -> str:
        return f"{self.table} line {self.row.line}"


def open_given(address: str, columns: TableColumns) -> Table:
    """The table of --labels. Raises FileNotFoundError or ValueError if it cannot be read."""
    filesystem, path = open_uri(address)
    kind = filesystem.get_file_info(path).type
    if kind != pafs.FileType.File:
        missing = "does not exist" if kind == pafs.FileType.NotFound else "is a folder"
        raise FileNotFoundError(f"the table {address} {missing}; give a CSV file of images and classes as --labels")
    return read_table(filesystem, path, columns)


def list_tables(request: SourceRequest, folders: Sequence[str]) -> list[str]:
    """The paths of the files in some folders, and above them for Kaggle's ImageNet, that may be tables of classes."""
    paths = [f"{folder}/{name}" for folder in folders for name in list_files(request.filesystem, folder)]
    paths += [path] if (path := other_layouts.find_kaggles_table(request.filesystem, request.root)) else []
    # Kaggle's sample_submission.csv has invented classes.
    found = [path for path in paths if path.lower().endswith(TABLES) and "submission" not in _stem(path).lower()]
    return list(dict.fromkeys(found))


def choose_tables(request: SourceRequest, paths: Sequence[str], files: FilesBelow) -> list[str]:
    """The table among some paths that lists some of the files, or the one of each split; empty if there is none.

    Raises ValueError if several do that are not all named like splits, and for a table that lists them but cannot be
    read, if there is no other.
    """
    found, faults = [], []
    for path in paths:
        lines, table = sample_table(request.filesystem, path, request.columns)
        if isinstance(table, Table):
            found += [path] if any(files.find(row.file) for row in table.rows) else []
        elif 4 * sum(any(files.find(field) for field in fields) for fields in lines) >= len(lines) > 1:
            faults.append(table)
    if faults and not found:
        raise ValueError(faults[0])
    splits = [request.choice.split_of(_stem(path)) for path in found]
    if len(found) > 1 and (None in splits or len(set(splits)) < len(splits)):
        raise ValueError(f"{some(found)} list the same images; choose one, such as --labels {found[0]}")
    return found


def index_tables(request: SourceRequest, files: FilesBelow, tables: Sequence[Table]) -> Source:
    """The index of the images that some tables list.

    Raises ValueError for rows without an image, split or class, and for an image that is listed twice.
    """
    listed = [one for table in tables for one in _resolve(request, files, table)]
    _check_once(listed)
    labeled = [one for one in listed if one.row.label]
    for one in listed:
        if not one.row.label and (one.split != "test" or not labeled):
            raise ValueError(f"{one.place} has no class for {one.row.file}; complete it, or remove the line")
    splits = {one.split for one in labeled}
    by_split = {
        split: sorted((one for one in labeled if one.split == split), key=lambda one: one.path)
        for split in [*(split for split in ORDER if split in splits), *sorted(splits - set(ORDER))]
    }
    numbered = number_classes({split: _stated(images) for split, images in by_split.items()})
    indexes = {split: _index(request, files, images, numbered.labels[split]) for split, images in by_split.items()}
    notes = [f"{len(listed) - len(labeled)} images of test, which have no class"] if len(labeled) < len(listed) else []
    replaced = Counter(row.split for table in tables for row in table.rows if request.choice.is_replaced(row.split))
    notes += [f"{count} lines of the split {split}: another is chosen" for split, count in sorted(replaced.items())]
    notes += _unlisted(files, listed, [table.path for table in tables])
    return Source("table", numbered.class_names, indexes, (*notes, *files.left.lines()), listed=numbered.by_number)


def index_split(
    request: SourceRequest,
    files: FilesBelow,
    table: Table,
    split: str,
    class_names: Sequence[str] | None,
) -> tuple[Index, list[str]]:
    """(index, notes) of one split whose folder has no class folders and whose classes a table states.

    Raises ValueError as `index_tables` does, and for a class that is not among `class_names`. Kaggle's table must list
    all images.
    """
    rows = [row for row in table.rows if not row.split or request.choice.split_of(row.split) == split]
    listed = sorted(
        (_Listed(row=row, table=table.path, path=_find(files, row, table), split=split) for row in rows),
        key=lambda one: one.path,
    )
    _check_once(listed)
    for one in listed:
        if not one.row.label:
            raise ValueError(f"{one.place} has no class for {one.row.file}; complete it, or remove the line")
    notes = _unlisted(files, listed, [table.path])
    if notes and table.is_complete:
        raise ValueError(f"{files.folder} holds {notes[0]}; download both again")
    labels = number_classes({split: _stated(listed)}, class_names).labels[split]
    return _index(request, files, listed, labels), notes


def _resolve(request: SourceRequest, files: FilesBelow, table: Table) -> Iterator[_Listed]:
    """The images of a table's rows, with their splits."""
    choice, named = request.choice, request.choice.split_of(_stem(table.path))
    for row in table.rows:
        if choice.is_replaced(row.split):
            continue
        split = choice.split_of(row.split) if row.split else named
        if row.split and split is None:
            raise ValueError(
                f"{table.path} line {row.line} has the split {row.split}; known are train, validation, test and their "
                "usual forms: correct it, or say what it is, as in --validation-split "
                f"{row.split.replace('/', '_')}"
            )
        path = _find(
            files, row, table, lambda path, split=split: choice.split_of(path.partition("/")[0]) == split is not None
        )
        found = split or choice.split_of(path.partition("/")[0] if "/" in path else "")
        if found is None and request.split is None:
            raise ValueError(
                f"{table.path} does not state the split of {row.file}, and neither does its folder; give --split, a "
                "column split, or a table of each split, named train.csv and val.csv"
            )
        if row.split and request.split is not None:
            raise ValueError(
                f"{table.path} line {row.line} states the split {row.split}; leave out --split {request.split}, or "
                "give another table as --labels"
            )
        if found is not None:
            check_no_split(request.split, table.path if named else f"{files.folder}/{path}", found)
        yield _Listed(row=row, table=table.path, path=path, split=found or str(request.split))


def _find(files: FilesBelow, row: Row, table: Table, in_folder: Callable[[str], bool] | None = None) -> str:
    """The path of a row's image; if several have its name, the one whose first folder is its split's.

    Raises ValueError unless there is exactly one.
    """
    found = files.find(row.file)
    if len(found) > 1 and in_folder is not None:
        found = list(filter(in_folder, found)) or found
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{table.path} line {row.line} names {row.file}, which may be {files.folder}/{found[0]} or "
            f"{files.folder}/{found[1]}; write the paths of the images into the table, as in {found[0]}"
        )
    missing = sum(not files.find(one.file) for one in table.rows)
    raise ValueError(
        f"{table.path} line {row.line} names {row.file}, which is not below {files.folder}"
        f"{f' (nor are the files of {missing - 1} other lines)' if missing > 1 else ''}; complete the images, or "
        "remove the line"
    )


def _check_once(listed: Sequence[_Listed]) -> None:
    """Raises ValueError for an image that is listed twice."""
    known: dict[str, _Listed] = {}
    for one in listed:
        other = known.setdefault(one.path, one)
        if other is not one:
            raise ValueError(f"{one.place} lists {one.row.file}, as {other.place} does; remove one of the lines")


def _stated(listed: Sequence[_Listed]) -> Stated:
    return Stated(texts=[one.row.label for one in listed], place=lambda row: listed[row].place)


def _index(request: SourceRequest, files: FilesBelow, listed: Sequence[_Listed], labels: np.ndarray) -> Index:
    """The index of some images, in the order of their classes and then of their paths, without those of other kinds."""
    kept = []
    for number in np.argsort(labels, kind="stable").tolist():
        path = listed[number].path
        kind = None
        if not is_named_image(path):
            kind = kind_of(path, read_bytes(request.filesystem, f"{files.folder}/{path}", size=HEAD_BYTES))
        if kind is None or kind in IMAGES:
            kept.append(number)
        else:
            files.left.kinds[kind] += 1
    builder = IndexBuilder(request.uri)
    paths = [listed[number].path for number in kept]
    common = posixpath.commonpath([posixpath.dirname(path) for path in paths]) if paths else ""
    folder = f"{files.folder}/{common}".rstrip("/")
    container = Container(f"{folder}/", f"{folder.rpartition('/')[2]}/")
    names = [posixpath.relpath(path, common or ".") for path in paths]
    builder.add(container, None, np.array([files.sizes[path] for path in paths]), labels[kept], names)
    request.progress.advance(len(kept))
    return builder.build()


def _unlisted(files: FilesBelow, listed: Sequence[_Listed], tables: Sequence[str]) -> list[str]:
    """A line about the files below the folder that no table lists, if there are any."""
    names = " and ".join(dict.fromkeys(path.rpartition("/")[2] for path in tables))
    known = {one.path for one in listed} | {path.removeprefix(f"{files.folder}/") for path in tables}
    others = [path for path in files.sizes if path not in known]
    return [f"{len(others)} files that {names} does not list, such as {others[0]}"] if others else []


def _stem(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[0]
