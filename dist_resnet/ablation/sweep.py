"""A sweep: the grid's cells and seeds as runs in STORAGE/SWEEP/, started, followed, resumed and reported.

`sweep.json` lists the content of the sweep; each run's progress is in its folder next to it. A recipe that several
tables share, such as the "original" of Tables 1 and 2, is run once for all of their cells.
"""

import dataclasses
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from dist_resnet.ablation import report
from dist_resnet.ablation.board import Board
from dist_resnet.ablation.content import check_grid, chosen_cells, content_of, facts_of_start, has_ended, plan_trials
from dist_resnet.ablation.grid import Choice, Images
from dist_resnet.ablation.trial import Trial
from dist_resnet.ablation.watch import Watcher
from dist_resnet.launch.failures import RayEndedError
from dist_resnet.launch.ray import rungs
from dist_resnet.launch.ray import shares as ray_shares
from dist_resnet.launch.ray import tune as ray_tune
from dist_resnet.launch.ray.cluster import disconnect, own_cluster
from dist_resnet.launch.ray.jobs import take_over
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.storage.uri import absolute_uri, without_credentials
from dist_resnet.tracking import commands, provenance, stop
from dist_resnet.tracking.holding import keeping, release, taking
from dist_resnet.tracking.mlflow.address import store_of
from dist_resnet.tracking.mlflow.run_description import RunDescription
from dist_resnet.tracking.mlflow.sink import MlflowSink
from dist_resnet.tracking.records import Finished, Stopped
from dist_resnet.tracking.run_directory import SUMMARY_FILE, SWEEP_FILE, RunDirectory

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep that has passed every check."""

    directory: RunDirectory
    execution: Execution
    trials: tuple[Trial, ...]
    """Every run once."""
    content: dict[str, Any]
    """The content of `sweep.json`."""
    trials_per_gpu: int | None = None
    """Trials that share a GPU; as many as fit if None."""
    shares: tuple[ray_shares.Share, ...] = ()
    """The share of the cluster for each of `unfinished`."""

    @property
    def is_finished(self) -> bool:
        """Whether every trial has its result and the sweep its summary."""
        return self.directory.read_json(SUMMARY_FILE) is not None

    @property
    def unfinished(self) -> list[Trial]:
        """The trials to run, from the start or from their newest checkpoint."""
        return [trial for trial in self.trials if not trial.is_over and not has_ended(trial.plan)]


def prepare_sweep(
    recipe: Recipe,
    choice: Choice,
    images: Images,
    execution: Execution,
    *,
    job: str,
    early_stop: bool = False,
    trials_per_gpu: int | None = None,
) -> Sweep:
    """The sweep, checked against its images, its storage and the cluster.

    `recipe` is the paper's, for CIFAR. `job` begins the sweep's name if none is given. Raises ValueError or
    FileNotFoundError, before any trial starts, with one line that says what to do.
    """
    ray_shares.check_trials(execution, trials_per_gpu=trials_per_gpu)
    cells = chosen_cells(recipe, choice, images)
    directory = sweep_directory(execution, job, choice, recipe)
    directory.check_writable()
    execution = dataclasses.replace(execution, storage=absolute_uri(execution.storage))
    store_of(directory, execution.tracking.uri, resolve=not directory.exists(SWEEP_FILE))
    trials, entries = plan_trials(cells, choice.seeds, directory, execution)
    for note in dict.fromkeys(note for trial in trials for note in trial.plan.notes):
        logger.info("%s", note)
    content = content_of(entries, choice, recipe, early_stop=early_stop)
    check_grid(directory, content)
    for trial in trials:
        if (summary := trial.plan.summary()) is not None:
            trial.sum_up(summary)
    sweep = Sweep(
        directory=directory,
        execution=execution,
        trials=tuple(trials),
        content=content,
        trials_per_gpu=trials_per_gpu,
    )
    if sweep.is_finished:
        return sweep
    with taking(directory):
        return _allot(sweep)


def _allot(sweep: Sweep) -> Sweep:
    """The sweep with its trials' shares of the cluster."""
    unfinished = sweep.unfinished
    if not unfinished:
        return sweep
    plans = [trial.plan for trial in unfinished]
    settled, shares = ray_shares.allot(plans, sweep.execution, trials_per_gpu=sweep.trials_per_gpu)
    for trial in unfinished:
        own = dataclasses.replace(trial.plan.execution, device=settled.device, cpus_per_worker=settled.cpus_per_worker)
        trial.plan = dataclasses.replace(trial.plan, execution=own)
    return dataclasses.replace(sweep, execution=settled, shares=tuple(shares))


def run(sweep: Sweep) -> int:
    """Runs the unfinished trials of a sweep and writes its report; returns the number of trials without a result.

    Once every trial has a result, `summary.json` is written next to `sweep.json` and the sweep is not changed again.
    Raises KeyboardInterrupt if the sweep was stopped.
    """
    if sweep.is_finished:
        release(sweep.directory)
        logger.info("the sweep at %s is finished already: %d trials", sweep.directory.uri, len(sweep.trials))
        return 0
    with keeping(sweep.directory):
        return _run(sweep)


