"""What a trial's journal says of it. Oracle: Table 1's rule, "fail" above 20 % error."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from dist_resnet.ablation import watch
from dist_resnet.ablation.board import Board
from dist_resnet.ablation.watch import Trial, Watcher
from dist_resnet.launch.plan import prepare
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.tracking import stop
from dist_resnet.tracking.journal import Journal
from dist_resnet.tracking.run_directory import RunDirectory


def _ended(recipe: Recipe, execution: Execution, error: float, **changes) -> str:
    """The status of a trial that has finished with an error."""
    trial = Trial(prepare(dataclasses.replace(recipe, **changes), execution, job="test"), [])
    values = {"val/loss": 1.0, "val/top1_error": error}
    trial.take([{"kind": "metrics", "step": trial.total, "values": values}, {"kind": "finished"}])
    return trial.status


@pytest.mark.parametrize(("error", "status"), [(0.19, "finished"), (0.21, "fail")])
def test_a_run_of_the_papers_length_fails_above_20_percent(recipe: Recipe, execution: Execution, error, status):
    assert _ended(recipe, execution, error, epochs=64_000 / 3) == status


def test_a_shortened_run_does_not_fail_for_its_error(recipe: Recipe, execution: Execution):
    assert _ended(recipe, execution, 0.9) == "finished"


def test_the_copy_for_a_checkpoint_is_no_step(recipe: Recipe, execution: Execution):
    trial = Trial(prepare(recipe, execution, job="test"), [])
    trial.take([{"kind": "metrics", "step": 3, "values": {"time/checkpoint_seconds": 0.01}}])
    assert trial.step == 0


def test_a_trial_that_was_stopped_is_paused_until_it_goes_on(recipe: Recipe, execution: Execution):
    trial = Trial(prepare(recipe, execution, job="test"), [])
    session = {"kind": "session", "start_step": 0, "device": "CPU"}
    told = trial.take([session, {"kind": "stopped", "step": 3}])
    assert (trial.status, trial.is_over) == ("paused", True)
    assert told[-1] == "stopped after step 3; the same command goes on there"
    trial.take([session | {"start_step": 3}])
    assert (trial.status, trial.step, trial.is_over) == ("running", 3, False)


def test_a_trial_with_too_many_damaged_pictures_has_no_result(recipe: Recipe, execution: Execution):
    trial = Trial(prepare(recipe, execution, job="test"), [])
    (told,) = trial.take([{"kind": "too_damaged", "step": 3, "reason": "9 of the 96 training pictures are damaged"}])
    assert trial.status == "died"
    assert told.startswith("9 of the 96 training pictures are damaged")


class _Ended:
    """In MLflow's place: how runs were ended. A store of its own takes ten seconds to make."""

    def __init__(self) -> None:
        self.statuses: list[str] = []
        self.waiting_points = 0
        self.run_id = None

    def close(self, status: str, *_: Any, **__: Any) -> None:
        self.statuses.append(status)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> _Ended:
    ended = _Ended()
    monkeypatch.setattr(watch, "MlflowSink", lambda *_, **__: ended)
    return ended


def _watched(recipe: Recipe, execution: Execution, sweep: RunDirectory, *, before: bool, early_stop: bool) -> Trial:
    """A trial that was killed after two steps, under an earlier driver or under this one, and that Tune says ended."""
    sweep.write_json("sweep.json", {})
    plan = prepare(recipe, dataclasses.replace(execution, storage=sweep.uri, name="trial"), job="test")
    plan.claim()
    trial = Trial(plan, [])

    def die() -> None:
        journal = Journal(plan.directory)
        journal.append("session", start_step=0, total_steps=100, device="CPU")
        for step in (1, 2):
            journal.append("metrics", step=step, values={"train/loss": 1.0, "time/step_seconds": 0.1})
        journal.commit()

    if before:
        die()
    watcher = Watcher(sweep, [trial], [trial], None, "", Board(), early_stop=early_stop)  # pyrefly: ignore
    if not before:
        die()
    watcher.tell("trial", "started")
    watcher.tell("trial", "ended")
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
