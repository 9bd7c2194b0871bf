"""Observers of a run's records. Oracle: the journal, which holds the same ones."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from dist_resnet.launch.plan import prepare
from dist_resnet.launch.worker import run_worker
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.tracking.journal import read_journal
from dist_resnet.tracking.recorder import Recorder
from dist_resnet.tracking.records import Checkpoint, Finished, Metrics, Record, Session
from dist_resnet.tracking.run_directory import RunDirectory
from dist_resnet.worker import Worker

WORKER = Worker(rank=0, world_size=1, device=torch.device("cpu"))


def test_an_observer_gets_what_the_journal_records(recipe: Recipe, execution: Execution):
    plan = prepare(recipe, execution, job="test")
    plan.claim()
    observed: list[Record] = []
    run_worker(plan, WORKER, observer=observed.extend)
    # A thread writes checkpoints, so their records may come in another order.
    assert sorted(map(str, observed)) == sorted(map(str, read_journal(plan.directory)))
    assert isinstance(observed[0], Session)
    assert {Session, Metrics, Checkpoint, Finished} <= {type(record) for record in observed}


def test_ranks_without_a_journal_are_observed_too(tmp_path: Path):
    observed: list[Record] = []
    run = Recorder.of_rank(1, RunDirectory(str(tmp_path)), observed.extend)
    run.event(Session(start_step=0, time=1.0))
    run.metrics(3, {"train/loss": 0.5})
    run.metrics(4, {})
    run.close()
    session, metrics = observed
    assert session == Session(start_step=0, time=1.0)
    assert isinstance(metrics, Metrics)
    assert (metrics.step, metrics.values) == (3, {"train/loss": 0.5})
    assert not list(tmp_path.iterdir())


def test_a_failing_observer_causes_one_warning_and_does_not_change_the_weights(
    recipe: Recipe, execution: Execution, caplog
):
    weights = []
    calls = 0

    def failing(records: Sequence[Record]) -> None:
        nonlocal calls
        calls += 1
        if isinstance(records[0], Metrics):
            raise RuntimeError("no agent")

    for name, observer in (("alone", None), ("observed", failing)):
        plan = prepare(recipe, dataclasses.replace(execution, name=name), job="test")
        plan.claim()
        with caplog.at_level(logging.WARNING):
            run_worker(plan, WORKER, **({"observer": observer} if observer else {}))
        ending = read_journal(plan.directory)[-1]
        assert isinstance(ending, Finished)
        weights.append(ending.weights_sha256)
    assert weights[0] == weights[1]
    assert calls == 2
    warnings = [record.getMessage() for record in caplog.records if "observer" in record.getMessage()]
    assert warnings == ["an observer of the run failed and is no longer called: RuntimeError: no agent"]
