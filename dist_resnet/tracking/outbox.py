"""The run's journal: every metric and event, durable on the run's storage, in the order in which it happened.

`journal/000001.jsonl`, `000002.jsonl`, ... hold one JSON object a line. Each start of the training loop opens with a
`session` record that says from which step it goes on; points of earlier sessions past that step were computed again
and no longer count. Whoever wants to show or deliver a run (progress bar, MLflow, reports) reads its journal.
"""

import json
import math
import time
from typing import Any

from dist_resnet.tracking.storage import RunDirectory

FOLDER = "journal"
# An object store cannot append, so there each flush makes an object of its own, no more often than this.
_SECONDS_BETWEEN_OBJECTS = 15.0


class Journal:
    """Appends records to a run's journal; one writer at a time (rank 0)."""

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        names = [name for name, _ in directory.list(FOLDER)]
        self._number = 1 + max((int(name.split(".")[0]) for name in names if name.endswith(".jsonl")), default=0)
        self._waiting: list[str] = []
        self._written_at = 0.0
        self._created = False

    def append(self, kind: str, **fields: Any) -> None:
        """Adds a record, stamped with the time in seconds since 1970; `flush` makes it durable."""
        record = {"kind": kind, "time": time.time()} | fields
        self._waiting.append(json.dumps(_spell_nonfinite(record), allow_nan=False) + "\n")

    def flush(self, *, now: bool = False) -> None:
        """Hands the records to the storage; `now` also where it is an object store that was written just before."""
        if not self._waiting:
            return
        if self._directory.is_local:
            self._append_locally("".join(self._waiting))
        elif now or time.monotonic() - self._written_at >= _SECONDS_BETWEEN_OBJECTS:
            self._directory.write(f"{FOLDER}/{self._number:06d}.jsonl", "".join(self._waiting).encode())
            self._number += 1
        else:
            return
        self._written_at = time.monotonic()
        self._waiting.clear()

    def _append_locally(self, text: str) -> None:
        name = f"{FOLDER}/{self._number:06d}.jsonl"
        if not self._created:
            self._directory.write(name, b"")
            self._created = True
        with open(self._directory.path(name), "a", encoding="utf-8") as file:
            file.write(text)


class Tail:
    """Reads a journal as it grows: `poll` returns the records that were not returned before."""

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self._read: dict[str, int] = {}

    def poll(self) -> list[dict[str, Any]]:
        """The complete records that are new since the last call."""
        records = []
        for name, size in self._directory.list(FOLDER):
            start = self._read.get(name, 0)
            if not name.endswith(".jsonl") or size <= start:
                continue
            content = self._directory.read(f"{FOLDER}/{name}", start)
            complete = content[: content.rfind(b"\n") + 1]
            self._read[name] = start + len(complete)
            records += [_parse_nonfinite(json.loads(line)) for line in complete.splitlines()]
        return records


def read_journal(directory: RunDirectory) -> list[dict[str, Any]]:
    """All records of a run, oldest first."""
    return Tail(directory).poll()


def history(records: list[dict[str, Any]]) -> dict[str, list[tuple[int, float, float]]]:
    """The metrics that count: key -> rising (step, time, value), without steps that a later session did again."""
    points: dict[str, dict[int, tuple[float, float]]] = {}
    for record in records:
        if record["kind"] == "session":
            for of_key in points.values():
                for step in [step for step in of_key if step > record["start_step"]]:
                    del of_key[step]
        elif record["kind"] == "metrics":
            for key, value in record["values"].items():
                points.setdefault(key, {})[record["step"]] = (record["time"], value)
    return {key: [(step, *of_key[step]) for step in sorted(of_key)] for key, of_key in points.items()}


def _spell_nonfinite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are written as the strings "nan", "inf" and "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _spell_nonfinite(entry) for key, entry in value.items()}
    return value


def _parse_nonfinite(record: dict[str, Any]) -> dict[str, Any]:
    if record["kind"] == "metrics":
        record["values"] = {key: float(value) for key, value in record["values"].items()}
    return record
