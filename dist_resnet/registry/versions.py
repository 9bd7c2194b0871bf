"""Versions of registered models, and the alias `champion`.

The champion is the version with the lowest top-1 error among those evaluated on the same images at the same crop.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Literal

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from dist_resnet.registry.package import Package
from dist_resnet.tracking.mlflow.client import ensure_experiment
from dist_resnet.tracking.mlflow.refusal import check_experiment

CHAMPION = "champion"
EXPERIMENT = "dist_resnet"
# A server copies a file to its own storage before it answers.
_SECONDS_FOR_A_FILE = "600"
Promotion = Literal["better", "always", "never"]


def register(
    client: MlflowClient, made: Package, name: str, run_id: str | None, tags: dict[str, str], promote: Promotion
) -> tuple[ModelVersion, bool]:
    """Uploads a package as a new version; the version, and whether it is the champion. Undoes all if a part fails."""
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
    """Makes this server MLflow's default within the block: a registry in a database looks models up there."""
    earlier = mlflow.get_tracking_uri()
    # Setting the default also sets the variable.
    with _environment(MLFLOW_TRACKING_URI=tracking_uri):
        mlflow.set_tracking_uri(tracking_uri)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(earlier)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Sets environment variables within the block."""
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
    """Moves the alias to the version if it should have it; whether it has it now."""
    if promote == "never" or (promote == "better" and not _is_better(client, version)):
        return False
    client.set_registered_model_alias(version.name, CHAMPION, version.version)
    return True


def _is_better(client: MlflowClient, version: ModelVersion) -> bool:
    """Whether a version has a lower error than the champion on the same images, or is the first evaluated one."""
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
