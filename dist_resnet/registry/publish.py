"""Publishes models to MLflow's registry, with tags that say how good they are and where they come from."""

import logging
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from dist_resnet.data.shards import classes
from dist_resnet.data.shards.split_names import split_of
from dist_resnet.recipe import Evaluation, Model, Recipe
from dist_resnet.registry import package
from dist_resnet.registry.mlmodel import write_mlmodel
from dist_resnet.registry.pull import CLASS_NAMES_TAG, FROM_IMAGES, find_version, open_client
from dist_resnet.registry.versions import CHAMPION, Promotion, register
from dist_resnet.storage.uri import without_credentials
from dist_resnet.tracking.journal import history, read_journal
from dist_resnet.tracking.mlflow import client as mlflow_client
from dist_resnet.tracking.mlflow.address import store_of
from dist_resnet.tracking.mlflow.ledger import Ledger
from dist_resnet.tracking.mlflow.refusal import first_line, refusal_of
from dist_resnet.tracking.run_directory import SUMMARY_FILE, RunDirectory
from dist_resnet.train import checkpoint
from dist_resnet.train.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

_REGISTERED_FILE = "registered.json"
LICENSE = (
    "The weights have no separate license: that of the training images applies (ImageNet: non-commercial "
    "research). The code in the package: Apache-2.0."
)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A registered version."""

    name: str
    version: str
    is_champion: bool
    weights_sha256: str

    @property
    def uri(self) -> str:
        """The URI for `pull` and MLflow's loaders."""
        return f"models:/{self.name}/{self.version}"


def publish_run(
    run: str,
    *,
    tracking_uri: str | None = None,
    step: int | None = None,
    name: str | None = None,
    promote: Promotion = "better",
) -> Published:
    """Registers the model of a run's newest checkpoint, or of the one after `step` steps.

    `run` is the run's directory, STORAGE/NAME; `tracking_uri` defaults to MLFLOW_TRACKING_URI, then to the sqlite file
    next to the runs; `name` defaults to `default_name`. Raises FileNotFoundError if there is no such run or checkpoint,
    ValueError if the checkpoint is damaged, OSError if the registry rejects the model; then nothing stays half
    registered.
    """
    directory = RunDirectory(run)
    known = directory.read_run()
    recipe = Recipe.from_dict(known["recipe"])
    found = _checkpoint(directory, step)
    uri = store_of(directory, tracking_uri)
    names, names_from = _class_names(known, recipe)
    with tempfile.TemporaryDirectory() as folder:
        made = package.write(Path(folder, "package"), recipe, found.weights, names)
        write_mlmodel(made)
        tags = _evidence(directory, recipe, found) | {
            CLASS_NAMES_TAG: names_from,
            "weights_sha256": made.weights_sha256,
            "manifest_sha256": package.seal(made.folder),
        }
        try:
            client = mlflow_client.open_client(uri)
            run_id = _mlflow_run(client, directory)
            name = name or default_name(recipe.model, name_of_images(recipe))
            version, is_champion = register(client, made, name, run_id, tags, promote)
        except (MlflowException, SQLAlchemyError, ImportError, OSError) as error:
            reason = refusal_of(error, uri, has_answered=True) or first_line(error)
            raise OSError(f"the registry rejected the model: {reason}") from error
    published = Published(
        name=version.name, version=str(version.version), is_champion=is_champion, weights_sha256=made.weights_sha256
    )
    logger.info("registered as %s%s", published.uri, f", the {CHAMPION}" if is_champion else "")
    _note_in_summary(directory, published.uri, published.weights_sha256)
    return published


def default_name(model: Model, dataset: str) -> str:
    """The registered model's default name: placement, shortcut, depth and data set.

    The paper's own networks, full pre-activation with identity shortcuts on ImageNet, are named preact-resnet<depth>.

    >>> default_name(Model(depth=110, num_classes=10, shortcut="dropout", placement="original"), "cifar10")
    'original-dropout-resnet110-cifar10'
    """
    if (model.placement, model.shortcut, dataset) == ("full_preactivation", "identity", "imagenet"):
        return f"preact-resnet{model.depth}"
    kind = model.placement if model.shortcut == "identity" else f"{model.placement}-{model.shortcut}"
    return f"{kind}-resnet{model.depth}-{dataset}"


def name_of_images(recipe: Recipe) -> str:
    """The name of a recipe's data set: its own if it is known, otherwise that of the images' folder.

    >>> from dist_resnet.recipe import Augment, Data
    >>> data = Data(train="s3://bucket/red flowers/train-*.parquet", validation="x", dataset="own")
    >>> name_of_images(Recipe(model=Model(depth=20), data=data, augment=Augment(kind="pad", size=32)))
    'red-flowers'
    """
    if recipe.initial.weights is None and recipe.data.dataset != "own":
        return recipe.data.dataset
    folders = [part for part in recipe.data.train.split("/") if part and not re.search(r"[*?\[]|\.parquet$", part)]
    named = [part for part in folders if split_of(part) is None] or ["images"]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", named[-1]).strip("-") or "images"


