"""Runs without Ray. Oracle: the contents of the run's directory, MLflow's client, and a real SIGKILL."""

import csv
import dataclasses
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from mlflow import MlflowClient
from oracle.images import jpeg, smooth

from dist_resnet.data.prepare.demo import write_demo
from dist_resnet.data.shards.write import encode_table, write_table
from dist_resnet.launch import local
from dist_resnet.launch.mlflow_page import run_description
from dist_resnet.launch.plan import Plan
from dist_resnet.model import build_model
from dist_resnet.recipe import Cache, Checkpoints, Execution, Performance, Recipe, Tracking
from dist_resnet.storage.lock import LockedError, lock
from dist_resnet.storage.uri import child_uri, open_uri
from dist_resnet.tracking.journal import read_journal
from dist_resnet.tracking.records import Damaged

_SCRIPT = """
import json, sys
from dist_resnet.data.prepare.demo import write_demo
from dist_resnet.launch import local
from dist_resnet.recipe import *
recipe, execution = json.loads(sys.stdin.read())
local.run(local.prepare_run(Recipe.from_dict(recipe), eval(execution), job="test"))
"""


def _start(recipe: Recipe, execution: Execution) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps([recipe.to_dict(), repr(execution)]))
    process.stdin.close()
    return process


def _said(process: subprocess.Popen) -> str:
    """A driver's standard error, after it has ended with exit code 0."""
    assert process.stderr is not None
    with process.stderr as stream:
        said = stream.read()
    assert process.wait() == 0, said
    return said


