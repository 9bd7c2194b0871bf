"""Observers of a run's records. Oracle: the journal, which holds the same ones."""

import dataclasses
import logging
from pathlib import Path

import torch

from dist_resnet.launch.plan import prepare
from dist_resnet.launch.worker import run_worker
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.tracking.journal import read_journal
from dist_resnet.tracking.recorder import Run
from dist_resnet.tracking.run_directory import RunDirectory
from dist_resnet.worker import Worker

WORKER = Worker(rank=0, world_size=1, device=torch.device("cpu"))


def test_an_observer_is_told_what_the_journal_says(recipe: Recipe, execution: Execution):
    plan = prepare(recipe, execution, job="test")
    plan.claim()
    told: list[tuple[str, dict]] = []
    run_worker(plan, WORKER, observer=lambda kind, fields: told.append((kind, fields)))
    journal = [
        (record["kind"], {key: value for key, value in record.items() if key not in ("kind", "time")})
        for record in read_journal(plan.directory)
    ]
    # Checkpoints are written by a thread, which may come in between the two.
    assert sorted(map(str, told)) == sorted(map(str, journal))
    assert told[0][0] == "session"
    assert {"session", "metrics", "checkpoint", "finished"} <= {kind for kind, _ in told}


def test_ranks_without_a_journal_are_observed_too(tmp_path: Path):
    told: list[tuple[str, dict]] = []
    run = Run.of_rank(1, RunDirectory(str(tmp_path)), lambda kind, fields: told.append((kind, fields)))
    run.event("session", world_size=2)
    run.metrics(3, {"train/loss": 0.5})
    run.metrics(4, {})
    run.close()
    assert told == [("session", {"world_size": 2}), ("metrics", {"step": 3, "values": {"train/loss": 0.5}})]
    assert not list(tmp_path.iterdir())


def test_an_observer_that_fails_costs_one_warning_and_not_a_bit(recipe: Recipe, execution: Execution, caplog):
    weights = []
    calls = 0

    def failing(kind: str, fields: dict) -> None:
        nonlocal calls
        calls += 1
        if kind == "metrics":
            raise RuntimeError("no agent")

    for name, observer in (("alone", None), ("observed", failing)):
        plan = prepare(recipe, dataclasses.replace(execution, name=name), job="test")
        plan.claim()
        with caplog.at_level(logging.WARNING):
            run_worker(plan, WORKER, **({"observer": observer} if observer else {}))
        weights.append(read_journal(plan.directory)[-1]["weights_sha256"])
    assert weights[0] == weights[1]
    assert calls == 2
    warnings = [record.getMessage() for record in caplog.records if "observed" in record.getMessage()]
    assert warnings == ["the run goes on without being observed: RuntimeError: no agent"]
