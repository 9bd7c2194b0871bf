"""What sweeps gave, as JSON and CSV. Oracle: values written out by hand for journals written by hand."""

import csv
import io
import json
from pathlib import Path

import pytest
from ablation.sweeps import MODEL, cell, write_sweep

from dist_resnet.ablation.record import read_record, to_csv, to_json
from dist_resnet.tracking.journal import Journal
from dist_resnet.tracking.records import Diverged, Finished, Metrics, Session, Stopped
from dist_resnet.tracking.run_directory import RunDirectory

PREACTIVATION = MODEL | {"placement": "full_preactivation"}


def _replicated(row: str, trial: str, **changes) -> dict:
    """An entry of `sweep.json` of the replication at depth 20."""
    return cell(row, trial, **({"table": "replication", "depth": 20, "key": f"replication/{row}/20"} | changes))


def _write(sweep: RunDirectory, name: str, errors: dict[int, float], *, end: str | None = "finished", **facts) -> None:
    """A trial that was killed after its first evaluation and continued there; errors are fractions."""
    trial = RunDirectory(sweep.child(name))
    data = {"train_digest": "a" * 64, "validation_digest": "b" * 64, "train": "/secret/place/train-*.parquet"}
    trial.write_json("recipe.json", {"fingerprint": "9" * 64, "recipe": {"data": data}})
    first = min(errors)
    for start in (0, first):
        journal = Journal(trial)
        journal.append(Session(start_step=start, total_steps=64_000, device="CPU, 1 threads each", **facts))
        for step in [step for step in errors if (step == first) == (start == 0)]:
            journal.append(Metrics(step=step, values={"train/loss": step / 1e6, "time/step_seconds": 2.0}))
            journal.append(Metrics(step=step, values={"val/top1_error": errors[step]}))
        journal.commit()
    journal = Journal(trial)
    last = max(errors)
    if end == "finished":
        outcome = {"top1_error": errors[last], "top5_error": 0.004, "images_per_second": 850.5}
        journal.append(Finished(steps=last, weights_sha256="d" * 64, **outcome))
    elif end == "diverged":
        journal.append(Diverged(step=last))
    elif end == "stopped":
        journal.append(Stopped(step=last))
    journal.commit()


@pytest.fixture
def full(tmp_path: Path) -> RunDirectory:
    """64,000 iterations: one finished, one diverged, one half-way, one not started."""
    sweep = RunDirectory(str(tmp_path / "full"))
    _write(sweep, "pre", {32_000: 0.0791, 64_000: 0.0812}, precision="bf16", commit="facade")
    _write(sweep, "original", {1000: 0.6, 2000: 0.9}, end="diverged")
    _write(sweep, "conv", {1000: 0.6, 2000: 0.5}, end=None)
    write_sweep(
        sweep,
        [
            _replicated("identity-full_preactivation", "pre", paper_error=8.08, model=PREACTIVATION),
            _replicated("identity-original", "original", paper_error=8.56),
            _replicated("conv1x1-original", "conv", paper_error=8.43, model=MODEL | {"shortcut": "conv1x1"}),
            _replicated("dropout-original", "waits", paper_error=None, model=MODEL | {"shortcut": "dropout"}),
        ],
        seeds=1,
        early_stop=False,
    )
    return sweep


def test_a_finished_cell_is_written_down_with_all_that_decides_its_number(full: RunDirectory):
    content = to_json(read_record([full]), written="2026-11-25")
    first, diverged = content["cells"]
    wall_seconds = first.pop("wall_seconds")
    assert 0 <= wall_seconds < 60
    assert first == {
        "cell": "identity-full_preactivation",
        "table": "replication",
        "key": "replication/identity-full_preactivation/20",
        "depth": 20,
        "dataset": "cifar10",
        "iterations": 64_000,
        "seed": 0,
        "sweep": "full",
        "top1_error": 0.0812,
        "top5_error": 0.004,
        "best_top1_error": 0.0791,
        "best_step": 32_000,
        "diverged": False,
        "steps": 64_000,
        "published": 0.0808,
        "published_fail": False,
        "training_loss": 0.064,
        "training_seconds": 4.0,
        "images_per_second": 850.5,
        "restarts": 1,
        "starts": 2,
        "stops": 0,
        "kills": 1,
        "repeated_steps": 0,
        "precision": "bf16",
        "commit": "facade",
        "hardware": "2 cores",
        "device": "CPU, 1 threads each",
        "fingerprint": "9" * 64,
        "weights_sha256": "d" * 64,
        "train_digest": "a" * 64,
        "validation_digest": "b" * 64,
    }
    assert (diverged["cell"], diverged["diverged"], diverged["top1_error"]) == ("identity-original", True, None)
    assert (diverged["published"], diverged["commit"], diverged["precision"]) == (0.0856, "c0ffee", None)


def test_what_is_not_finished_is_listed_apart_with_how_far_it_is(full: RunDirectory):
    content = to_json(read_record([full]), written="2026-11-25")
    told = ("cell", "state", "steps", "newest_top1_error", "newest_evaluation_step", "restarts")
    assert [tuple(entry[key] for key in told) for entry in content["unfinished"]] == [
        ("conv1x1-original", "unfinished", 2000, 0.5, 2000, 1),
        ("dropout-original", "not started", 0, None, None, 0),
    ]
    assert [(sweep["name"], sweep["trials"], sweep["over"]) for sweep in content["sweeps"]] == [("full", 4, 2)]