def test_a_finished_run_leaves_its_summary_recipe_journal_curve_and_mlflow_run(recipe: Recipe, execution: Execution):
    plan = local.prepare_run(recipe, execution, job="test")
    summary = local.run(plan)
    folder = Path(plan.directory.uri)
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["status"] == "finished"
    assert summary["steps"] == 6
    assert summary["epochs"] == 2
    assert summary["fingerprint"] == plan.recipe.fingerprint()
    assert summary["weights_sha256"] == hashlib.sha256(Path(summary["model_uri"]).read_bytes()).hexdigest()
    assert 0 <= summary["top5_error"] <= summary["top1_error"] <= 1
    assert json.loads((folder / "recipe.json").read_text())["recipe"] == plan.recipe.to_dict()
    assert (folder / "training_curve.png").read_bytes().startswith(b"\x89PNG")
    client = MlflowClient(f"sqlite:///{execution.storage}/mlflow.db")
    run = client.get_run(summary["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["model.depth"] == "8"
    assert run.data.tags["fingerprint"] == summary["fingerprint"]
    assert run.data.metrics["val/top1_error"] == summary["top1_error"]
    assert run.data.params["model.parameters"] == str(sum(p.numel() for p in build_model(recipe.model).parameters()))
    assert f"{folder}/checkpoints" in run.data.tags["mlflow.note.content"]
    inputs = {entry.tags[0].value: entry.dataset.digest for entry in run.inputs.dataset_inputs}
    assert inputs == {"training": plan.train.digest[:36], "validation": plan.validation.digest[:36]}
    attached = {file.path for file in client.list_artifacts(summary["mlflow_run_id"])}
    assert attached >= {"training_curve.png", "augmented_batch.png", "confusion_matrix.png", "worst_classes.csv"}
    counts = np.load(folder / "confusion.npy")
    assert counts.sum() == plan.validation.num_images
    assert 1 - np.trace(counts) / counts.sum() == pytest.approx(summary["top1_error"])
    rows = list(csv.DictReader((folder / "worst_classes.csv").read_text().splitlines()))
    errors = [float(row["top1_error"]) for row in rows]
    assert errors == sorted(errors, reverse=True)
    assert sum(int(row["images"]) for row in rows) == plan.validation.num_images


def test_a_run_is_held_from_its_preparation_to_its_end(recipe: Recipe, execution: Execution, monkeypatch):
    plan = local.prepare_run(recipe, execution, job="test")
    held = []

    def instead_of_training(plan: Plan) -> None:
        with pytest.raises(LockedError):
            lock(plan.directory.uri)
        held.append(plan.name)
        raise RuntimeError("enough")

    monkeypatch.setattr(local, "start_workers", instead_of_training)
    with pytest.raises(LockedError):
        lock(plan.directory.uri)
    with pytest.raises(RuntimeError, match="enough"):
        local.run(plan)
    assert held == ["run"]
    lock(plan.directory.uri)()


def test_a_finished_run_is_not_run_again(recipe: Recipe, execution: Execution, caplog):
    first = local.run(local.prepare_run(recipe, execution, job="test"))
    with caplog.at_level("INFO", logger="dist_resnet"):
        again = local.run(local.prepare_run(recipe, execution, job="test"))
    assert again == first
    assert "is finished already" in caplog.text


def test_a_diverged_run_says_so(recipe: Recipe, execution: Execution):
    hot = dataclasses.replace(recipe, schedule=dataclasses.replace(recipe.schedule, learning_rate=1e30))
    summary = local.run(local.prepare_run(hot, execution, job="test"))
    assert summary["status"] == "diverged"
    assert summary["top1_error"] is None


@pytest.mark.slow
@pytest.mark.chaos
def test_a_killed_run_resumes_and_ends_bit_identical_to_an_undisturbed_one(recipe: Recipe, execution: Execution):
    recipe = dataclasses.replace(recipe, epochs=40)
    whole = local.run(local.prepare_run(recipe, dataclasses.replace(execution, name="whole"), job="test"))
    broken = dataclasses.replace(execution, name="broken")
    process = _start(recipe, broken)
    journal = Path(execution.storage, "broken", "journal", "000001.jsonl")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not journal.exists() or journal.read_text().count('"metrics"') < 20):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stderr is not None
    process.stderr.close()
    assert not Path(execution.storage, "broken", "summary.json").exists()
    again = local.run(local.prepare_run(recipe, broken, job="test"))
    assert again["weights_sha256"] == whole["weights_sha256"]
    sessions = [json.loads(path.read_text().splitlines()[0]) for path in sorted(journal.parent.iterdir())]
    assert [session["kind"] for session in sessions] == ["session", "session"]
    assert 0 < sessions[1]["start_step"] < 120
    client = MlflowClient(f"sqlite:///{execution.storage}/mlflow.db")
    steps = [point.step for point in client.get_metric_history(again["mlflow_run_id"], "train/loss")]
    assert steps == list(range(1, 121))


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signalled_run_stops_with_a_checkpoint_and_resumes_from_it(recipe, execution: Execution, number):
    recipe = dataclasses.replace(recipe, epochs=200)
    execution = dataclasses.replace(
        execution,
        checkpoints=Checkpoints(every=10_000),
        performance=Performance(evaluation_batch=40),
    )
    recipe = dataclasses.replace(recipe, evaluation=dataclasses.replace(recipe.evaluation, every_epochs=1000))
    process = _start(recipe, execution)
    journal = Path(execution.storage, "run", "journal", "000001.jsonl")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not journal.exists() or journal.read_text().count("train/loss") < 20):
        time.sleep(0.02)
    process.send_signal(number)
    said = _said(process)
    assert f"{number.name}: stopping with a checkpoint" in said
    last = json.loads(journal.read_text().splitlines()[-1])
    assert last["kind"] == "stopped"
    assert Path(execution.storage, "run", "checkpoints", f"step_{last['step']:08d}", "manifest.json").exists()
    client = MlflowClient(f"sqlite:///{execution.storage}/mlflow.db")
    (experiment,) = [each for each in client.search_experiments() if each.name == "dist_resnet"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED"
    _said(_start(recipe, execution))
    sessions = [json.loads(path.read_text().splitlines()[0]) for path in sorted(journal.parent.iterdir())]
    assert [session["start_step"] for session in sessions] == [0, last["step"]]


def test_missing_gpus_are_refused(recipe: Recipe, execution: Execution, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ValueError, match="needs a GPU for each of the 1 workers, but this machine has 0"):
        local.prepare_run(recipe, dataclasses.replace(execution, device="gpu"), job="test")


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_the_precisions_of_gpus_are_refused_on_the_cpu(recipe: Recipe, execution: Execution, precision: Any):
    with pytest.raises(ValueError, match=f"precision {precision} works on GPUs only"):
        local.prepare_run(recipe, dataclasses.replace(execution, precision=precision), job="test")


@pytest.mark.parametrize("store", ["s3", "az"])
def test_images_and_runs_may_be_on_an_object_store(recipe: Recipe, execution: Execution, store: str, tmp_path, request):
    bucket = request.getfixturevalue(store)
    train, validation = write_demo(
        child_uri(bucket, "images"), size=32, num_classes=4, train_images=96, validation_images=40, seed=0
    )
    there = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, train=train, validation=validation))
    here = local.run(local.prepare_run(recipe, execution, job="test"))
    away = dataclasses.replace(
        execution,
        storage=child_uri(bucket, "runs"),
        tracking=Tracking(uri=f"sqlite:///{tmp_path}/away.db"),
    )
    summary = local.run(local.prepare_run(there, away, job="test"))
    assert summary["model_uri"].startswith(f"{bucket.partition('?')[0]}/runs/run/checkpoints/")
    assert summary["weights_sha256"] == here["weights_sha256"]
    assert summary["fingerprint"] == here["fingerprint"]


