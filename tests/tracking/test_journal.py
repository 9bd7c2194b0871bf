"""The journal. Oracle: the records that were appended."""

import json
import math
from pathlib import Path

import pytest

from dist_resnet.tracking.journal import Journal, Tail, history, read_journal
from dist_resnet.tracking.records import Metrics, Record, Session
from dist_resnet.tracking.run_directory import RunDirectory


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    (tmp_path / "recipe.json").touch()
    return RunDirectory(str(tmp_path))


def _metrics(journal: Journal, *steps: int, value: float = 0.0) -> None:
    for step in steps:
        journal.append(Metrics(step=step, values={"train/loss": value or float(step)}))
    journal.commit()


def _steps(records: list[Record]) -> list[int]:
    return [record.step for record in records if isinstance(record, Metrics)]


def test_records_are_read_in_order(directory: RunDirectory):
    journal = Journal(directory)
    journal.append(Session(start_step=0))
    _metrics(journal, 1, 2)
    session, first, second = read_journal(directory)
    assert isinstance(session, Session)
    assert [first, second] == [
        Metrics(time=each.time, step=step, values={"train/loss": step}) for each, step in ((first, 1), (second, 2))
    ]


def test_each_start_writes_a_new_file(directory: RunDirectory, tmp_path: Path):
    for _ in range(2):
        _metrics(Journal(directory), 1)
    assert sorted(path.name for path in tmp_path.glob("journal/*")) == ["000001.jsonl", "000002.jsonl"]


def test_a_tail_returns_each_record_once_and_no_incomplete_lines(directory: RunDirectory, tmp_path: Path):
    journal, tail = Journal(directory), Tail(directory)
    _metrics(journal, 1)
    assert _steps(tail.poll()) == [1]
    assert tail.poll() == []
    file = tmp_path / "journal/000001.jsonl"
    line = json.dumps({"kind": "metrics", "time": 0.0, "step": 2, "values": {"train/loss": 1.0}}) + "\n"
    with file.open("a") as out:
        out.write(line[:10])
    assert tail.poll() == []
    with file.open("a") as out:
        out.write(line[10:])
    assert _steps(tail.poll()) == [2]


def test_steps_that_a_later_session_repeated_count_once(directory: RunDirectory):
    first = Journal(directory)
    first.append(Session(start_step=0))
    _metrics(first, 1, 2, 3, value=1.0)
    second = Journal(directory)
    second.append(Session(start_step=1))
    _metrics(second, 2, value=5.0)
    points = [(step, value) for step, _, value in history(read_journal(directory))["train/loss"]]
    assert points == [(1, 1.0), (2, 5.0)]


def test_nan_and_infinities_are_kept_in_valid_json(directory: RunDirectory, tmp_path: Path):
    journal = Journal(directory)
    for step, value in enumerate((math.nan, math.inf, -math.inf)):
        journal.append(Metrics(step=step, values={"train/loss": value}))
    journal.commit()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for line in (tmp_path / "journal/000001.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    values = [value for _, _, value in history(read_journal(directory))["train/loss"]]
    assert math.isnan(values[0])
    assert values[1:] == [math.inf, -math.inf]


def test_on_an_object_store_each_commit_is_an_object(s3: str):
    directory = RunDirectory(f"{s3}/journal-run")
    journal = Journal(directory)
    _metrics(journal, 1)
    _metrics(journal, 2)
    journal.commit()
    assert _steps(read_journal(directory)) == [1, 2]
    assert len(directory.list("journal")) == 2


def test_records_that_a_full_disk_cut_off_are_written_again_once(directory: RunDirectory, tmp_path: Path, monkeypatch):
    journal = Journal(directory)
    _metrics(journal, 1)
    journal.append(Metrics(step=2, values={"train/loss": 2.0}))
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", _full)
        with pytest.raises(OSError, match="no space"):
            journal.commit()
    with (tmp_path / "journal/000001.jsonl").open("a") as file:
        file.write('{"kind": "metr')
    _metrics(journal, 3)
    assert _steps(read_journal(directory)) == [1, 2, 3]


def _full(_: int) -> None:
    raise OSError("no space")


def test_a_directory_that_is_gone_is_not_created_again(directory: RunDirectory, tmp_path: Path):
    journal = Journal(RunDirectory(str(tmp_path / "gone")))
    journal.append(Session(start_step=0))
    with pytest.raises(FileNotFoundError, match="is its disk mounted"):
        journal.commit()
    assert not (tmp_path / "gone").exists()
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone/recipe.json").touch()
    journal.commit()
    assert len(read_journal(RunDirectory(str(tmp_path / "gone")))) == 1


def test_a_tail_that_could_not_read_one_file_loses_none_of_another(directory: RunDirectory, monkeypatch):
    for step in (1, 2):
        _metrics(Journal(directory), step)
    tail, whole = Tail(directory), RunDirectory.read

    def read(self: RunDirectory, name: str, start: int = 0) -> bytes:
        if name.endswith("000002.jsonl"):
            raise OSError("away")
        return whole(self, name, start)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "read", read)
        with pytest.raises(OSError, match="away"):
            tail.poll()
    assert _steps(tail.poll()) == [1, 2]


def test_a_tail_reads_again_what_it_has_returned_and_no_more(directory: RunDirectory):
    tail = Tail(directory)
    assert tail.again() == []
    _metrics(Journal(directory), 1, 2)
    journal = Journal(directory)
    _metrics(journal, 3)
    returned = tail.poll()
    _metrics(journal, 4)
    assert tail.again() == returned
    assert _steps(tail.poll()) == [4]


@pytest.mark.parametrize(
    "line", [b"{broken}", b"[]", b"7", b'{"no": "kind"}', b'{"kind": "metrics", "time": 1}', b"\xff"]
)
def test_a_line_that_is_not_a_record_is_reported_with_its_file_and_byte(directory: RunDirectory, line: bytes):
    _metrics(Journal(directory), 1)
    ((name, size),) = directory.list("journal")
    whole = directory.read(f"journal/{name}")
    directory.write(f"journal/{name}", whole + line + b"\n" + whole)
    with pytest.raises(ValueError, match=f"journal/{name} is damaged: the line at byte {size} is not a record"):
        read_journal(directory)
