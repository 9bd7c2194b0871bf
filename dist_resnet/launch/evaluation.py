"""Evaluation of a run's checkpoint, on the run's own validation pictures or on others."""

import dataclasses

import torch

from dist_resnet.data.loader import open_loader
from dist_resnet.data.parquet import open_split
from dist_resnet.launch.preparation import RECIPE_FILE
from dist_resnet.recipe import Evaluation, Execution, Recipe
from dist_resnet.tracking.storage import RunDirectory, absolute_uri
from dist_resnet.train import checkpoint
from dist_resnet.train.distributed import Worker
from dist_resnet.train.evaluate import evaluate_crops
from dist_resnet.train.loop import create_state


def evaluate_run(
    run: str, execution: Execution, *, validation: str | None = None, evaluation: Evaluation | None = None
) -> dict[str, float]:
    """The errors and losses of a run's newest checkpoint: `val/top1_error` and the other keys of the run's journal.

    `run` is a run's directory, STORAGE/NAME. `validation` and `evaluation` replace the run's own. Trains nothing and
    writes nothing. Raises FileNotFoundError where there is no run or no checkpoint, ValueError where a checkpoint is
    damaged or the pictures do not fit the model.
    """
    directory = RunDirectory(run)
    recipe = _recipe_of(directory)
    if validation is not None:
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, validation=absolute_uri(validation)))
    if evaluation is not None:
        recipe = dataclasses.replace(recipe, evaluation=evaluation)
    split = open_split(recipe.data.validation)
    split.check_labels(recipe.model.num_classes)
    found = checkpoint.latest(directory)
    if found is None:
        raise FileNotFoundError(f"the run at {directory.uri} has no checkpoint yet; train it further first")
    gpu = torch.cuda.is_available() and execution.device != "cpu"
    worker = Worker(rank=0, world_size=1, device=torch.device("cuda" if gpu else "cpu"))
    state = create_state(recipe, execution, worker)
    state.load(found.weights, found.momenta, found.counters)
    # Only the validation split is read; a loader wants both.
    small = dataclasses.replace(recipe, global_batch=2, ghost_batch=2)
    loader = open_loader(small, execution, split, split, rank=0, world_size=1, device=worker.device)
    try:
        return evaluate_crops(recipe, state.model, loader, execution, worker)
    finally:
        loader.close()


def _recipe_of(directory: RunDirectory) -> Recipe:
    known = directory.read_json(RECIPE_FILE)
    if known is None:
        raise FileNotFoundError(
            f"{directory.uri} is not a run: it has no {RECIPE_FILE}; give the directory STORAGE/NAME of a run"
        )
    return Recipe.from_dict(known["recipe"])