def test_one_damaged_image_in_a_hundred_on_an_object_store_does_not_stop_a_run(shard_recipe, execution, s3, tmp_path):
    images = [jpeg(smooth(40, 40, index)) for index in range(200)]
    images[13], images[170] = images[13][:400], b""
    for place in (str(tmp_path / "here"), f"{s3}/hurt"):
        filesystem, path = open_uri(place)
        for split, rows in (("train", images), ("validation", images[150:190])):
            table = encode_table(rows, ["x"] * len(rows), np.arange(len(rows)) % 4, list("abcd"))
            write_table(filesystem, f"{path}/{split}/a.parquet", table, rows_per_group=20)
    allowing = dataclasses.replace(execution, max_damaged_fraction=0.02, cache=Cache(folder=str(tmp_path / "cache")))
    summaries, named = [], []
    for name, place in (("here", str(tmp_path / "here")), ("away", f"{s3}/hurt"), ("cached", f"{s3}/hurt")):
        data = dataclasses.replace(shard_recipe.data, train=f"{place}/train", validation=f"{place}/validation")
        recipe = dataclasses.replace(shard_recipe, data=data)
        plan = local.prepare_run(recipe, dataclasses.replace(allowing, name=name), job="test")
        summaries.append(local.run(plan))
        events = [record for record in read_journal(plan.directory) if isinstance(record, Damaged)]
        named.append(sorted((event.split, event.row) for event in events))
    assert len({summary["weights_sha256"] for summary in summaries}) == 1
    assert named == [[("train", 13), ("train", 170), ("validation", 20)]] * 3
    assert any(len(entry.name) == 64 for entry in (tmp_path / "cache").iterdir())


def test_printed_commands_quote_their_paths(recipe: Recipe, execution: Execution, tmp_path: Path, caplog):
    storage = tmp_path / "my runs"
    plan = local.prepare_run(recipe, dataclasses.replace(execution, storage=str(storage)), job="test")
    with caplog.at_level("INFO", logger="dist_resnet"):
        local.run(plan)
    (look,) = [message for message in caplog.messages if message.startswith("look at it: ")]
    assert shlex.split(look)[-3:] == ["ui", "--backend-store-uri", f"sqlite:///{storage}/mlflow.db"]
    note = run_description(plan).tags["mlflow.note.content"]
    commands = [shlex.split(words) for words in re.findall(r"`(.* --run .*)`", note)]
    assert [words[-2:] for words in commands] == [["--run", f"{storage}/run"]] * 2


_TWO_WORKERS = """
import time
from dist_resnet import cli
from dist_resnet.launch import local
from dist_resnet.recipe import Execution

def act(worker):
    print("working", flush=True)
    time.sleep(100)

if __name__ == "__main__":
    cli.run(lambda: local.in_processes(Execution(workers=2, device="cpu", cpus_per_worker=1), act))
"""


@pytest.mark.parametrize("children", [2, 3, pytest.param(None, marks=pytest.mark.slow)])
def test_ctrl_c_ends_the_processes_of_this_machine_in_one_line(tmp_path: Path, children: int | None):
    """Interrupts while the first worker starts (after Python's resource tracker), the second starts, or both work."""
    script = tmp_path / "two.py"
    script.write_text(_TWO_WORKERS)
    command = [sys.executable, str(script)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as job:
        assert job.stdout is not None
        if children is None:
            assert [job.stdout.readline() for _ in range(2)] == ["working\n"] * 2
        else:
            while len(psutil.Process(job.pid).children()) < children:
                time.sleep(0.001)
        os.killpg(job.pid, signal.SIGINT)  # as a terminal does, to all of them
        _, said = job.communicate(timeout=60)
    assert job.returncode == 130
    assert said == "two: interrupted\n"
