"""benchmarks/gpu_evidence.py on the CPU; oracle: its own table of rows, and clocks and rows that the tests choose."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu_accuracy
import gpu_evidence
import gpu_rows
import pytest
import torch
from gpu_setting import REPLICATION, Setting
from gpu_steps import Traffic

from dist_resnet import paper
from dist_resnet.ablation.record import read_record, to_json
from dist_resnet.ablation.results import read_sweep
from dist_resnet.tracking.journal import read_journal
from dist_resnet.tracking.records import Session

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_evidence.py"
MISSING = ("ray", "mlflow", "nvidia.dali")
# Python runs this file at the start of each process, also of those that the script starts.
BARE = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if any(name == one or name.startswith(one + ".") for one in {MISSING}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""


def rehearse(folder: Path, *options: str, environment: dict[str, str]) -> dict[str, Any]:
    """The rows of the result of a rehearsal."""
    command = [sys.executable, str(SCRIPT), "--folder", str(folder), "--rehearse", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = folder.glob("gpu_evidence_rehearsal_*.json")
    assert "not a measurement" in file.with_suffix(".md").read_text()
    return json.loads(file.read_text())


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of processes that cannot import Ray, MLflow and DALI."""
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/sitecustomize.py").write_text(BARE)
    return os.environ | {"PYTHONPATH": f"{tmp_path / 'bare'}:{SCRIPT.parents[1]}", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.rehearsal
def test_every_row_works_without_a_gpu_ray_mlflow_and_dali(tmp_path: Path, bare: dict[str, str]) -> None:
    rows = rehearse(tmp_path / "evidence", environment=bare)
    assert set(rows) == set(gpu_rows.ROWS)
    assert {name: row["needs"] for name, row in rows.items() if "needs" in row} == {
        "input-gpu": "nvidia.dali",
        "input-cpu": "nvidia.dali",
        "ray": "ray",
    }
    assert {name: row["error"] for name, row in rows.items() if "error" in row} == {}
    assert [line["state"] for line in rows["accuracy"]["lines"]] == ["finished"] * 2
    again = rehearse(tmp_path / "evidence", "--rows", "card", "accuracy", environment=bare)
    assert again["card"] == rows["card"]
    assert again["accuracy"]["lines"] == rows["accuracy"]["lines"]


def test_tests_of_gpus_are_collected_without_ray_mlflow_and_dali(bare: dict[str, str]) -> None:
    root = SCRIPT.parents[1]
    # A file with such tests, and files that need DALI, MLflow and Ray.
    places = ("launch/test_gpu.py", "data/input/test_dali.py", "train/test_precision.py", "launch/ray/test_shares.py")
    # As the row `tests` does it.
    options = ["-m", "gpu", "--collect-only", "-q", "-rs", "-o", "addopts=--import-mode=importlib"]
    command = [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", *(f"tests/{one}" for one in places)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, env=bare)
    assert done.returncode == 0, done.stdout
    assert "test_gpu.py::test_a_group_of_nccl_gathers_objects_on_the_last_gpu" in done.stdout
    skipped = sorted(re.findall(r"SKIPPED \[1\] (?:\S*/)?tests/(\S+?)(?::\d+)?: (.*)", done.stdout))
    assert skipped == [
        ("data/input/test_dali.py", "needs nvidia.dali"),
        ("launch/ray/test_shares.py", "needs ray"),
        ("train/test_precision.py", "needs mlflow"),
    ]
    # Whoever runs other tests too is not to miss some in silence.
    command[command.index("gpu")] = "gpu or slow"
    command.remove("tests/launch/test_gpu.py")
    assert subprocess.run(command, cwd=root, capture_output=True, timeout=300, env=bare).returncode == 2


def setting(tmp_path: Path, seconds: float = 60) -> Setting:
    return Setting(folder=str(tmp_path), deadline=time.time() + seconds, toy=True)


def gives(monkeypatch: pytest.MonkeyPatch, rows: dict[str, dict[str, Any]], seconds: float = 1) -> list[str]:
    """Replaces the rows with some that give these figures; returns the names of rows as they are measured."""
    ran: list[str] = []

    def run(_: gpu_evidence.RowProcess, name: str, __: Setting) -> dict[str, Any]:
        ran.append(name)
        return rows[name]

    table = {name: gpu_rows.Row(act=lambda _: [], seconds=seconds) for name in rows}
    monkeypatch.setattr(gpu_rows, "ROWS", table)
    monkeypatch.setattr("gpu_result.ROWS", table)
    monkeypatch.setattr(gpu_evidence.RowProcess, "run", run)
    return ran


def test_a_second_call_measures_only_what_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {
        "good": {"lines": [{"what": "speed", "images/s": 12.5}]},
        "broken": {"error": "ValueError: no"},
        "bare": {"needs": "ray"},
        "half": {"lines": [{"what": "a", "state": "finished"}, {"what": "b", "state": "step 3 of 9"}]},
    }
    ran = gives(monkeypatch, rows)
    options = gpu_evidence.Options(folder=tmp_path, rehearse=True)
    gpu_evidence.measure(options)
    assert ran == list(rows)
    gpu_evidence.measure(options)
    assert ran[4:] == ["broken", "bare", "half"]
    (text,) = [path.read_text() for path in tmp_path.glob("*.md")]
    assert "| speed | 12.5 |" in text
    assert "- broken: ValueError: no\n- bare: needs ray\n" in text


def test_a_row_that_fails_later_keeps_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: dict[str, dict[str, Any]] = {"half": {"lines": [{"what": "a", "state": "step 3 of 9"}]}}
    gives(monkeypatch, rows)
    options = gpu_evidence.Options(folder=tmp_path, rehearse=True)
    gpu_evidence.measure(options)
    rows["half"] = {"error": "RuntimeError: out of memory"}
    gpu_evidence.measure(options)
    (text,) = [path.read_text() for path in tmp_path.glob("*.md")]
    assert "step 3 of 9" in text
    assert "out of memory" in text


def test_a_row_begins_only_if_its_time_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = gives(monkeypatch, {"long": {"lines": []}}, seconds=120)
    gpu_evidence.measure(gpu_evidence.Options(folder=tmp_path, minutes=1))
    assert ran == []
    gpu_evidence.measure(gpu_evidence.Options(folder=tmp_path, minutes=3))
    assert ran == ["long"]


def test_unknown_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="step-99.*there are card"):
        gpu_evidence.measure(gpu_evidence.Options(folder=tmp_path, rows=("step-99",)))


def test_a_row_past_the_end_is_cut_off_and_the_next_one_runs(tmp_path: Path) -> None:
    process = gpu_evidence.RowProcess()
    try:
        late = process.run("card", setting(tmp_path, seconds=-1))
        assert late == {"error": "cut off, for its time was over"}
        assert "lines" in process.run("card", setting(tmp_path))
        assert process.run("input-pillow", Setting(folder="", deadline=time.time() + 60)) == {
            "error": "ValueError: needs --imagenet GLOB"
        }
    finally:
        process.end()


def test_traffic_counts_each_tensor_of_an_operation_once_and_no_views() -> None:
    a, b = torch.ones(10), torch.ones(10)
    with Traffic() as traffic:
        c = a + b
        c.view(2, 5).add_(1)
    # Three tensors of 40 bytes; then one that is read and written.
    assert traffic.bytes == 3 * 40 + 2 * 40


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generated images in the place of CIFAR-10, also for rows of full size."""
    images = setting(tmp_path).cifar_images()
    monkeypatch.setattr(Setting, "cifar_images", lambda _: images)


def full(tmp_path: Path, seconds: float, **choice: Any) -> Setting:
    chosen = dataclasses.replace(REPLICATION, **choice)
    return Setting(folder=str(tmp_path), deadline=time.time() + seconds, accuracy=chosen)


def test_the_cells_with_published_errors_are_trained_first_and_seed_by_seed(tmp_path: Path, cifar: None) -> None:
    directory, plans = gpu_accuracy.planned(full(tmp_path, 60, seeds=2))
    models = [paper.Replication(plan.recipe.model.shortcut, plan.recipe.model.placement) for plan in plans]
    assert set(models[:5]) == set(paper.REPLICATION_20)
    assert [plan.recipe.seed for plan in plans] == [0] * (len(plans) // 2) + [1] * (len(plans) // 2)
    assert models[: len(models) // 2] == models[len(models) // 2 :]
    assert len({plan.directory.uri for plan in plans}) == len(plans) == 22
    assert {plan.num_steps for plan in plans} == {paper.CIFAR_ITERATIONS}
    assert len(gpu_accuracy.lines(directory)) == 22
    # Other cells of the same length join those of earlier calls.
    again, one = gpu_accuracy.planned(full(tmp_path, 60, tables=("1",), depths=(20,), cells=("table1/original/20",)))
    assert again.uri == directory.uri
    assert [plan.name for plan in one] == ["table1-original-20-seed0"]
    assert len(gpu_accuracy.lines(directory)) == 23
    assert read_sweep(directory).facts["seeds"] == 2


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"cells": ("replication/identity",)}, "unknown cell 'replication/identity'"),
        ({"datasets": ("cifar100",), "tables": ("3",)}, "accuracy.datasets must be cifar10"),
    ],
)
def test_impossible_cells_are_refused_before_anything_is_measured(choice: dict, said: str, tmp_path: Path) -> None:
    options = gpu_evidence.Options(folder=tmp_path / "evidence", accuracy=dataclasses.replace(REPLICATION, **choice))
    with pytest.raises(ValueError, match=said):
        gpu_evidence.measure(options)
    assert not (tmp_path / "evidence").exists()


def test_a_row_that_continues_leaves_time_to_the_later_ones_and_takes_half_at_least(tmp_path: Path) -> None:
    whole = full(tmp_path, 800)
    assert gpu_rows.share("card", whole, later=300) == whole
    assert gpu_rows.share("accuracy", whole, later=0) == whole
    assert 490 < gpu_rows.share("accuracy", whole, later=300).seconds_left <= 500
    assert 390 < gpu_rows.share("accuracy", whole, later=3000).seconds_left <= 401


def test_a_row_that_hangs_costs_four_times_its_estimate_and_accuracy_all_that_is_left(tmp_path: Path) -> None:
    whole = full(tmp_path, 540)
    assert gpu_rows.limit("card", whole) == 4 * gpu_rows.ROWS["card"].seconds
    assert 530 < gpu_rows.limit("accuracy", whole) <= 540


@pytest.mark.slow
@pytest.mark.rehearsal
def test_an_accuracy_run_stops_at_the_end_and_the_next_call_continues_it_into_the_results(
    tmp_path: Path, cifar: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_accuracy, "_SECONDS_TO_START", 0.0)
    cell = "replication/identity-original/8"
    chosen = {"depths": (8,), "iterations": 60, "cells": (cell,)}
    directory, (plan,) = gpu_accuracy.planned(full(tmp_path, 17, **chosen))
    gpu_accuracy.train(full(tmp_path, 17), plan)
    (line,) = gpu_accuracy.lines(directory)
    stopped = int(re.fullmatch(r"step (\d+) of 60", line["state"])[1])  # pyrefly: ignore
    assert 0 < stopped < 60
    gpu_accuracy.train(full(tmp_path, 300), gpu_accuracy.planned(full(tmp_path, 300, **chosen))[1][0])
    (line,) = gpu_accuracy.lines(directory)
    assert (line["what"], line["state"], line["restarts"]) == (f"{cell}, seed 0", "finished", 1)
    sessions = [record for record in read_journal(plan.directory) if isinstance(record, Session)]
    assert [session.start_step for session in sessions] == [0, stopped]
    found = to_json(read_record([directory]), written="today")
    assert [(one["key"], one["iterations"], 100 * one["top1_error"]) for one in found["cells"]] == [
        (cell, 60, pytest.approx(line["top-1 error, %"]))
    ]
    assert found["sweeps"][0]["name"] == "cifar-60"
