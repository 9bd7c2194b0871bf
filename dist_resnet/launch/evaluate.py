"""Evaluation of trained weights on several workers of this machine, on their own validation images or on others."""

import dataclasses
import functools
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dist_resnet.data.input.batch import Damaged
from dist_resnet.data.input.decoders import InputOptions
from dist_resnet.data.input.streams import check_some_whole
from dist_resnet.data.loader import EvaluationImages
from dist_resnet.data.shards import classes
from dist_resnet.data.shards.split import Split, open_split
from dist_resnet.data.shards.split_names import check_one_split
from dist_resnet.launch import local
from dist_resnet.launch.trained import Trained, Weights, open_trained
from dist_resnet.recipe import Evaluation, Execution, MatchClasses, Recipe
from dist_resnet.storage.uri import absolute_uri
from dist_resnet.train.damage import TooDamagedError
from dist_resnet.train.evaluate import Evaluator
from dist_resnet.train.loop import create_state
from dist_resnet.worker import Worker

logger = logging.getLogger(__name__)

_MOST_NAMED = 10


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The errors of trained weights, with the images and crops on which they were measured."""

    metrics: dict[str, float]
    """`val/top1_error` and the other keys of a run's journal."""
    validation_digest: str
    evaluation: Evaluation
    num_classes: int
    """Classes of the model."""
    lacking: tuple[str, ...]
    """Those of them without any image, as far as the shards' metadata says."""
    version: str | None = None
    """models:/NAME/VERSION if a registered model was evaluated."""


def evaluate(
    source: str,
    execution: Execution | None = None,
    *,
    tracking_uri: str | None = None,
    validation: str | None = None,
    evaluation: Evaluation | None = None,
    match_classes: MatchClasses | None = None,
    label_column: str | None = None,
) -> Evaluated:
    """The errors of a run's directory STORAGE/NAME, one of its checkpoints, or a registered model models:/NAME/VERSION.

    Every image counts once, on any number of workers of this machine. `validation` is a glob or folder of Parquet
    shards, by default the run's own; `evaluation` the crops; `tracking_uri` the registry, by default
    MLFLOW_TRACKING_URI. Trains nothing and writes nothing. Raises as `open_trained` and `evaluate_trained` do, before
    any worker starts.

    >>> found = evaluate(run, Execution(workers=1, device="cpu"))  # run: the directory of a training run
    >>> sorted(found.metrics)
    ['val/loss', 'val/top1_error', 'val/top5_error']
    """
    with open_trained(source, tracking_uri=tracking_uri) as trained:
        return evaluate_trained(
            trained,
            execution or Execution(),
            validation=validation,
            evaluation=evaluation,
            match_classes=match_classes,
            label_column=label_column,
        )


def evaluate_trained(
    trained: Trained,
    execution: Execution,
    *,
    validation: str | None = None,
    evaluation: Evaluation | None = None,
    match_classes: MatchClasses | None = None,
    label_column: str | None = None,
) -> Evaluated:
    """The errors and losses of trained weights, every image counted once on any number of workers.

    Arguments replace the recipe's values; images other than the recipe's are matched by class name unless
    `match_classes` is given. Trains nothing and writes nothing. Raises ValueError or FileNotFoundError, before any
    worker starts, if the images do not exist or do not fit the model.
    """
    recipe, execution = trained.recipe, local.settle(execution)
    if validation is not None:
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, validation=absolute_uri(validation)))
    if evaluation is not None:
        recipe = dataclasses.replace(recipe, evaluation=evaluation)
    split = open_split(recipe.data.validation, label_column=label_column or recipe.data.label_column)
    if validation is not None:
        check_one_split(split.uri, split.shards)
    names = trained.classes_beside(split.class_names)
    by = match_classes or (recipe.data.match_classes if validation is None else "names")
    matched = classes.match(split, names, recipe.model.num_outputs, by=by, option="--match-classes")
    if recipe.augment.image_side is not None:
        check_some_whole(split, recipe.augment.image_side)
    for note in matched.notes:
        logger.info("%s", note)
    with tempfile.TemporaryDirectory() as folder:
        outcome = Path(folder, "metrics.json")
        local.in_processes(
            execution, functools.partial(_evaluate, recipe, trained.read_weights, execution, matched.split, outcome)
        )
        found = json.loads(outcome.read_text())
    if "refused" in found:
        raise ValueError(found["refused"])
    return Evaluated(
        metrics=found["metrics"],
        validation_digest=split.digest,
        evaluation=recipe.evaluation,
        num_classes=recipe.model.num_outputs if names is None else len(names),
        lacking=matched.lacking,
        version=trained.version,
    )


def _evaluate(
    recipe: Recipe,
    read_weights: Callable[[], Weights],
    execution: Execution,
    split: Split,
    outcome: Path,
    worker: Worker,
) -> None:
    """Evaluates one worker's share; rank 0 writes the metrics of all workers, or why there are none."""
    torch.set_num_threads(execution.cpus_per_worker or 1)
    state = create_state(recipe, execution, worker)
    state.load(read_weights(), {}, {"step": 0, "scaler": {}})
    images = EvaluationImages(recipe, split, worker, InputOptions.of(execution))
    evaluator = Evaluator(model=state.model, images=images, worker=worker, name_damaged=_name_damaged)
    try:
        found: dict[str, Any] = {"metrics": evaluator.at_crops(recipe.evaluation)}
    except TooDamagedError as error:
        found = {"refused": str(error)}  # the driver raises it
    finally:
        images.close()
    if worker.rank == 0:
        outcome.write_text(json.dumps(found))


def _name_damaged(images: Sequence[Damaged]) -> None:
    for image in images[:_MOST_NAMED]:
        logger.warning("the image %s cannot be decoded and counts as an error", image)
    if len(images) > _MOST_NAMED:
        logger.warning("%d more cannot be decoded either", len(images) - _MOST_NAMED)
