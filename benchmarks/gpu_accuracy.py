"""Row of gpu_evidence.py: the public replication's five numbered cells, ResNet-20 on CIFAR-10, all at once.

Each cell is an ordinary run in the folder, so that a later call continues it from its newest checkpoint.
"""

import dataclasses
import multiprocessing
import runpy
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import subject
from gpu_setting import ROOT, Setting

from dist_resnet.ablation.grid import Cell, Choice, Images, bases, choose, trial_name
from dist_resnet.launch.plan import Plan, prepare
from dist_resnet.launch.worker import run_worker
from dist_resnet.paper import CIFAR_ITERATIONS
from dist_resnet.recipe import Checkpoints, Execution, Performance
from dist_resnet.tracking import stop
from dist_resnet.tracking.journal import history, read_journal
from dist_resnet.tracking.records import Finished, Record

# Seconds before the end at which runs are asked for a checkpoint.
_SECONDS_TO_STOP = 15.0
Line = dict[str, Any]


def accuracy(setting: Setting) -> list[Line]:
    """The error of each cell that has finished, and how far the others are."""
    setting.cifar_images()  # once, before processes write the same files
    cells = list(numbered_cells(setting))[: setting.sized(None, 2)]
    with ProcessPoolExecutor(len(cells), multiprocessing.get_context("spawn")) as processes:
        return list(processes.map(train, [setting] * len(cells), range(len(cells))))


def numbered_cells(setting: Setting) -> Iterator[Cell]:
    """The cells that the replication has an error for."""
    train, validation = setting.cifar_images()
    choice = Choice(tables=("replication",), iterations=setting.sized(CIFAR_ITERATIONS, 3))
    recipe = runpy.run_path(str(ROOT / "jobs/cifar_ablation.py"))["RECIPE"]
    recipe = dataclasses.replace(
        recipe,
        evaluation=dataclasses.replace(recipe.evaluation, every_epochs=10),
        schedule=setting.sized(recipe.schedule, dataclasses.replace(recipe.schedule, drops=())),
    )
    images = Images(train=train, validation=validation)
    sizes = setting.sized({}, {"cifar10": 256})
    return (cell for cell in choose(choice, bases(recipe, choice, images, sizes)) if cell.paper_error is not None)


def train(setting: Setting, number: int) -> Line:
    """Trains a cell until it is finished or the time is over."""
    cell = list(numbered_cells(setting))[number]
    execution = Execution(
        device="gpu" if subject.DEVICE.type == "cuda" else "cpu",
        storage=f"{setting.folder}/runs",
        name=trial_name(cell, 0),
        decode_on="pillow",
        cpus_per_worker=setting.sized(2, 1),
        log_every=100,
        checkpoints=Checkpoints(every=10_000, minutes=1),
        performance=Performance(cuda_graphs=True, evaluation_batch=500),
    )
    plan = prepare(cell.recipe, execution, job="accuracy")
    if _finished(_records(plan)) is None:
        plan.claim()
        stop.withdraw(plan.directory)
        timer = threading.Timer(setting.seconds_left - _SECONDS_TO_STOP, stop.request, (plan.directory,))
        timer.daemon = True
        timer.start()
        run_worker(plan, subject.worker())
        timer.cancel()
    return _line(cell, plan, _records(plan))


def _records(plan: Plan) -> list[Record]:
    return read_journal(plan.directory)


def _finished(records: list[Record]) -> Finished | None:
    return next((record for record in records if isinstance(record, Finished)), None)


def _line(cell: Cell, plan: Plan, records: list[Record]) -> Line:
    found, ending = history(records), _finished(records)
    errors, seconds = found.get("val/top1_error", []), found.get("time/step_seconds", [])
    steps = seconds[-1][0] if seconds else 0
    return {
        "what": cell.row,
        "state": "finished" if ending else f"step {steps} of {plan.num_steps}",
        "top-1 error, %": 100 * errors[-1][2] if errors else None,
        "published, %": cell.paper_error,
        "images/s": 128 * len(seconds) / sum(one for *_, one in seconds) if seconds else None,
    }
