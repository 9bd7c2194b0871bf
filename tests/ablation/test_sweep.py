"""Sweeps on Ray Tune. Oracle: the same runs without Ray, MLflow's client, and a real SIGKILL of a trial."""

import dataclasses
import json
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from oracle.images import read_row_group
from oracle.sources import rename_classes

from dist_resnet.ablation import sweep
from dist_resnet.ablation.grid import Choice, Images
from dist_resnet.data.prepare.demo import CLASS_NAMES, write_demo
from dist_resnet.launch import local
from dist_resnet.recipe import Execution, Recipe, Tracking
from dist_resnet.storage.lock import lock
from dist_resnet.tracking.run_directory import RunDirectory

TABLE_1 = Choice(
    tables=("1", "2"), depths=(8,), shortcuts=("identity",), placements=("original",), seeds=2, iterations=4
)


@pytest.fixture(scope="module")
def ten_classes(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """96 training and 40 validation images in ten classes, in the place of CIFAR-10's."""
    folder = tmp_path_factory.mktemp("ten")
    train, validation = write_demo(str(folder), size=32, num_classes=10, train_images=96, validation_images=40, seed=0)
    return Images(train=train, validation=validation, train100=train, validation100=validation)


@pytest.fixture
def base(recipe: Recipe) -> Recipe:
    """What the cells start from, with the fixture's small batches."""
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, placement="original"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow store for all tests here: making its tables takes ten seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def quick(execution: Execution, store: str, tmp_path: Path) -> Execution:
    """A sweep in the test's own folder and MLflow experiment."""
    return dataclasses.replace(execution, name="sweep", tracking=Tracking(uri=store, experiment=tmp_path.name))


def _run(base: Recipe, choice: Choice, images: Images, execution: Execution, **options) -> int:
    return sweep.run(sweep.prepare_sweep(base, choice, images, execution, job="test", **options))


def _children(execution: Execution) -> dict[str, object]:
    client = MlflowClient(execution.tracking.uri)
    experiment = client.get_experiment_by_name(execution.tracking.experiment)
    assert experiment is not None
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


@pytest.mark.ray
def test_a_sweep_leaves_runs_summaries_a_report_and_mlflow_runs_below_one_parent(
    ray_cluster, base: Recipe, ten_classes: Images, quick: Execution
):
    assert _run(base, TABLE_1, ten_classes, quick) == 0
    folder = Path(quick.storage, "sweep")
    content = json.loads((folder / "sweep.json").read_text())
    # Table 1's and Table 2's "original" are one recipe: two cells of two seeds, two trials.
    assert [(entry["key"], entry["seed"]) for entry in content["cells"]] == [
        ("table1/original/8", 0),
        ("table1/original/8", 1),
        ("table2/original/8", 0),
        ("table2/original/8", 1),
    ]
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
    names = list(dict.fromkeys(entry["trial"] for entry in content["cells"]))
    assert names == ["table1-original-8-seed0", "table1-original-8-seed1"]
    runs = _children(quick)
    parent = runs.pop("sweep")
    assert parent.info.status == "FINISHED"
    assert set(runs) == set(names)
    attached = {file.path for file in MlflowClient(quick.tracking.uri).list_artifacts(parent.info.run_id)}
    assert {"report.md", "report.html", "sweep.json"} <= attached
    assert "ResNet-8" in (folder / "report" / "report.md").read_text()
    for seed, name in enumerate(names):
        summary = json.loads((folder / name / "summary.json").read_text())
        entry = next(entry for entry in content["cells"] if entry["trial"] == name)
        assert (summary["steps"], summary["fingerprint"]) == (4, entry["fingerprint"])
        run = runs[name]
        assert run.info.status == "FINISHED"
        assert summary["mlflow_run_id"] == run.info.run_id
        assert run.data.metrics["val/top1_error"] == summary["top1_error"]
        tags = run.data.tags
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert tags["cell"] == "table1/original/8 table2/original/8"
        assert (tags["table"], tags["depth"], tags["seed"]) == ("1 2", "8", str(seed))
        assert (tags["shortcut"], tags["placement"]) == ("identity", "original")
        # Of a shortened run, whatever its error, nothing but divergence is a "fail".
        assert tags["result"] == f"{100 * summary['top1_error']:.2f}"


@pytest.mark.ray
def test_a_finished_sweep_is_not_run_again(ray_cluster, base, ten_classes, quick, caplog):
    choice = dataclasses.replace(TABLE_1, seeds=1, iterations=2)
    assert _run(base, choice, ten_classes, quick) == 0
    files = {
        path: path.stat().st_mtime_ns for path in Path(quick.storage, "sweep").rglob("*-seed0/*") if path.is_file()
    }
    with caplog.at_level("INFO", logger="dist_resnet"):
        assert _run(base, choice, ten_classes, quick) == 0
    assert "is finished already: 1 trials" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in files} == files


