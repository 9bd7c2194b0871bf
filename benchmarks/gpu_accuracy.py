"""Row of gpu_evidence.py: cells of the CIFAR tables trained to their end, those with an error of the replication first.

Each cell and seed is an ordinary run, which a later call continues from its newest checkpoint, and the folder is a
sweep's: jobs/ablation_results.py writes its results.
"""

import dataclasses
import multiprocessing
import os
import runpy
import threading
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import harness
import subject
from gpu_setting import ROOT, Setting

from dist_resnet.ablation.content import chosen_cells, content_of, facts_of_start, has_ended, plan_trials
from dist_resnet.ablation.grid import Choice, Images, bases, choose
from dist_resnet.ablation.results import Cell, Trial, read_sweep
from dist_resnet.launch.plan import Plan
from dist_resnet.launch.worker import run_worker
from dist_resnet.recipe import Checkpoints, Execution, Performance, Recipe
from dist_resnet.storage.uri import absolute_uri
from dist_resnet.tracking import stop
from dist_resnet.tracking.run_directory import SWEEP_FILE, RunDirectory

# Seconds before the end at which runs are asked for a checkpoint, and what a run needs to be worth its start.
_SECONDS_TO_STOP, _SECONDS_TO_START = 15.0, 45.0
Line = dict[str, Any]


def check(choice: Choice) -> None:
    """Raises ValueError for cells that do not exist or that are not of CIFAR-10."""
    choose(choice, bases(_table_recipe(), choice, Images()))
    if choice.datasets != ("cifar10",):
        raise ValueError(f"accuracy.datasets must be cifar10, got {' '.join(choice.datasets)}")


def accuracy(setting: Setting) -> list[Line]:
    """The error of each cell and seed that has finished, and how far the others are."""
    directory, plans = planned(setting)
    left = [plan for plan in plans if not has_ended(plan)]
    with ProcessPoolExecutor(setting.at_once, multiprocessing.get_context("spawn")) as processes:
        list(processes.map(train, [setting] * len(left), left))
    return lines(directory)


def planned(setting: Setting) -> tuple[RunDirectory, list[Plan]]:
    """The folder of the runs, and the runs in the order of their turns: seed by seed, published errors first.

    Cells of earlier calls stay in the folder's list.
    """
    train_images, validation = setting.cifar_images()
    images, recipe = Images(train=train_images, validation=validation), _recipe(setting)
    choice = setting.sized(setting.accuracy, dataclasses.replace(setting.accuracy, depths=(8,), iterations=3))
    cells = sorted(chosen_cells(recipe, choice, images), key=lambda cell: cell.paper_error is None)
    cells = cells[: setting.sized(None, 2)]
    directory = RunDirectory(absolute_uri(f"{setting.folder}/cifar-{choice.iterations}"))
    trials, entries = plan_trials(cells, choice.seeds, directory, _execution(setting))
    _list(directory, content_of(entries, choice, recipe))
    return directory, sorted((trial.plan for trial in trials), key=lambda plan: plan.recipe.seed)


def train(setting: Setting, plan: Plan) -> None:
    """Trains a run until it is finished or the time is over."""
    seconds = setting.seconds_left - _SECONDS_TO_STOP
    if seconds < setting.sized(_SECONDS_TO_START, 0):
        return
    plan.claim()
    stop.withdraw(plan.directory)
    timer = threading.Timer(seconds, stop.request, (plan.directory,))
    timer.daemon = True
    timer.start()
    run_worker(plan, subject.worker())
    timer.cancel()


def lines(directory: RunDirectory) -> list[Line]:
    """A line for each run of the folder, from the journals alone."""
    sweep = read_sweep(directory)
    batch = sweep.facts["global_batch"]
    return [_line(cell, trial, batch) for cell in sweep.cells for trial in cell.trials]


def _line(cell: Cell, trial: Trial, batch: int) -> Line:
    spent = trial.evaluations[-1] if trial.evaluations else None
    rate = batch * spent.step / spent.training_seconds if spent else None
    return {
        "what": f"{cell.key}, seed {trial.seed}",
        "state": f"step {trial.steps} of {trial.total_steps}" if trial.state == "unfinished" else trial.state,
        "top-1 error, %": trial.newest_error,
        "published, %": cell.paper_error,
        "images/s": rate,
        "restarts": trial.sessions.restarts,
    }


def _recipe(setting: Setting) -> Recipe:
    """The tables' recipe, evaluated every tenth epoch."""
    recipe = _table_recipe()
    return dataclasses.replace(
        recipe,
        evaluation=dataclasses.replace(recipe.evaluation, every_epochs=10),
        schedule=setting.sized(recipe.schedule, dataclasses.replace(recipe.schedule, drops=())),
    )


def _table_recipe() -> Recipe:
    return runpy.run_path(str(ROOT / "jobs/cifar_ablation.py"))["RECIPE"]


def _execution(setting: Setting) -> Execution:
    return Execution(
        device="gpu" if subject.DEVICE.type == "cuda" else "cpu",
        decode_on="pillow",
        cpus_per_worker=setting.sized(max(1, (os.cpu_count() or 1) // setting.at_once), 1),
        log_every=100,
        checkpoints=Checkpoints(every=10_000, minutes=1),
        performance=Performance(cuda_graphs=True, evaluation_batch=500),
    )


def _list(directory: RunDirectory, content: dict[str, Any]) -> None:
    """Adds the runs to the folder's `sweep.json`."""
    known: dict[str, Any] = directory.read_json(SWEEP_FILE) or facts_of_start(harness.machine())
    here = {(entry["key"], entry["seed"]) for entry in content["cells"]}
    others = [entry for entry in known.get("cells", []) if (entry["key"], entry["seed"]) not in here]
    seeds = max(content["seeds"], known.get("seeds", 0))
    directory.write_json(SWEEP_FILE, known | content | {"cells": [*content["cells"], *others], "seeds": seeds})