def _run(sweep: Sweep) -> int:
    _claim(sweep)
    stop.withdraw(sweep.directory)
    unfinished = sweep.unfinished
    if unfinished and not own_cluster():
        take_over(sweep.directory)
    uri = store_of(sweep.directory, sweep.execution.tracking.uri, resolve=False)
    parent = MlflowSink(uri, sweep.directory, _sweep_card(sweep))
    logger.info("the sweep is stored at %s and tracked at %s", sweep.directory.uri, without_credentials(uri))
    watcher = Watcher(
        sweep.directory, sweep.trials, unfinished, parent, uri, Board(), early_stop=sweep.content["early_stop"]
    )
    status, wait_seconds, stopped = "FAILED", 60.0, False
    try:
        stopped = _fit(sweep, unfinished, watcher)
        status, wait_seconds = ("KILLED", 5.0) if stopped else ("FINISHED", 60.0)
    except (KeyboardInterrupt, SystemExit, RayEndedError):
        status, wait_seconds = "KILLED", 5.0
        raise
    finally:
        watcher.close(status, wait_seconds=wait_seconds)
        if status == "FINISHED" and sweep.content["early_stop"]:
            _stop_late(sweep)
        counts = Counter(trial.status for trial in sweep.trials)
        lost = counts["waiting"] + counts["running"] + counts["paused"] + counts["died"]
        if status == "FINISHED" and lost:
            status = "FAILED"
        parent.close(status, _report(sweep.directory), wait_seconds=wait_seconds)
    logger.info(
        "%d trials: %d finished, %d fail, %d stopped early, %d without a result",
        *(len(sweep.trials), counts["finished"], counts["fail"], counts["stopped"], lost),
    )
    if stopped and lost:
        _stop(sweep.directory)
    if not lost:
        ended = {"status": Finished.kind, "trials": dict(counts), "mlflow_run_id": parent.run_id}
        sweep.directory.write_json(SUMMARY_FILE, ended)
    logger.info("look at it: %s", commands.look_at(without_credentials(uri)))
    return lost


def _fit(sweep: Sweep, unfinished: Sequence[Trial], watcher: Watcher) -> bool:
    """Runs the unfinished trials; returns whether a stop was requested."""
    for trial in sweep.trials:
        # Ended under a driver that died before it could write their summaries.
        if not trial.is_over and trial not in unfinished:
            watcher.report(trial.name, "started")
    if not unfinished:
        return False
    found = rungs.rebuild([trial.plan for trial in sweep.trials]) if sweep.content["early_stop"] else None
    plans = [trial.plan for trial in unfinished]
    return ray_tune.fit(plans, sweep.shares, sweep.directory, report=watcher.report, rungs=found)


def _stop_late(sweep: Sweep) -> None:
    """Marks trials as stopped early that ended before slower ones with better errors reached the rung."""
    too_high = rungs.rebuild([trial.plan for trial in sweep.trials]).stopped()
    for trial in sweep.trials:
        if trial.name in too_high and trial.is_over and trial.status != "stopped":
            logger.info("%s has ended, but its error was too high: it counts as stopped early", trial.name)
            summary = trial.plan.summary() or {}
            trial.plan.directory.write_json(SUMMARY_FILE, summary | {"status": Stopped.kind})
            trial.status = "stopped"


def _stop(directory: RunDirectory) -> NoReturn:
    """Ends a sweep whose trials have stopped on request, by KeyboardInterrupt."""
    disconnect()
    try:
        stop.confirm(directory)
    except OSError as error:
        logger.warning("cannot confirm in %s that the sweep has stopped: %s", directory.child(stop.FILE), error)
    raise KeyboardInterrupt


def write_report(directory: RunDirectory) -> dict[str, bytes]:
    """Writes the report of a sweep, finished or not, and returns its files by name."""
    if directory.read_json(SWEEP_FILE) is None:
        raise FileNotFoundError(f"{directory.uri} is not a sweep: it has no {SWEEP_FILE}; give its --execution.name")
    files = report.write_report(directory)
    logger.info("the report is at %s", directory.child("report"))
    return files


def _report(directory: RunDirectory) -> dict[str, bytes]:
    """The report; none if it cannot be written, because a sweep's end does not depend on it."""
    try:
        return write_report(directory)
    except Exception:
        logger.exception("the report could not be written; --report-only tries again")
        return {}


def sweep_directory(execution: Execution, job: str, choice: Choice, recipe: Recipe) -> RunDirectory:
    """STORAGE/NAME of a sweep; the default name is the job's with a digest of the choice."""
    chosen = json.dumps([dataclasses.asdict(choice), recipe.fingerprint()], sort_keys=True)
    name = execution.name or f"{job}-{hashlib.sha256(chosen.encode()).hexdigest()[:8]}"
    return RunDirectory(RunDirectory(execution.storage).child(name))


def _claim(sweep: Sweep) -> None:
    """Claims the directory for this sweep by writing `sweep.json`."""
    if sweep.directory.read_json(SWEEP_FILE) is None:
        sweep.directory.write_json(SWEEP_FILE, sweep.content | facts_of_start(ray_shares.hardware()))


def _sweep_card(sweep: Sweep) -> RunDescription:
    content = {key: value for key, value in sweep.content.items() if key != "cells"}
    return RunDescription(
        experiment=sweep.execution.tracking.experiment,
        name=sweep.directory.name,
        params=content | {"cells": len({entry["key"] for entry in sweep.content["cells"]})},
        tags=provenance.collect() | {"sweep_directory": sweep.directory.uri},
        texts={SWEEP_FILE: sweep.directory.read(SWEEP_FILE).decode()},
    )