@pytest.mark.ray
def test_a_diverged_trial_is_the_result_fail(ray_cluster, base, ten_classes, quick):
    hot = dataclasses.replace(base, schedule=dataclasses.replace(base.schedule, learning_rate=1e30))
    assert _run(hot, dataclasses.replace(TABLE_1, seeds=1), ten_classes, quick) == 0
    summary = json.loads(Path(quick.storage, "sweep", "table1-original-8-seed0", "summary.json").read_text())
    assert summary["status"] == "diverged"
    run = _children(quick)["table1-original-8-seed0"]
    assert (run.info.status, run.data.tags["result"]) == ("FINISHED", "fail")


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_trial_goes_on_and_ends_with_the_bits_of_a_whole_run(ray_cluster, base, ten_classes, quick):
    choice = dataclasses.replace(TABLE_1, seeds=1, iterations=90)
    planned = sweep.prepare_sweep(base, choice, ten_classes, quick, job="test")
    (trial,) = planned.trials
    alone = dataclasses.replace(quick, storage=f"{quick.storage}/alone", name="whole")
    whole = local.run(local.prepare_run(trial.plan.recipe, alone, job="test"))
    killer = threading.Thread(target=_kill_after, args=(Path(trial.plan.directory.uri), 12), daemon=True)
    killer.start()
    assert sweep.run(planned) == 0
    killer.join()
    summary = json.loads(Path(trial.plan.directory.uri, "summary.json").read_text())
    assert summary["weights_sha256"] == whole["weights_sha256"]
    sessions = [record for record in _journal(trial.plan.directory.uri) if record["kind"] == "session"]
    assert len(sessions) == 2
    assert sessions[1]["start_step"] > 0


def _kill_after(run: Path, points: int) -> None:
    """Kills the process that trains, of this session's Ray, once its journal has so many points."""
    journal = run / "journal" / "000001.jsonl"
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and (not journal.exists() or journal.read_text().count('"metrics"') < points):
        time.sleep(0.01)
    trials = [process for process in psutil.Process().children(recursive=True) if "ImplicitFunc" in process.name()]
    for process in trials or _by_command():
        os.kill(process.pid, signal.SIGKILL)


def _by_command() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [process for process in children if any("ImplicitFunc" in word for word in process.cmdline())]