def test_a_published_fail_is_no_error(full: RunDirectory):
    write_sweep(full, [cell("plain", "original", paper_error=None, paper_fail=True)])
    (found,) = to_json(read_record([full]), written="2026-11-25")["cells"]
    assert (found["published"], found["published_fail"]) == (None, True)


def test_no_path_of_a_machine_and_no_number_that_json_lacks_is_written(full: RunDirectory, tmp_path: Path):
    journal = Journal(RunDirectory(full.child("original")))
    journal.append(Session(start_step=2000, total_steps=64_000, device="CPU"))
    journal.append(Metrics(step=2001, values={"train/loss": float("nan"), "val/top1_error": 0.9}))
    journal.append(Diverged(step=2001))
    journal.commit()
    record = read_record([full])
    text = json.dumps(to_json(record, written="2026-11-25"), allow_nan=False) + to_csv(record)
    assert str(tmp_path) not in text
    assert "secret" not in text
    assert json.loads(json.dumps(to_json(record, written="x")))["cells"][1]["training_loss"] is None


def test_the_csv_has_a_line_for_each_evaluation_of_each_cell_and_seed(full: RunDirectory):
    rows = list(csv.DictReader(io.StringIO(to_csv(read_record([full])))))
    assert [(row["cell"], row["step"], row["top1_error"], row["training_loss"], row["state"]) for row in rows] == [
        ("identity-full_preactivation", "32000", "0.0791", "0.032", "finished"),
        ("identity-full_preactivation", "64000", "0.0812", "0.064", "finished"),
        ("identity-original", "1000", "0.6", "0.001", "diverged"),
        ("identity-original", "2000", "0.9", "0.002", "diverged"),
        ("conv1x1-original", "1000", "0.6", "0.001", "unfinished"),
        ("conv1x1-original", "2000", "0.5", "0.002", "unfinished"),
    ]
    assert {(row["iterations"], row["depth"], row["seed"], row["sweep"]) for row in rows} == {
        ("64000", "20", "0", "full")
    }
    assert [row["training_seconds"] for row in rows] == ["2.0", "4.0"] * 3


def _short(tmp_path: Path, name: str, entries: list[dict], iterations: int) -> RunDirectory:
    sweep = RunDirectory(str(tmp_path / name))
    for entry in entries:
        _write(sweep, entry["trial"], {iterations // 2: 0.2, iterations: 0.15})
    write_sweep(sweep, entries, iterations=iterations)
    return sweep


def test_sweeps_of_other_lengths_and_seeds_go_into_one_record(full: RunDirectory, tmp_path: Path):
    row = {"paper_error": 8.08, "model": PREACTIVATION}
    short = _short(tmp_path, "short", [_replicated("identity-full_preactivation", "pre", **row)], 8000)
    second = _short(tmp_path, "second", [_replicated("identity-full_preactivation", "pre", seed=1, **row)], 64_000)
    record = read_record([full, short, second])
    assert record.lengths == [64_000, 8000]
    found = [
        (entry["iterations"], entry["seed"], entry["top1_error"])
        for entry in to_json(record, written="x")["cells"]
        if entry["cell"] == "identity-full_preactivation"
    ]
    assert found == [(64_000, 0, 0.0812), (8000, 0, 0.15), (64_000, 1, 0.15)]
    # Seeds of several sweeps are one network's.
    networks = {cell.row: cell for cell in record.cells(64_000)}
    assert networks["identity-full_preactivation"].results == pytest.approx([8.12, 15.0])
    assert [cell.row for cell in record.cells(8000)] == ["identity-full_preactivation"]


def test_rows_that_tables_share_are_written_for_each_and_are_one_network(tmp_path: Path):
    entries = [cell("original", "a", table="1", depth=20, paper_error=None), _replicated("identity-original", "a")]
    record = read_record([_short(tmp_path, "sweep", entries, 8000)])
    assert [entry["cell"] for entry in to_json(record, written="x")["cells"]] == ["original", "identity-original"]
    (network,) = record.cells(8000)
    assert len(network.trials) == 1
    assert network.paper_error == 6.61  # of the entry that has one


def test_the_same_cell_twice_is_refused(tmp_path: Path):
    sweeps = [_short(tmp_path, name, [_replicated("identity-original", "a")], 8000) for name in ("one", "two")]
    with pytest.raises(ValueError, match=r"one and two both hold replication/identity-original/20 for 8000 iterations"):
        read_record(sweeps)


def test_two_sweeps_of_one_name_are_refused(tmp_path: Path):
    sweeps = [_short(tmp_path / part, "sweep", [_replicated("identity-original", "a")], 8000) for part in "ab"]
    with pytest.raises(ValueError, match="two sweeps are called sweep"):
        read_record(sweeps)


def test_a_folder_without_a_sweep_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no sweep.json under .*nothing"):
        read_record([RunDirectory(str(tmp_path / "nothing"))])
