"""What a trial's journal says of it. Oracle: Table 1's rule, "fail" above 20 % error."""

import dataclasses
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dist_resnet.ablation import watch
from dist_resnet.ablation.board import Board
from dist_resnet.ablation.trial import Trial
from dist_resnet.ablation.watch import Watcher
from dist_resnet.launch.plan import prepare
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.tracking import stop
from dist_resnet.tracking.journal import Journal, read_journal
from dist_resnet.tracking.records import Finished, Metrics, Record, Session, Stopped, TooDamaged
from dist_resnet.tracking.run_directory import RunDirectory


def _ended(recipe: Recipe, execution: Execution, error: float, **changes) -> str:
    """The status of a trial that has finished with an error."""
    trial = Trial(prepare(dataclasses.replace(recipe, **changes), execution, job="test"), [])
    values = {"val/loss": 1.0, "val/top1_error": error}
    trial.take([Metrics(step=trial.total, values=values), Finished()])
    return trial.status


@pytest.mark.parametrize(("error", "status"), [(0.19, "finished"), (0.21, "fail")])
def test_a_run_of_the_papers_length_fails_above_20_percent(recipe: Recipe, execution: Execution, error, status):
    assert _ended(recipe, execution, error, epochs=64_000 / 3) == status


def test_a_shortened_run_does_not_fail_for_its_error(recipe: Recipe, execution: Execution):
    assert _ended(recipe, execution, 0.9) == "finished"


def test_the_copy_for_a_checkpoint_is_no_step(recipe: Recipe, execution: Execution):
    trial = Trial(prepare(recipe, execution, job="test"), [])
    trial.take([Metrics(step=3, values={"time/checkpoint_seconds": 0.01})])
    assert trial.step == 0


def test_a_trial_that_was_stopped_is_paused_until_it_goes_on(recipe: Recipe, execution: Execution):
    trial = Trial(prepare(recipe, execution, job="test"), [])
    told = trial.take([Session(start_step=0, device="CPU"), Stopped(step=3)])
    assert (trial.status, trial.is_over) == ("paused", True)
    assert told[-1] == "stopped after step 3; the same command resumes there"
    trial.take([Session(start_step=3)])
    assert (trial.status, trial.step, trial.is_over) == ("running", 3, False)


def test_a_trial_with_too_many_damaged_images_has_no_result(recipe: Recipe, execution: Execution):
    trial = Trial(prepare(recipe, execution, job="test"), [])
    (told,) = trial.take([TooDamaged(step=3, reason="9 of the 96 training images are damaged")])
    assert trial.status == "died"
    assert told.startswith("9 of the 96 training images are damaged")


class _Ended:
    """In MLflow's place: how runs were ended. A store of its own takes ten seconds to make."""

    def __init__(self) -> None:
        self.statuses: list[str] = []
        self.taken: list[Record] = []
        self.waiting_points = 0
        self.run_id = None

    def take(self, records: Sequence[Record]) -> None:
        self.taken += records

    def close(self, status: str, *_: Any, **__: Any) -> None:
        self.statuses.append(status)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> _Ended:
    ended = _Ended()

    def make(*_: Any, records: Sequence[Record], **__: Any) -> _Ended:
        ended.taken = list(records)
        return ended

    monkeypatch.setattr(watch, "MlflowSink", make)
    return ended


def _watched(recipe: Recipe, execution: Execution, sweep: RunDirectory, *, before: bool, early_stop: bool) -> Trial:
    """A trial that was killed after two steps, under an earlier driver or under this one, and that Tune says ended."""
    sweep.write_json("sweep.json", {})
    plan = prepare(recipe, dataclasses.replace(execution, storage=sweep.uri, name="trial"), job="test")
    plan.claim()
    trial = Trial(plan, [])

    def die() -> None:
        journal = Journal(plan.directory)
        journal.append(Session(start_step=0, total_steps=100, device="CPU"))
        for step in (1, 2):
            journal.append(Metrics(step=step, values={"train/loss": 1.0, "time/step_seconds": 0.1}))
        journal.commit()

    if before:
        die()
    watcher = Watcher(sweep, [trial], [trial], None, "", Board(), early_stop=early_stop)  # pyrefly: ignore
    if not before:
        die()
    watcher.report("trial", "started")
    watcher.report("trial", "ended")
    watcher.close("KILLED")
    return trial


@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize(("before", "status"), [(True, "waiting"), (False, "paused")])
def test_a_killed_trial_is_not_summed_up_where_the_sweep_was_stopped(
    recipe: Recipe, execution: Execution, ended: _Ended, tmp_path: Path, before, status, early_stop
):
    sweep = RunDirectory(str(tmp_path / "sweep"))
    sweep.write_json("sweep.json", {})
    stop.request(sweep)
    trial = _watched(recipe, execution, sweep, before=before, early_stop=early_stop)
    assert (trial.status, trial.plan.summary()) == (status, None)
    assert set(ended.statuses) <= {"KILLED"}


def test_a_trial_that_ends_without_a_word_was_stopped_early_only_where_that_is_asked_for(
    recipe: Recipe, execution: Execution, ended: _Ended, tmp_path: Path
):
    early, other = (RunDirectory(str(tmp_path / name)) for name in ("early", "other"))
    trial = _watched(recipe, execution, early, before=False, early_stop=True)
    assert (trial.status, (trial.plan.summary() or {})["status"]) == ("stopped", "stopped")
    trial = _watched(recipe, execution, other, before=False, early_stop=False)
    assert (trial.status, trial.plan.summary()) == ("died", None)
    assert ended.statuses == ["FINISHED", "FAILED"]


def test_a_trial_that_goes_on_under_another_driver_is_shown_from_there_and_delivered_whole(
    recipe: Recipe, execution: Execution, ended: _Ended, tmp_path: Path
):
    sweep = RunDirectory(str(tmp_path / "sweep"))
    sweep.write_json("sweep.json", {})
    plan = prepare(recipe, dataclasses.replace(execution, storage=sweep.uri, name="trial"), job="test")
    plan.claim()
    _write(Journal(plan.directory), Session(start_step=0, device="CPU"), _step(1), _step(2))
    stream, trial = io.StringIO(), Trial(plan, [])
    watcher = Watcher(sweep, [trial], [trial], None, "", Board(stream))  # pyrefly: ignore
    assert (trial.status, trial.step, trial.seconds_left) == ("waiting", 2, None)
    journal = Journal(plan.directory)
    _write(journal, Session(start_step=1, device="CPU"), _step(2), _step(3))
    watcher.report("trial", "started")
    while len(ended.taken) < 6:
        time.sleep(0.05)
    evaluated = Metrics(step=3, values={"val/loss": 1.0, "val/top1_error": 0.25})
    _write(journal, evaluated, Finished(steps=3, top1_error=0.25, model="weights"))
    watcher.report("trial", "ended")
    watcher.close("FINISHED")
    assert stream.getvalue().splitlines() == [
        "trial: resuming after step 1",
        f"trial: step 3/{plan.num_steps}: validation error 25.00%",
        "trial: finished",
    ]
    assert ended.taken == read_journal(plan.directory)
    assert ended.statuses == ["FINISHED"]
    summary = plan.summary() or {}
    assert (summary["status"], summary["steps"], summary["top1_error"]) == ("finished", 3, 0.25)
    assert summary["weights_uri"] == plan.directory.child("weights")


def _step(step: int) -> Metrics:
    return Metrics(step=step, values={"train/loss": 1.0, "time/step_seconds": 0.1})


def _write(journal: Journal, *records: Record) -> None:
    for record in records:
        journal.append(record)
    journal.commit()