def publish_once(run: str, *, tracking_uri: str | None = None, name: str | None = None) -> str:
    """The models:/NAME/VERSION of a run, whose newest checkpoint is registered unless this was done before.

    Raises as `publish_run` does.
    """
    directory = RunDirectory(run)
    if (known := directory.read_json(_REGISTERED_FILE)) is not None:
        return known["uri"]
    published = publish_run(run, tracking_uri=tracking_uri, name=name)
    directory.write_json(_REGISTERED_FILE, {"uri": published.uri})
    return published.uri


def _note_in_summary(directory: RunDirectory, uri: str, weights_sha256: str) -> None:
    """Sets the `model_uri` of a run's summary to the version registered with its final weights."""
    try:
        summary = directory.read_json(SUMMARY_FILE)
        if summary is not None and summary.get("weights_sha256") == weights_sha256:
            # Summaries of earlier versions name the weights' file only in `model_uri`.
            weights = {"weights_uri": summary.get("weights_uri") or summary.get("model_uri")}
            directory.write_json(SUMMARY_FILE, weights | summary | {"model_uri": uri})
    except OSError as error:
        logger.warning(
            "%s could not be updated with the registered model %s: %s", directory.child(SUMMARY_FILE), uri, error
        )


def record_evaluation(
    model: str,
    *,
    tracking_uri: str | None,
    digest: str,
    evaluation: Evaluation,
    metrics: dict[str, float],
    classes: tuple[int, int] | None = None,
) -> None:
    """Saves an evaluation on the images with that digest as tags of a version.

    `classes`: the number of classes among the images, and the model's. `model` is `models:/NAME/VERSION` or
    `models:/NAME@ALIAS`. Raises ValueError if there is no such version, OSError if the registry rejects the tags.
    """
    client = open_client(tracking_uri)
    version = find_version(client, model)
    crops = zip(evaluation.crops, evaluation.shorter_sides, strict=True)
    tags = {key.removeprefix("val/"): f"{value:.6f}" for key, value in metrics.items()}
    tags["evaluated_at"] = ", ".join(f"{crop} px of {side} px" for crop, side in crops)
    if classes is not None:
        tags["classes"] = "{} of {}".format(*classes)
    try:
        for key, value in tags.items():
            client.set_model_version_tag(version.name, version.version, f"evaluation.{digest[:12]}.{key}", value)
    except MlflowException as error:
        raise OSError(f"the evaluation could not be recorded on {model}: {first_line(error)}") from error


def _checkpoint(directory: RunDirectory, step: int | None) -> Checkpoint:
    if step is None:
        found = checkpoint.latest(directory)
        if found is None:
            raise FileNotFoundError(f"the run at {directory.uri} has no checkpoint yet; train it further first")
        return found
    found = checkpoint.read(directory, checkpoint.folder_of(step))
    if found is None:
        raise FileNotFoundError(
            f"the run at {directory.uri} has no checkpoint after step {step}; omit --step for the newest"
        )
    return found


def _class_names(record: dict[str, Any], recipe: Recipe) -> tuple[list[str], str]:
    """A name for each output, and where the names come from: the training images, or numbers if those have none."""
    outputs, names = recipe.model.num_outputs, classes.recorded(record, recipe)
    if names is not None:
        return classes.for_outputs(names, outputs), FROM_IMAGES
    logger.warning(
        "the model's classes are registered as numbers: %s",
        "its training images have no class names"
        if "classes" in record
        else f"the run recorded no class names and the training images at {recipe.data.train} have none",
    )
    return classes.numbers(outputs), "numbers"


def _evidence(directory: RunDirectory, recipe: Recipe, found: Checkpoint) -> dict[str, str]:
    """A version's tags: the checkpoint's errors, if it was evaluated, and where it comes from."""
    points = history(read_journal(directory))
    errors = {
        key: f"{value:.6f}"
        for key, series in points.items()
        for step, _, value in series
        if key.startswith("val/") and step == found.step
    }
    evaluation = recipe.evaluation
    return {
        **{key.removeprefix("val/"): value for key, value in errors.items()},
        "evaluated_at": f"{evaluation.crops[0]} px of {evaluation.shorter_sides[0]} px",
        "validation_digest": recipe.data.validation_digest or "unknown",
        "train_digest": recipe.data.train_digest or "unknown",
        "fingerprint": recipe.fingerprint(),
        "step": str(found.step),
        "run_directory": without_credentials(directory.uri),
        "license": LICENSE,
    }


def _mlflow_run(client: MlflowClient, directory: RunDirectory) -> str | None:
    """The id of the run on this server; None if the run is tracked elsewhere or not at all."""
    run_id = Ledger(directory, client.tracking_uri).run_id()
    try:
        return client.get_run(run_id).info.run_id if run_id else None
    except MlflowException:
        return None
