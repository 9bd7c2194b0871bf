"""Tables of images and their classes: text files with one image per line, as CSV or separated by tabs.

The first line has the columns' names. It may be missing in a table of two columns, file and class, and in Tiny
ImageNet's `val_annotations.txt`.
"""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow.fs as pafs

from dist_resnet.data.image.kinds import is_named_image
from dist_resnet.data.shards.columns import is_label_name
from dist_resnet.storage.files import read_bytes
from dist_resnet.wording import one_line, some

TABLES = (".csv", ".tsv", ".txt")
_HEAD_BYTES = 1 << 16
_SAMPLED_LINES = 50
_FILE_NAME = re.compile(
    r"(.*[_ .-])?(files?|file[_ .-]?(names?|paths?)|paths?|images?|imgs?|photos?)"
    r"([_ .-]?(ids?|names?|paths?|files?|filenames?))?"
)
# Names that say it only if no other does.
_SHORT_FILE_NAMES = ("id", "id_code", "name", "fname", "key")
_SPLIT_NAMES = ("split", "subset", "partition", "data_split", "data set", "data_set", "dataset", "set")
# Kaggle's ImageNet: a class, and boxes.
_PREDICTION = "PredictionString"
_WITHOUT_HEADER = "val_annotations.txt"


@dataclass(frozen=True, kw_only=True)
class TableColumns:
    """The columns of a table, where their names are not usual ones."""

    file: str | None = None
    label: str | None = None
    split: str | None = None

    @property
    def given(self) -> dict[str, str]:
        """The options that are given, with their values."""
        options = {"--file-column": self.file, "--label-column": self.label, "--split-column": self.split}
        return {option: name for option, name in options.items() if name is not None}


class Row(NamedTuple):
    """An image of a table; class and split are empty if the table does not state them."""

    line: int
    file: str
    label: str
    split: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table that was read."""

    path: str
    rows: list[Row]
    is_complete: bool
    """Whether every image must have a row, as in Kaggle's ImageNet."""


class _Layout(NamedTuple):
    """A table's separator, number of columns, and the place of each column."""

    separator: str
    width: int
    has_header: bool
    file: int
    label: int
    split: int | None
    first_word: bool


def read_table(filesystem: pafs.FileSystem, path: str, columns: TableColumns) -> Table:
    """Reads a table. Raises ValueError, naming the line, for one that is not one image and class per line."""
    return _parse(_decode(read_bytes(filesystem, path), path), path, columns)


def sample_table(filesystem: pafs.FileSystem, path: str, columns: TableColumns) -> tuple[list[list[str]], Table | str]:
    """(fields of the first lines, the table of these lines or why there is none) of a text file."""
    head = read_bytes(filesystem, path, size=_HEAD_BYTES)
    if len(head) == _HEAD_BYTES:
        head = head[: head.rfind(b"\n") + 1]
    try:
        text = _decode(head, path)
    except ValueError as error:
        return [], str(error)
    lines = text.splitlines()[:_SAMPLED_LINES]
    fields = [line.split(_separator(lines[0])) for line in lines]
    try:
        return fields, _parse(text, path, columns)
    except ValueError as error:
        return fields, str(error)


def _decode(content: bytes, path: str) -> str:
    try:
        text = content.decode("utf-8-sig").lstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save the table as CSV in UTF-8") from error
    if not text.strip():
        raise ValueError(f"{path} is empty; give a table with a line of column names and one image per line")
    return text


def _parse(text: str, path: str, columns: TableColumns) -> Table:
    layout = _find_layout(path, text.partition("\n")[0].rstrip("\r"), columns)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=layout.separator, strict=True)
    rows: list[Row] = []
    try:
        for number, fields in enumerate(reader):
            if any(fields) and (number or not layout.has_header):
                rows.append(_row(path, reader.line_num, fields, layout))
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num} cannot be read ({one_line(error)}); correct it") from error
    return Table(path=path, rows=rows, is_complete=layout.first_word)


def _row(path: str, line: int, fields: Sequence[str], layout: _Layout) -> Row:
    if len(fields) != layout.width:
        raise ValueError(
            f"{path} line {line} has {len(fields)} fields, the first line {layout.width}; put a field with a comma "
            "into quotes, or correct the line"
        )
    file = fields[layout.file].strip()
    if not file:
        raise ValueError(f"{path} line {line} names no file; complete it, or remove the line")
    label = fields[layout.label].strip()
    split = "" if layout.split is None else fields[layout.split].strip()
    return Row(line, file, label.partition(" ")[0] if layout.first_word else label, split)


def _find_layout(path: str, first: str, columns: TableColumns) -> _Layout:
    separator = _separator(first)
    names = [name.strip() for name in next(csv.reader([first], delimiter=separator))]
    if is_named_image(names[0]) and not columns.given:
        if len(names) != 2 and not path.endswith(f"/{_WITHOUT_HEADER}"):
            raise ValueError(
                f"{path} has no line of column names, it begins with {first[:80]!r}; put one above, such as "
                f"{separator.join(['file', 'label', *(f'column{number}' for number in range(3, 1 + len(names)))])!r}"
            )
        return _Layout(separator, len(names), False, 0, 1, None, False)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path} has two columns named {twice[0]!r}; rename or remove one")
    for option, name in columns.given.items():
        if name not in names:
            raise ValueError(f"{path} has no column {name}, it has {some(names, most=8)}; choose one with {option}")
    label = _find_label(path, names, columns)
    file = names.index(_find_file(path, [name for name in names if name != label], names, columns))
    split = columns.split or next((name for name in _SPLIT_NAMES for one in names if one.lower() == name), None)
    split = next((name for name in names if split is not None and name.lower() == split.lower()), None)
    return _Layout(
        separator,
        len(names),
        True,
        file,
        names.index(label),
        None if split is None or split in (label, names[file]) else names.index(split),
        label == _PREDICTION,
    )


def _separator(first: str) -> str:
    """The separator of a table with this first line: a tab, a comma, or a space between two words."""
    for separator in "\t,":
        if separator in first:
            return separator
    return " " if len(first.split(" ")) == 2 else ","


def _find_label(path: str, names: Sequence[str], columns: TableColumns) -> str:
    """The column of classes."""
    if columns.label is not None or "label" in names:
        return columns.label or "label"
    found = [name for name in names if name == _PREDICTION or is_label_name(name)]
    if len(found) > 1:
        raise ValueError(f"{path} has several columns of classes, {some(found)}; choose one with --label-column")
    if not found:
        raise ValueError(
            f"{path} has no column with a name for classes, such as label, it has {some(names, most=8)}; choose the "
            "one that has them with --label-column; the first line must have the columns' names"
        )
    return found[0]


def _find_file(path: str, candidates: Sequence[str], names: Sequence[str], columns: TableColumns) -> str:
    if columns.file is not None or "file_name" in candidates:
        return columns.file or "file_name"
    found = [name for name in candidates if _FILE_NAME.fullmatch(name.lower())]
    found = found or [name for name in candidates if name.lower() in _SHORT_FILE_NAMES]
    if len(found) > 1:
        raise ValueError(f"{path} has several columns of files, {some(found)}; choose one with --file-column")
    if not found:
        raise ValueError(
            f"{path} has no column with a name for files, such as file_name, it has {some(names, most=8)}; choose the "
            "one that has them with --file-column; the first line must have the columns' names"
        )
    return found[0]
