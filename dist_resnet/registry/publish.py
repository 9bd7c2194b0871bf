"""Publishes models to MLflow's registry, with the evidence that they are worth something.

A model is registered as a new version of `default_name`. The alias `champion` marks the version with the lowest
top-1 error among those evaluated on the same images at the same crop.
"""

import contextlib
import logging
import os
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mlflow
import mlflow.pyfunc
import torch
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model as MlflowModel
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType
from sqlalchemy.exc import SQLAlchemyError

from dist_resnet.data.shards import classes
from dist_resnet.recipe import Evaluation, Model, Recipe
from dist_resnet.registry import package, predictor
from dist_resnet.registry.package import Package
from dist_resnet.registry.pull import CLASS_NAMES_TAG, FROM_IMAGES, find_version, open_client
from dist_resnet.storage.uri import without_credentials
from dist_resnet.tracking.journal import history, read_journal
from dist_resnet.tracking.mlflow import run as mlflow_run
from dist_resnet.tracking.mlflow.address import store_of
from dist_resnet.tracking.mlflow.ledger import Ledger
from dist_resnet.tracking.mlflow.refusal import check_experiment, first_line, refusal_of
from dist_resnet.tracking.mlflow.run import ensure_experiment
from dist_resnet.tracking.run_directory import SUMMARY_FILE, RunDirectory
from dist_resnet.train import checkpoint
from dist_resnet.train.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

CHAMPION = "champion"
EXPERIMENT = "dist_resnet"
_REGISTERED_FILE = "registered.json"
# A server passes a file on to its own storage before it answers.
_SECONDS_FOR_A_FILE = "600"
LICENSE = (
    "The weights carry no license of their own: that of the training images applies (ImageNet: non-commercial "
    "research). The code in the package: Apache-2.0."
)
Promotion = Literal["better", "always", "never"]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A registered version."""

    name: str
    version: str
    is_champion: bool
    weights_sha256: str

    @property
    def uri(self) -> str:
        """What `pull` and MLflow's loaders take."""
        return f"models:/{self.name}/{self.version}"


def publish_run(
    run: str,
    *,
    tracking_uri: str | None = None,
    step: int | None = None,
    name: str | None = None,
    promote: Promotion = "better",
) -> Published:
    """Registers the model of a run's checkpoint: the newest one, or that after `step` steps.

    `run` is the run's directory, STORAGE/NAME; `tracking_uri` by default MLFLOW_TRACKING_URI, else the store beside
    the runs; `name` by default `default_name`. Raises FileNotFoundError where there is no such run or checkpoint,
    ValueError where a checkpoint is damaged, OSError where the registry does not take it; nothing is left half
    registered then.
    """
    directory = RunDirectory(run)
    known = directory.read_run()
    recipe = Recipe.from_dict(known["recipe"])
    found = _checkpoint(directory, step)
    uri = store_of(directory, tracking_uri)
    names, names_from = _class_names(known, recipe)
    with tempfile.TemporaryDirectory() as folder:
        made = package.write(Path(folder, "package"), recipe, found.weights, names)
        _add_mlflow_files(made)
        tags = _evidence(directory, recipe, found) | {
            CLASS_NAMES_TAG: names_from,
            "weights_sha256": made.weights_sha256,
            "manifest_sha256": package.seal(made.folder),
        }
        try:
            client = mlflow_run.open_client(uri)
            run_id = _mlflow_run(client, directory)
            name = name or default_name(recipe.model, recipe.data.dataset)
            version, is_champion = _register(client, made, name, run_id, tags, promote)
        except (MlflowException, SQLAlchemyError, ImportError, OSError) as error:
            reason = refusal_of(error, uri, has_answered=True) or first_line(error)
            raise OSError(f"the registry did not take the model: {reason}") from error
    published = Published(
        name=version.name, version=str(version.version), is_champion=is_champion, weights_sha256=made.weights_sha256
    )
    logger.info("registered as %s%s", published.uri, f", the {CHAMPION}" if is_champion else "")
    _note_in_summary(directory, published.uri, published.weights_sha256)
    return published


def default_name(model: Model, dataset: str) -> str:
    """The name under which trained networks compete for `champion`: placement, shortcut, depth and data set.

    The paper's own networks, full pre-activation with identity shortcuts on ImageNet, are preact-resnet<depth>.

    >>> default_name(Model(depth=110, num_classes=10, shortcut="dropout", placement="original"), "cifar10")
    'original-dropout-resnet110-cifar10'
    """
    if (model.placement, model.shortcut, dataset) == ("full_preactivation", "identity", "imagenet"):
        return f"preact-resnet{model.depth}"
    kind = model.placement if model.shortcut == "identity" else f"{model.placement}-{model.shortcut}"
    return f"{kind}-resnet{model.depth}-{dataset}"


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
    """Makes a registered version the `model_uri` of the summary of the run whose final weights it has."""
    try:
        summary = directory.read_json(SUMMARY_FILE)
        if summary is not None and summary.get("weights_sha256") == weights_sha256:
            # Summaries of earlier versions name the file in `model_uri` alone.
            weights = {"weights_uri": summary.get("weights_uri") or summary.get("model_uri")}
            directory.write_json(SUMMARY_FILE, weights | summary | {"model_uri": uri})
    except OSError as error:
        logger.warning("%s does not name %s, the registered model: %s", directory.child(SUMMARY_FILE), uri, error)


