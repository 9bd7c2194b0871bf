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
from gpu_accuracy import numbered_cells
from gpu_setting import Setting
from gpu_steps import Traffic

from dist_resnet import paper
from dist_resnet.tracking.journal import read_journal
from dist_resnet.tracking.records import Session
from dist_resnet.tracking.run_directory import RunDirectory

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
    again = time.monotonic()
    assert rehearse(tmp_path / "evidence", "--rows", "card", "accuracy", environment=bare) == rows
    assert time.monotonic() - again < 60


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


def test_the_accuracy_row_has_the_five_cells_with_published_errors(tmp_path: Path) -> None:
    cells = list(numbered_cells(setting(tmp_path)))
    assert {cell.paper_error for cell in cells} == set(paper.REPLICATION_20.values())
    assert len(cells) == len(paper.REPLICATION_20) == 5
    assert len({cell.recipe.fingerprint() for cell in cells}) == 5


def test_a_row_that_hangs_costs_four_times_its_estimate_and_accuracy_all_that_is_left(tmp_path: Path) -> None:
    full = Setting(folder=str(tmp_path), deadline=time.time() + 540)
    assert gpu_rows.limit("card", full) == 4 * gpu_rows.ROWS["card"].seconds
    assert 530 < gpu_rows.limit("accuracy", full) <= 540


@pytest.mark.slow
@pytest.mark.rehearsal
def test_an_accuracy_run_stops_at_the_end_and_the_next_call_continues_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = next(numbered_cells(setting(tmp_path)))
    model = dataclasses.replace(cell.recipe.model, depth=8)
    longer = dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, model=model, epochs=30))
    monkeypatch.setattr(gpu_accuracy, "numbered_cells", lambda _: [longer])
    first = gpu_accuracy.train(setting(tmp_path, seconds=17), 0)
    stopped = int(re.fullmatch(r"step (\d+) of 60", first["state"])[1])  # pyrefly: ignore
    assert 0 < stopped < 60
    assert gpu_accuracy.train(setting(tmp_path, seconds=300), 0)["state"] == "finished"
    (run,) = (tmp_path / "runs").iterdir()
    sessions = [record for record in read_journal(RunDirectory(str(run))) if isinstance(record, Session)]
    assert [session.start_step for session in sessions] == [0, stopped]