def _journal(run: str) -> list[dict]:
    lines = [line for path in sorted(Path(run, "journal").iterdir()) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


@pytest.mark.slow
@pytest.mark.ray
def test_early_stopping_stops_the_trial_that_trails(ray_cluster, base, ten_classes, quick):
    often = dataclasses.replace(base, evaluation=dataclasses.replace(base.evaluation, every_epochs=1))
    choice = Choice(tables=("1",), depths=(8,), shortcuts=("identity", "conv1x1"), seeds=2, iterations=48)
    assert _run(often, choice, ten_classes, quick, early_stop=True) == 0
    summaries = [json.loads(path.read_text()) for path in Path(quick.storage, "sweep").glob("*-seed?/summary.json")]
    assert len(summaries) == 4
    statuses = sorted(summary["status"] for summary in summaries)
    assert statuses[0] == "finished"
    assert "stopped" in statuses
    assert all(run.info.status == "FINISHED" for run in _children(quick).values())


def test_a_name_used_with_another_grid_is_refused_and_what_differs_is_named(base, ten_classes, quick, monkeypatch):
    monkeypatch.setattr(sweep.ray_shares, "allot", lambda plans, execution, **_: (execution, []))
    monkeypatch.setattr(sweep.ray_shares, "hardware", lambda: "none")
    sweep._claim(sweep.prepare_sweep(base, TABLE_1, ten_classes, quick, job="test"))
    others = [
        (dataclasses.replace(TABLE_1, iterations=8), "iterations \\(was 4, now 8\\)"),
        (dataclasses.replace(TABLE_1, seeds=3), "seeds \\(was 2, now 3\\)"),
        (dataclasses.replace(TABLE_1, tables=("1",)), "now without table2/original/8"),
        (dataclasses.replace(TABLE_1, depths=(14,)), "now with table1/original/14, table2/original/14"),
    ]
    for other, complaint in others:
        with pytest.raises(
            ValueError, match=f"the name sweep is used by a sweep with another grid.*{complaint}"
        ) as caught:
            sweep.prepare_sweep(base, other, ten_classes, quick, job="test")
        assert "\n" not in str(caught.value)
    cooler = dataclasses.replace(base, schedule=dataclasses.replace(base.schedule, learning_rate=0.01))
    with pytest.raises(ValueError, match="the recipe of table1/original/8 .*schedule"):
        sweep.prepare_sweep(cooler, TABLE_1, ten_classes, quick, job="test")
    sweep.prepare_sweep(base, TABLE_1, ten_classes, quick, job="test")


def test_a_sweep_on_the_name_of_a_run_is_refused(base, ten_classes, quick, monkeypatch):
    monkeypatch.setattr(sweep.ray_shares, "allot", lambda plans, execution, **_: (execution, []))
    run = RunDirectory(f"{quick.storage}/sweep")
    run.write_json("recipe.json", {})
    with pytest.raises(
        ValueError, match="runs/sweep is the directory of a run; use another --execution.name for a sweep"
    ):
        sweep.prepare_sweep(base, TABLE_1, ten_classes, quick, job="test")
    assert [name for name, _ in run.list("")] == ["recipe.json"]


def test_a_sweep_that_another_process_works_on_is_refused_and_one_that_was_refused_leaves_nothing(
    base, ten_classes, quick, monkeypatch
):
    def refuse(plans, execution, **_):
        raise ValueError("no cluster")

    monkeypatch.setattr(sweep.ray_shares, "allot", refuse)
    with pytest.raises(ValueError, match="no cluster"):
        sweep.prepare_sweep(base, TABLE_1, ten_classes, quick, job="test")
    folder = Path(quick.storage, "sweep")
    assert not folder.exists()
    folder.mkdir()
    unlock = lock(str(folder))
    with pytest.raises(ValueError, match=f"runs/sweep is being worked on by process {os.getpid()} on "):
        sweep.prepare_sweep(base, TABLE_1, ten_classes, quick, job="test")
    unlock()


def test_cifar_100_asked_of_shards_with_ten_classes_is_refused(base, ten_classes, quick):
    choice = Choice(tables=("3",), datasets=("cifar100",), depths=(8,))
    with pytest.raises(ValueError, match="cifar100 has 100 classes, but the shards at .* have 10"):
        sweep.prepare_sweep(base, choice, ten_classes, quick, job="test")


def _validated_on(images: Images, tmp_path: Path, labels: list[int]) -> Images:
    names = [CLASS_NAMES[label] for label in labels]
    places = [labels.index(label) if label in labels else None for label in range(10)]
    return dataclasses.replace(
        images, validation=rename_classes(images.validation, tmp_path / "validation", names, places)
    )


def test_every_trial_has_validation_images_matched_by_name_and_it_is_said_once(
    base, ten_classes, quick, monkeypatch, tmp_path, caplog
):
    caplog.set_level("INFO")
    monkeypatch.setattr(sweep.ray_shares, "allot", lambda plans, execution, **_: (execution, []))
    few = _validated_on(ten_classes, tmp_path, [7, 2])
    both = dataclasses.replace(TABLE_1, placements=("original", "full_preactivation"))
    planned = sweep.prepare_sweep(base, both, few, quick, job="test")
    assert len(planned.trials) == 4
    for trial in planned.trials:
        plan = trial.plan
        assert set(read_row_group(plan.validation, 0).labels.tolist()) == {2, 7}
        plan.claim()
        assert plan.directory.read_json("recipe.json")["classes"]["validation_labels"] == [7, 2]
    assert sum("have their classes in another order" in line for line in caplog.messages) == 1
    assert sum("have 2 of the model's 10 classes" in line for line in caplog.messages) == 1


def test_validation_images_of_unknown_classes_are_refused_unless_matched_by_number(
    base, ten_classes, quick, monkeypatch, tmp_path
):
    monkeypatch.setattr(sweep.ray_shares, "allot", lambda plans, execution, **_: (execution, []))
    names = [*CLASS_NAMES[:9], "plate"]
    uri = rename_classes(ten_classes.validation, tmp_path / "validation", names, list(range(10)))
    other = dataclasses.replace(ten_classes, validation=uri)
    with pytest.raises(ValueError, match="class 'plate' of .*--data.match-classes numbers"):
        sweep.prepare_sweep(base, TABLE_1, other, quick, job="test")
    by_number = dataclasses.replace(other, match_classes="numbers")
    assert sweep.prepare_sweep(base, TABLE_1, by_number, quick, job="test").trials


def test_relative_paths_are_made_absolute(base, ten_classes, quick, monkeypatch, tmp_path):
    monkeypatch.setattr(sweep.ray_shares, "allot", lambda plans, execution, **_: (execution, []))
    monkeypatch.chdir(tmp_path)
    relative = dataclasses.replace(
        ten_classes, train=os.path.relpath(ten_classes.train), validation=os.path.relpath(ten_classes.validation)
    )
    here = dataclasses.replace(quick, storage="runs")
    plan = sweep.prepare_sweep(base, TABLE_1, relative, here, job="test").trials[0].plan
    assert Path(plan.recipe.data.train).is_absolute()
    assert plan.directory.uri == str(tmp_path / "runs" / "sweep" / "table1-original-8-seed0")
