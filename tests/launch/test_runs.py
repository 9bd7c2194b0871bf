"""A run's status and progress. Oracle: journals written by hand, and the summary of a real run."""

import dataclasses
from pathlib import Path

import pytest

from dist_resnet.launch import local
from dist_resnet.launch.runs import names_of_runs, read_overview
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.tracking import stop
from dist_resnet.tracking.journal import Journal
from dist_resnet.tracking.records import Checkpoint, Diverged, Metrics, Record, Session, Stopped, Straggler, TooDamaged
from dist_resnet.tracking.run_directory import RunDirectory


def _session(journal: Journal, start_step: int, world_size: int, steps: range, *, end: Record | None = None) -> None:
    journal.append(Session(start_step=start_step, total_steps=100, world_size=world_size, device="CPU"))
    for step in steps:
        values = {"train/loss": 1 / step, "train/top1_error": 0.25, "time/step_seconds": 0.5}
        journal.append(Metrics(step=step, values=values))
    if end:
        journal.append(end)
    journal.commit()


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(str(tmp_path / "run"))
    directory.write_json("recipe.json", {"recipe": {"global_batch": 32}})
    return directory


def test_a_run_that_trains_shows_its_speed_time_left_checkpoint_and_restarts(directory: RunDirectory):
    _session(Journal(directory), 0, 4, range(1, 31), end=Checkpoint(step=20, seconds=1.0))
    _session(Journal(directory), 20, 2, range(21, 41))
    overview = read_overview(directory)
    assert (overview.status, overview.step, overview.total_steps) == ("open", 40, 100)
    assert (overview.world_size, overview.restarts, overview.checkpoint_step) == (2, 1, 20)
    assert overview.images_per_second == pytest.approx(64)
    assert overview.seconds_left == pytest.approx(30)
    assert overview.line() == (
        "run: open, 2 workers, step 40/100 (40%), 64.0 images/s, 0:00:30 left, "
        "checkpoint of step 20, 0:00:00 ago, 1 restart"
    )
    assert "training    loss 0.025, error 25.0%" in overview.details()
    assert "checkpoint  of step 20, 0:00:00 ago" in overview.details()


def test_a_run_without_a_checkpoint_says_so(directory: RunDirectory):
    _session(Journal(directory), 0, 2, range(1, 11))
    overview = read_overview(directory)
    assert overview.line().endswith("left, no checkpoint yet")
    assert "checkpoint  none yet" in overview.details()


def test_resuming_after_a_stop_is_not_a_restart(directory: RunDirectory):
    _session(Journal(directory), 0, 2, range(1, 11), end=Stopped(step=10))
    assert read_overview(directory).status == "stopped"
    assert read_overview(directory).seconds_left is None
    _session(Journal(directory), 10, 2, range(11, 21))
    overview = read_overview(directory)
    assert (overview.status, overview.restarts) == ("open", 0)


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (Diverged(step=10), "no longer finite at step 10"),
        (TooDamaged(step=10, reason="9 of the 96 training images are damaged"), "9 of the 96"),
    ],
)
def test_a_run_that_failed_says_why(directory: RunDirectory, end, reason):
    _session(Journal(directory), 0, 1, range(1, 11), end=end)
    overview = read_overview(directory)
    assert overview.status == end.kind
    assert reason in (overview.reason or "")
    assert reason in overview.details()


def test_an_open_run_names_the_worker_that_holds_it_back_until_that_is_over_or_the_workers_restart(directory):
    finding = Straggler(step=10, rank=1, machine="host-b", fraction=0.31, reason="images")
    finding = dataclasses.replace(finding, seconds_per_step=0.8, others_seconds_per_step=0.01)
    line = "rank 1 on host-b holds the run back by 31%: it waits for images for 0.8 s a step, the others for 0.01 s"
    journal = Journal(directory)
    _session(journal, 0, 2, range(1, 11), end=finding)
    assert read_overview(directory).held_back == line
    assert f"held back   {line}" in read_overview(directory).details()
    journal.append(Straggler(step=20, rank=1, machine="host-b"))
    journal.commit()
    assert read_overview(directory).held_back is None
    journal.append(finding)
    _session(journal, 10, 2, range(11, 21))
    assert read_overview(directory).held_back is None


def test_a_run_that_has_not_started_is_shown_too(directory: RunDirectory):
    assert read_overview(directory).line() == "run: open"


def test_a_folder_that_is_not_a_run_is_refused_and_not_listed(directory: RunDirectory, tmp_path: Path):
    (tmp_path / "other").mkdir()
    with pytest.raises(FileNotFoundError, match="other is not a run"):
        read_overview(RunDirectory(str(tmp_path / "other")))
    assert names_of_runs(RunDirectory(str(tmp_path))) == ["run"]


def test_a_probes_results_are_not_a_run(directory: RunDirectory, tmp_path: Path):
    RunDirectory(str(tmp_path / "probe")).write_json("recipe.json", {"recipe": {"global_batch": 32}, "probe": {}})
    assert names_of_runs(RunDirectory(str(tmp_path))) == ["run"]
    with pytest.raises(FileNotFoundError, match="probe is not a run"):
        read_overview(RunDirectory(str(tmp_path / "probe")))


def test_a_sweep_shows_its_trials(tmp_path: Path):
    sweep = RunDirectory(str(tmp_path / "sweep"))
    sweep.write_json("sweep.json", {"cells": [{"trial": name} for name in ("first", "second", "second", "third")]})
    for name in ("first", "second"):
        trial = RunDirectory(sweep.child(name))
        trial.write_json("recipe.json", {"recipe": {"global_batch": 32}})
        _session(Journal(trial), 0, 1, range(1, 11))
    RunDirectory(sweep.child("first")).write_json("summary.json", {"status": "finished"})
    assert names_of_runs(RunDirectory(str(tmp_path))) == ["sweep"]
    assert read_overview(sweep).line() == "sweep: open, 3 trials: 1 finished, 1 started, 1 waiting"
    assert "trial       second: open, 1 worker, step 10/100 (10%)" in read_overview(sweep).details()

    stop.request(sweep)
    assert read_overview(sweep).status == "open"
    stop.confirm(sweep)
    assert read_overview(sweep).status == "stopped"
    sweep.write_json("summary.json", {"status": "finished"})
    assert read_overview(sweep).status == "finished"


def test_a_finished_run_shows_what_its_summary_says(recipe: Recipe, execution: Execution):
    plan = local.prepare_run(dataclasses.replace(recipe, epochs=2), execution, job="test")
    summary = local.run(plan)
    overview = read_overview(plan.directory)
    assert (overview.status, overview.step, overview.total_steps) == ("finished", summary["steps"], plan.num_steps)
    assert overview.validation_top1_error == pytest.approx(summary["top1_error"])
    assert (overview.world_size, overview.restarts, overview.checkpoint_step) == (1, 0, summary["steps"])
    assert summary["mlflow_run_id"] in overview.mlflow_runs.values()
