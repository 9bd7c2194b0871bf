"""The answers of a prediction as one Parquet or CSV file, and before that as a part for each finished block.

Beside OUTPUT, the folder `OUTPUT.parts` holds `job.json`, what is being predicted, and `part-00017-of-00123.parquet`
and so on. It is deleted once OUTPUT is there, which appears complete or not at all.
"""

import contextlib
import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from dist_resnet.launch.prediction.classifier import Answers
from dist_resnet.storage.files import delete, exists, is_partial_of_here, read_json, whole_file, write_json
from dist_resnet.storage.lock import LockedError, lock
from dist_resnet.storage.uri import is_local, list_entries, open_uri

FORMATS = (".parquet", ".csv")
"""Endings of an output."""
SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "classes": pa.list_(pa.int32()),
        "names": pa.list_(pa.string()),
        "probabilities": pa.list_(pa.float32()),
        "error": pa.string(),
    }
)
_JOB = "job.json"
_PART = re.compile(r"part-(\d+)-of-\d+\.parquet")


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What a prediction has written."""

    output: str
    images: int
    unreadable: int
    """Images that have an error and no classes."""
    first_error: str | None = None
    """The first of them with its error."""


class Results:
    """The parts of a prediction, and the output that is made of them."""

    def __init__(self, output: str, *, num_parts: int, top_k: int) -> None:
        self.output, self.num_parts, self.top_k = output, num_parts, top_k
        self._filesystem, self._path = open_uri(output)
        self._folder = f"{self._path}.parts"

    def claim(self, job: dict[str, Any]) -> set[int]:
        """The numbers of the parts that an earlier start of the same job has finished.

        Raises ValueError if the output exists already, or is being made by another job.
        """
        known = read_json(self._filesystem, f"{self._folder}/{_JOB}")
        if known is not None:
            _check_same(self.output, self._folder, known, job)
        elif exists(self._filesystem, self._path):
            raise ValueError(f"{self.output} exists already; give another --output, or delete it")
        else:
            write_json(self._filesystem, f"{self._folder}/{_JOB}", job, indent=2)
        entries = list_entries(self._filesystem, self._folder, folders=False)
        return {int(found[1]) for one in entries if (found := _PART.fullmatch(one.name))}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from the same output; an object store and some network file systems have no locks."""
        if not is_local(self._filesystem):
            yield
            return
        self._filesystem.create_dir(self._folder, recursive=True)
        try:
            unlock = lock(self._folder)
        except LockedError as error:
            raise ValueError(
                f"{self.output} is being written by {error.holder}; wait for it, or give another --output"
            ) from error
        except OSError:
            yield
            return
        try:
            yield
        finally:
            unlock()
            self._delete_if_empty()

    def write(self, number: int, table: pa.Table) -> None:
        """Writes the part of a block."""
        with whole_file(self._filesystem, self._part(number)) as stream:
            pq.write_table(table, stream)

    def finish(self) -> Predicted:
        """Makes the output of all parts, and deletes them. Raises ValueError if no image could be read."""
        images, unreadable, first = 0, 0, None
        for table in self._parts(["path", "error"]):
            images += len(table)
            wrong = table.filter(table["error"].is_valid())
            unreadable += len(wrong)
            if first is None and len(wrong):
                first = f"{wrong['path'][0].as_py()} ({wrong['error'][0].as_py()})"
        if unreadable < images and not exists(self._filesystem, self._path):
            self._remove_partials()
            with whole_file(self._filesystem, self._path) as stream:
                if self._path.endswith(".csv"):
                    _write_csv(stream, self._parts(), self.top_k)
                else:
                    _write_parquet(stream, self._parts())
        delete(self._filesystem, self._folder)
        if unreadable == images:
            raise ValueError(f"none of the {images} images can be read, the first is {first}; give others")
        return Predicted(output=self.output, images=images, unreadable=unreadable, first_error=first)

    def _parts(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        for number in range(self.num_parts):
            with self._filesystem.open_input_file(self._part(number)) as file:
                yield pq.ParquetFile(file).read(columns=columns, use_threads=False)

    def _part(self, number: int) -> str:
        return f"{self._folder}/part-{number:05d}-of-{self.num_parts:05d}.parquet"

    def _remove_partials(self) -> None:
        """Removes what a kill left of an earlier try to write the output."""
        folder, _, name = self._path.rpartition("/")
        for entry in list_entries(self._filesystem, folder, folders=False):
            if entry.name.startswith(f"{name}.") and is_partial_of_here(entry.name):
                delete(self._filesystem, f"{folder}/{entry.name}")

    def _delete_if_empty(self) -> None:
        if exists(self._filesystem, self._folder) and not list_entries(self._filesystem, self._folder):
            delete(self._filesystem, self._folder)


def check_output(output: str) -> None:
    """Raises ValueError if the ending is none of the formats', or there is no folder for a local output."""
    if not output.endswith(FORMATS):
        raise ValueError(f"--output must end in {' or '.join(FORMATS)}, got {output}")
    filesystem, path = open_uri(output)
    if filesystem.get_file_info(path).type == pafs.FileType.Directory:
        raise ValueError(f"--output {output} is a folder; give a file")


def table_of(paths: Sequence[str], answers: Sequence[Answers], names: Sequence[str]) -> pa.Table:
    """The answers for a block of images as a table; `names` are those of the model's classes."""
    rows: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for part in answers:
        for number, (classes, shares) in enumerate(
            zip(part.classes.tolist(), part.probabilities.tolist(), strict=True)
        ):
            error = part.errors.get(number)
            rows["classes"].append([] if error else classes)
            rows["names"].append([] if error else [names[one] for one in classes])
            rows["probabilities"].append([] if error else shares)
            rows["error"].append(error)
    return pa.table({**rows, "path": list(paths)}, SCHEMA)


def _check_same(output: str, folder: str, known: dict[str, Any], job: dict[str, Any]) -> None:
    others = [key.replace("_", " ") for key in job if known.get(key) != job[key]]
    if others:
        raise ValueError(
            f"{output} is half made with other {', '.join(others)}; give the same again, another --output, or delete "
            f"{folder}"
        )


def _write_parquet(stream: Any, tables: Iterator[pa.Table]) -> None:
    with pq.ParquetWriter(stream, SCHEMA) as writer:
        for table in tables:
            writer.write_table(table)


def _write_csv(stream: Any, tables: Iterator[pa.Table], top_k: int) -> None:
    """One row for each image, with `class_1,name_1,probability_1` and so on; empty where there is an error."""
    columns = [f"{key}_{rank}" for rank in range(1, top_k + 1) for key in ("class", "name", "probability")]
    stream.write(_lines([["path", *columns, "error"]]))
    for table in tables:
        stream.write(_lines(_cells(row, len(columns)) for row in table.to_pylist()))


def _lines(rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _cells(row: dict[str, Any], width: int) -> list[Any]:
    # Nine digits are exact in float32.
    ranked = zip(row["classes"], row["names"], (f"{share:.9g}" for share in row["probabilities"]), strict=True)
    cells = [cell for answer in ranked for cell in answer]
    return [row["path"], *cells, *[""] * (width - len(cells)), row["error"] or ""]