def record_evaluation(
    model: str,
    *,
    tracking_uri: str | None,
    digest: str,
    evaluation: Evaluation,
    metrics: dict[str, float],
    classes: tuple[int, int] | None = None,
) -> None:
    """Writes an evaluation on the images with that digest down as tags of a version.

    `classes`: how many classes the images show, of how many of the model's. `model` is `models:/NAME/VERSION` or
    `models:/NAME@ALIAS`. Raises ValueError where there is none, OSError where the registry does not take it.
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
        raise OSError(f"the evaluation is not recorded on {model}: {first_line(error)}") from error


def _checkpoint(directory: RunDirectory, step: int | None) -> Checkpoint:
    if step is None:
        found = checkpoint.latest(directory)
        if found is None:
            raise FileNotFoundError(f"the run at {directory.uri} has no checkpoint yet; train it further first")
        return found
    found = checkpoint.read(directory, checkpoint.folder_of(step))
    if found is None:
        raise FileNotFoundError(f"the run at {directory.uri} has no checkpoint after step {step}; leave --step out")
    return found


def _class_names(record: dict[str, Any], recipe: Recipe) -> tuple[list[str], str]:
    """A name for each output, and where the names come from: the training images, and numbers if these have none."""
    outputs, names = recipe.model.num_classes, classes.recorded(record, recipe)
    if names is not None:
        return classes.for_outputs(names, outputs), FROM_IMAGES
    logger.warning(
        "the model's classes are registered as numbers, for %s",
        "its training images have no class names"
        if "classes" in record
        else f"the run recorded no class names and the training images at {recipe.data.train} tell none",
    )
    return classes.numbers(outputs), "numbers"


def _evidence(directory: RunDirectory, recipe: Recipe, found: Checkpoint) -> dict[str, str]:
    """What is known of a checkpoint: its errors, if it was evaluated, and where it comes from."""
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
    """The id of the run on this server; None where the run is tracked elsewhere or not at all."""
    run_id = Ledger(directory, client.tracking_uri).run_id()
    try:
        return client.get_run(run_id).info.run_id if run_id else None
    except MlflowException:
        return None


def _add_mlflow_files(made: Package) -> None:
    """Writes MLmodel and requirements beside a package: one flavour rebuilds the network, the other is the program."""
    described = MlflowModel()
    described.add_flavor(
        "pytorch",
        model_data=package.DATA,
        pytorch_version=str(torch.__version__),
        code=None,
        serialization_format="pt2",
    )
    described.signature = ModelSignature(
        # Any: bytes, base64 text and pixels; what an image is, the predictor says.
        inputs=Schema([ColSpec(AnyType(), "image")]),
        params=ParamSchema(
            [
                ParamSpec("top_k", DataType.long, predictor.TOP_K),
                ParamSpec("exif_rotation", DataType.boolean, predictor.EXIF_ROTATION),
            ]
        ),
    )
    mlflow.pyfunc.add_to_model(
        described,
        loader_module=made.loader_module,
        data=package.DATA,
        code=package.CODE,
        python_env={"virtualenv": "python_env.yaml"},
    )
    (made.folder / "requirements.txt").write_text("\n".join(package.requirements()) + "\n")
    environment = (
        f"python: {platform.python_version()}\nbuild_dependencies: [pip]\ndependencies: [-r requirements.txt]\n"
    )
    (made.folder / "python_env.yaml").write_text(environment)
    described.save(str(made.folder / "MLmodel"))


def _register(
    client: MlflowClient, made: Package, name: str, run_id: str | None, tags: dict[str, str], promote: Promotion
) -> tuple[ModelVersion, bool]:
    """Uploads a package, makes it a version and settles the alias; on a failure takes back what was made."""
    experiment = client.get_run(run_id).info.experiment_id if run_id else ensure_experiment(client, EXPERIMENT)
    check_experiment(client, experiment)
    logged = client.create_logged_model(experiment, name=name, source_run_id=run_id, tags=tags, model_type="classifier")
    version = None
    try:
        with _environment(MLFLOW_HTTP_REQUEST_TIMEOUT=_SECONDS_FOR_A_FILE):
            client.log_model_artifacts(logged.model_id, str(made.folder))
        client.finalize_logged_model(logged.model_id, "READY")
        _ensure_registered_model(client, name)
        with _as_default(client.tracking_uri):
            version = client.create_model_version(
                name, logged.artifact_location, run_id=run_id, tags=tags, model_id=logged.model_id
            )
        return version, _promote(client, version, promote)
    except BaseException:
        if version is not None:
            client.delete_model_version(name, version.version)
        client.delete_logged_model(logged.model_id)
        raise


@contextlib.contextmanager
def _as_default(tracking_uri: str) -> Iterator[None]:
    """Within the block MLflow's own default is this server: a registry in a database looks models up there."""
    earlier = mlflow.get_tracking_uri()
    # Setting it sets the variable, too.
    with _environment(MLFLOW_TRACKING_URI=tracking_uri):
        mlflow.set_tracking_uri(tracking_uri)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(earlier)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables for the length of the block."""
    earlier = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in earlier.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _ensure_registered_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _promote(client: MlflowClient, version: ModelVersion, promote: Promotion) -> bool:
    """Moves the alias where the version deserves it; whether it is the champion now."""
    if promote == "never" or (promote == "better" and not _is_better(client, version)):
        return False
    client.set_registered_model_alias(version.name, CHAMPION, version.version)
    return True


def _is_better(client: MlflowClient, version: ModelVersion) -> bool:
    """Whether a version has a lower error than the champion on the same images; the first evaluated one has."""
    if "top1_error" not in version.tags:
        return False
    try:
        champion = client.get_model_version_by_alias(version.name, CHAMPION)
    except MlflowException as error:
        if error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
            return True
        raise
    if "top1_error" not in champion.tags:
        return True
    same = all(champion.tags.get(key) == version.tags[key] for key in ("validation_digest", "evaluated_at"))
    return same and float(version.tags["top1_error"]) < float(champion.tags["top1_error"])
