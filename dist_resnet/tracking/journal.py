"""The run's journal: every metric and event, in order, durable on the run's storage.

`journal/000001.jsonl`, `000002.jsonl`, ... hold one JSON object per line. Each start of the training loop writes a
`Session` record with the step it resumes from; points of earlier sessions after that step no longer count, because
those steps are computed again. Progress bar, MLflow and reports all read the journal.
"""

import collections
import json
import logging
import os
import threading
from collections.abc import Iterable

from dist_resnet.storage.files import naming
from dist_resnet.tracking.records import Metrics, Record, Session, from_stored, to_stored
from dist_resnet.tracking.run_directory import RunDirectory

logger = logging.getLogger(__name__)

FOLDER = "journal"
_MOST_OF_A_SESSION = 1 << 16
_SECONDS_BETWEEN_APPENDS, _SECONDS_BETWEEN_OBJECTS = 0.5, 15.0


class Journal:
    """Appends records to a run's journal. One process at a time may write (rank 0), from any of its threads."""

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        names = [name for name, _ in directory.list(FOLDER)]
        self._number = 1 + max((int(name.split(".")[0]) for name in names if name.endswith(".jsonl")), default=0)
        # Appending to a deque needs no lock.
        self._waiting: collections.deque[Record] = collections.deque()
        self._writing = threading.Lock()
        self._size_bytes = 0

    def append(self, record: Record) -> None:
        """Adds a record to a list in memory; `commit` makes it durable."""
        self._waiting.append(record)

    def commit(self) -> None:
        """Makes all records so far durable. Raises OSError, and keeps the records, if the storage fails."""
        with self._writing:
            records = list(self._waiting)
            if not records:
                return
            lines = [json.dumps(to_stored(record), allow_nan=False) + "\n" for record in records]
            if self._directory.is_local:
                self._directory.check_present()
            self._write("".join(lines).encode())
            for _ in records:
                self._waiting.popleft()

    def _write(self, content: bytes) -> None:
        name = f"{FOLDER}/{self._number:06d}.jsonl"
        if not self._directory.is_local:
            # An object store cannot append: each commit writes a new object.
            self._directory.write(name, content)
            self._number += 1
            return
        if self._size_bytes == 0:
            self._directory.write(name, b"")
        path = self._directory.path(name)
        with naming(path), open(path, "r+b") as file:
            # Overwrites what an earlier try wrote before the disk was full.
            file.truncate(self._size_bytes)
            file.seek(self._size_bytes)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self._size_bytes += len(content)

    @property
    def seconds_between_commits(self) -> float:
        """How long records may wait: longer on an object store, for fewer and larger objects."""
        return _SECONDS_BETWEEN_APPENDS if self._directory.is_local else _SECONDS_BETWEEN_OBJECTS


class Tail:
    """Reads a journal as it grows."""

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self._read: dict[str, int] = {}

    def poll(self) -> list[Record]:
        """The complete records that are new since the last call.

        Raises OSError, without losing any record, if the storage fails; ValueError, naming file and byte, if a line is
        not a record.
        """
        records, read = [], dict(self._read)
        for name, size in self._directory.list(FOLDER):
            start = read.get(name, 0)
            if not name.endswith(".jsonl") or size <= start:
                continue
            content = self._directory.read(f"{FOLDER}/{name}", start)
            complete = content[: content.rfind(b"\n") + 1]
            read[name] = start + len(complete)
            records += self._parsed(name, start, complete)
        # Only now: if one of several files cannot be read, none counts as read.
        self._read = read
        return records

    def again(self) -> list[Record]:
        """All records that `poll` has returned, read again. Raises as `poll` does."""
        return [
            record
            for name, size in self._read.items()
            for record in self._parsed(name, 0, self._directory.read(f"{FOLDER}/{name}", size=size))
        ]

    def _parsed(self, name: str, start: int, content: bytes) -> list[Record]:
        records, byte_offset = [], start
        for line in content.splitlines(keepends=True):
            try:
                records.append(from_stored(json.loads(line)))
            except ValueError as error:
                raise ValueError(
                    f"{self._directory.child(f'{FOLDER}/{name}')} is damaged: the line at byte {byte_offset} is not a "
                    f"record ({error}); restore the file from a copy"
                ) from error
            byte_offset += len(line)
        return records


def first_record(directory: RunDirectory) -> Record | None:
    """The oldest record, which is the first session's; None if there is none or it cannot be read."""
    try:
        for name, _ in directory.list(FOLDER):
            if name.endswith(".jsonl"):
                line = directory.read(f"{FOLDER}/{name}", size=_MOST_OF_A_SESSION).partition(b"\n")[0]
                return from_stored(json.loads(line))
    except (OSError, ValueError) as error:
        logger.debug("the first record of %s cannot be read: %s", directory.uri, error)
    return None


def read_journal(directory: RunDirectory) -> list[Record]:
    """All records of a run, oldest first."""
    return Tail(directory).poll()


def history(records: Iterable[Record]) -> dict[str, list[tuple[int, float, float]]]:
    """The metrics that count, by key: rising (step, time, value), without steps that a later session repeated."""
    points: dict[str, dict[int, tuple[float, float]]] = {}
    for record in records:
        if isinstance(record, Session):
            for of_key in points.values():
                for step in [step for step in of_key if step > record.start_step]:
                    del of_key[step]
        elif isinstance(record, Metrics):
            for key, value in record.values.items():
                points.setdefault(key, {})[record.step] = (record.time, value)
    return {key: [(step, *of_key[step]) for step in sorted(of_key)] for key, of_key in points.items()}
