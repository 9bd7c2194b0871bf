"""Following a run's journal. Oracle: the records written, and how often its files were read."""

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from dist_resnet.launch.follow import Lookout, RunFollower, outcome, with_waiting_points
from dist_resnet.launch.plan import prepare
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.tracking.journal import Journal, read_journal
from dist_resnet.tracking.records import Diverged, Finished, Metrics, Record, Session, Stopped, TooDamaged, Tracking
from dist_resnet.tracking.run_directory import RunDirectory


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    (tmp_path / "recipe.json").touch()
    return RunDirectory(str(tmp_path))


def _write(journal: Journal, *records: Record) -> None:
    for record in records:
        journal.append(record)
    journal.commit()


def _step(step: int) -> Metrics:
    return Metrics(step=step, values={"train/loss": 1.0})


def test_every_observer_gets_new_records_and_files_are_read_once(directory: RunDirectory, monkeypatch):
    spans, whole = [], RunDirectory.read

    def read(self: RunDirectory, name: str, start: int = 0, size: int | None = None) -> bytes:
        content = whole(self, name, start, size)
        spans.append((name, start, start + len(content)))
        return content

    monkeypatch.setattr(RunDirectory, "read", read)
    journal, follower = Journal(directory), RunFollower(directory)
    _write(journal, Session(start_step=0), _step(1))
    earlier = follower.look()
    first: list[Record] = []
    second: list[Record] = []
    follower.report(first.extend, second.extend)
    for step in (2, 3):
        _write(journal, _step(step))
        follower.look()
    follower.look()
    assert len(earlier) == 2
    assert first == second == read_journal(directory)[2:]
    ((name, size),) = directory.list("journal")
    *read_by_follower, _ = spans  # the last one is this test's
    starts, ends = [start for _, start, _ in read_by_follower], [end for _, _, end in read_by_follower]
    assert ({span[0] for span in spans}, starts, ends[-1]) == ({f"journal/{name}"}, [0, *ends[:-1]], size)


@pytest.mark.parametrize("ending", [Finished(), Diverged(step=1), TooDamaged(step=1, reason="9"), Stopped(step=1)])
def test_the_ending_is_the_newest_record_until_another_session_starts(directory: RunDirectory, ending: Record):
    follower = RunFollower(directory)
    for record, expected in (
        (Session(start_step=0), None),
        (ending, ending),
        (Session(start_step=1), None),
        (ending, ending),
    ):
        _write(Journal(directory), record)
        follower.look()
        assert follower.ending == expected
        follower.look()
        assert follower.ending == expected


def test_an_observer_that_fails_logs_one_warning_and_does_not_affect_the_others(directory: RunDirectory, caplog):
    told: list[Record] = []

    def failing(records: Sequence[Record]) -> None:
        raise BrokenPipeError("the terminal is gone")

    follower, journal = RunFollower(directory), Journal(directory)
    follower.report(failing, told.extend)
    for step in (1, 2):
        _write(journal, _step(step))
        follower.look()
    assert told == read_journal(directory)
    assert caplog.text.count("is no longer called: BrokenPipeError: the terminal is gone") == 1


def test_a_storage_that_fails_during_and_at_the_end_of_a_run_loses_no_record(
    directory: RunDirectory, monkeypatch, caplog
):
    told: list[Record] = []
    follower, journal = RunFollower(directory), Journal(directory)
    follower.report(told.extend)
    whole, failures, failed_twice = RunDirectory.read, [], threading.Event()

    def read(self: RunDirectory, name: str, start: int = 0, size: int | None = None) -> bytes:
        if len(failures) < 3:
            failures.append(name)
            if len(failures) == 2:
                failed_twice.set()
            raise OSError("away")
        return whole(self, name, start, size)

    _write(journal, Session(start_step=0), _step(1), Stopped(step=1))
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "read", read)
        lookout = Lookout(follower.look)
        assert failed_twice.wait(30)
        lookout.close(wait_seconds=30)
    assert told == read_journal(directory)
    assert caplog.text.count("away") == 1


def test_a_storage_that_stays_down_is_retried_only_for_the_given_time(directory: RunDirectory, monkeypatch, caplog):
    def away(*_: object) -> list:
        raise OSError("away")

    monkeypatch.setattr(RunDirectory, "list", away)
    Lookout(RunFollower(directory).look).close(wait_seconds=0.1)
    assert "cannot read the end of a journal (away)" in caplog.text


def test_a_damaged_journal_logs_one_line_and_raises_nothing_in_a_thread(directory: RunDirectory, caplog):
    directory.write("journal/000001.jsonl", b"{broken}\n")
    Lookout(RunFollower(directory).look).close(wait_seconds=0.1)
    assert "000001.jsonl is damaged: the line at byte 0 is not a record" in caplog.text


def test_an_observer_gets_the_number_of_points_waiting_for_mlflow_at_each_look(directory: RunDirectory):
    told: list[Record] = []
    follower = RunFollower(directory)
    follower.report(with_waiting_points(told.extend, iter((5, 4)).__next__))
    follower.look()
    _write(Journal(directory), _step(1))
    follower.look()
    assert [record.waiting_points if isinstance(record, Tracking) else None for record in told] == [5, None, 4]


def test_a_summary_says_how_a_run_ended(recipe: Recipe, execution: Execution):
    plan = prepare(recipe, dataclasses.replace(execution, name="run"), job="test")
    ended = Finished(steps=6, epochs=2.0, top1_error=0.5, top5_error=0.1, model="checkpoints/m", weights_sha256="d")
    summary = outcome(plan, ended)
    assert (summary["status"], summary["steps"], summary["top1_error"]) == ("finished", 6, 0.5)
    assert summary["weights_uri"] == plan.directory.child("checkpoints/m")
    for ending in (Diverged(step=3), Stopped(step=3)):
        summary = outcome(plan, ending)
        assert (summary["status"], summary["steps"], summary["top1_error"]) == (ending.kind, 3, None)
        assert (summary["weights_uri"], "reason" in summary) == (None, False)
    assert outcome(plan, TooDamaged(step=3, reason="9 of 96"))["reason"] == "9 of 96"
    with pytest.raises(RuntimeError, match="has no end"):
        outcome(plan, None)
