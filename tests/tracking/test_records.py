"""Records as they are stored. Oracle: a released journal, byte for byte, and JSON written by hand."""

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import pytest

from dist_resnet.tracking.journal import Journal, read_journal
from dist_resnet.tracking.records import (
    ENDINGS,
    FINAL_ENDINGS,
    Checkpoint,
    Damaged,
    Diverged,
    Evaluating,
    Finished,
    Metrics,
    Record,
    Session,
    Stopped,
    Straggler,
    TooDamaged,
    Unknown,
    WorkerSeconds,
    from_stored,
    to_stored,
)
from dist_resnet.tracking.run_directory import RunDirectory

FROZEN = Path(__file__).parents[1] / "released" / "first.frozen"


def test_a_journal_of_the_first_format_is_written_unchanged(tmp_path: Path):
    with zipfile.ZipFile(FROZEN) as archive:
        lines = archive.read("run/journal/000001.jsonl")
    first, second = (RunDirectory(str(tmp_path / name)) for name in ("first", "second"))
    first.write("journal/000001.jsonl", lines)
    second.write("recipe.json", b"{}")
    records, journal = read_journal(first), Journal(second)
    kinds = [type(record) for record in records]
    assert kinds == [Session, Metrics, Metrics, Metrics, Metrics, Checkpoint, Metrics, Finished]
    for record in records:
        journal.append(record)
    journal.commit()
    assert second.read("journal/000001.jsonl") == lines


def test_fields_that_a_journal_of_the_first_format_lacks_are_none(tmp_path: Path):
    with zipfile.ZipFile(FROZEN) as archive:
        stored = json.loads(archive.read("run/journal/000001.jsonl").partition(b"\n")[0])
    session = from_stored(stored)
    assert isinstance(session, Session)
    assert (session.precision, session.commit) == (None, None)
    assert (session.start_step, session.total_steps, session.device) == (0, 3, "CPU, 1 threads each")


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (
            Session(time=1.5, start_step=7, total_steps=9, steps_per_epoch=3, global_batch=32, world_size=1, begun=1.0),
            '{"kind": "session", "time": 1.5, "start_step": 7, "total_steps": 9, "steps_per_epoch": 3, '
            '"global_batch": 32, "world_size": 1, "begun": 1.0}',
        ),
        (Session(time=1, start_step=0), '{"kind": "session", "time": 1, "start_step": 0}'),
        (
            Session(time=1, start_step=0, precision="bf16", commit="c0ffee", device="H100"),
            '{"kind": "session", "time": 1, "start_step": 0, "precision": "bf16", "commit": "c0ffee", '
            '"device": "H100"}',
        ),
        (
            Session(time=1, start_step=0, machines=["a", "a"]),
            '{"kind": "session", "time": 1, "start_step": 0, "machines": ["a", "a"]}',
        ),
        (
            WorkerSeconds(
                time=1,
                step=20,
                steps=10,
                data_seconds=[0.0, 1.5],
                compute_seconds=[3.0, 2.5],
                reduce_seconds=[1.0, 0.0],
            ),
            '{"kind": "worker_seconds", "time": 1, "step": 20, "steps": 10, "data_seconds": [0.0, 1.5], '
            '"compute_seconds": [3.0, 2.5], "reduce_seconds": [1.0, 0.0]}',
        ),
        (
            Straggler(
                time=1,
                step=20,
                rank=1,
                machine="b",
                fraction=0.25,
                reason="images",
                seconds_per_step=0.5,
                others_seconds_per_step=0.0,
            ),
            '{"kind": "straggler", "time": 1, "step": 20, "rank": 1, "machine": "b", "fraction": 0.25, '
            '"reason": "images", "seconds_per_step": 0.5, "others_seconds_per_step": 0.0}',
        ),
        (
            Straggler(time=1, step=30, rank=1, machine="b"),
            '{"kind": "straggler", "time": 1, "step": 30, "rank": 1, "machine": "b"}',
        ),
        (
            Metrics(time=1.5, step=2, values={"train/loss": math.inf, "train/top1_error": 0.5}),
            '{"kind": "metrics", "time": 1.5, "step": 2, "values": {"train/loss": "inf", "train/top1_error": 0.5}}',
        ),
        (
            Evaluating(time=1.5, step=2, crop=224, images=100, share=500),
            '{"kind": "evaluating", "time": 1.5, "step": 2, "crop": 224, "images": 100, "share": 500}',
        ),
        (Checkpoint(time=1, step=2, seconds=0.5), '{"kind": "checkpoint", "time": 1, "step": 2, "seconds": 0.5}'),
        (
            Damaged(time=1, split="train", index=0, file="a.parquet", row=0, reason="it ends early"),
            '{"kind": "damaged", "time": 1, "split": "train", "index": 0, "file": "a.parquet", "row": 0, '
            '"reason": "it ends early"}',
        ),
        (
            Finished(time=1, steps=3, epochs=0.0, top1_error=0.0, top5_error=0.0, images_per_second=0.0, model="m"),
            '{"kind": "finished", "time": 1, "steps": 3, "epochs": 0.0, "top1_error": 0.0, "top5_error": 0.0, '
            '"images_per_second": 0.0, "model": "m"}',
        ),
        (Diverged(time=1, step=0), '{"kind": "diverged", "time": 1, "step": 0}'),
        (TooDamaged(time=1, step=3, reason="9"), '{"kind": "too_damaged", "time": 1, "step": 3, "reason": "9"}'),
        (Stopped(time=1, step=3), '{"kind": "stopped", "time": 1, "step": 3}'),
    ],
)
def test_a_record_is_stored_as_every_version_stored_it(record: Record, line: str):
    assert json.dumps(to_stored(record), allow_nan=False) == line
    assert from_stored(json.loads(line)) == record


def test_a_metric_that_an_earlier_version_named_differently_has_its_current_name():
    stored = {"kind": "metrics", "time": 1, "step": 1, "values": {"data/damaged_pictures": 2.0}}
    record = from_stored(stored)
    assert isinstance(record, Metrics)
    assert record.values == {"data/damaged_images": 2.0}


def test_nan_and_infinities_are_read_as_numbers():
    (value,) = from_stored({"kind": "metrics", "time": 1, "step": 1, "values": {"train/loss": "nan"}}).values.values()
    assert math.isnan(value)


def test_a_newer_versions_field_is_dropped_and_its_kind_is_kept(tmp_path: Path):
    stored: list[dict[str, Any]] = [
        {"kind": "stopped", "time": 1.0, "step": 3, "by": "a scheduler"},
        {"kind": "resized", "time": 2.0, "world_size": 4, "from": {"machines": [1, 2]}},
        {"kind": "tracking", "time": 3.0, "waiting_points": 4},
    ]
    directory = RunDirectory(str(tmp_path))
    directory.write("journal/000001.jsonl", "".join(json.dumps(each) + "\n" for each in stored).encode())
    stopped, resized, tracking = read_journal(directory)
    assert stopped == Stopped(time=1.0, step=3)
    assert isinstance(resized, Unknown)
    assert (resized.time, to_stored(resized)) == (2.0, stored[1])
    assert to_stored(tracking) == stored[2]


@pytest.mark.parametrize(
    "stored",
    [
        [],
        7,
        None,
        {},
        {"kind": ["session"], "time": 1},
        {"kind": "session", "time": 1},
        {"kind": "stopped", "step": 3},
        {"kind": "resized"},
        {"kind": "metrics", "time": 1, "step": 1, "values": []},
        {"kind": "metrics", "time": 1, "step": 1, "values": {"train/loss": None}},
        {"kind": "metrics", "time": 1, "step": 1, "values": {"train/loss": "much"}},
    ],
)
def test_values_that_are_not_a_record_raise_valueerror(stored: Any):
    with pytest.raises(ValueError, match=r"Error: "):
        from_stored(stored)


def test_endings_are_the_four_ways_to_end_and_two_of_them_are_final():
    assert [ending.kind for ending in ENDINGS] == ["finished", "diverged", "too_damaged", "stopped"]
    assert [ending.kind for ending in FINAL_ENDINGS] == ["finished", "diverged"]
