"""Pulls models from MLflow's registry, verified against the registry's record and rebuilt without pickle.

Needs mlflow, torch, safetensors and pillow. Does not run the code in a package.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mlflow.artifacts
import torch
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from dist_resnet.registry import package, predictor
from dist_resnet.storage.uri import without_credentials
from dist_resnet.tracking.mlflow import address, database
from dist_resnet.tracking.mlflow.refusal import first_line

CLASS_NAMES_TAG, FROM_IMAGES = "class_names", "of the training images"


def pull(model: str, *, tracking_uri: str | None = None, device: str = "cpu") -> torch.nn.Module:
    """The network of a registered version: float32 [N, 3, H, W] -> logits, in evaluation mode and able to train.

    `model` is `models:/NAME/VERSION` or `models:/NAME@ALIAS`; `tracking_uri` defaults to MLFLOW_TRACKING_URI. Raises
    ValueError if the registry has no such version or a file of the package differs from the record, OSError if the
    package cannot be downloaded.

    >>> network = pull("models:/preact-resnet8/1", tracking_uri=registry)  # registry: that of an MLflow server
    >>> network(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 4])
    """
    with tempfile.TemporaryDirectory() as folder:
        pulled = download(model, Path(folder, "package"), tracking_uri=tracking_uri)
        return predictor.load_model(pulled.folder / package.DATA).to(device)


def pull_predictor(model: str, *, tracking_uri: str | None = None, device: str | None = None) -> predictor.Predictor:
    """What classifies images with a registered version: `predict` takes images or image files, and names classes.

    `device` by default the GPU if there is one. Arguments and errors are those of `pull`.

    >>> classifier = pull_predictor("models:/preact-resnet8/1", tracking_uri=registry)
    >>> (answer,) = classifier.predict([jpeg], params={"top_k": 2})  # jpeg: the bytes of an image file
    >>> len(answer["names"]), answer["error"]
    (2, None)
    """
    with tempfile.TemporaryDirectory() as folder:
        pulled = download(model, Path(folder, "package"), tracking_uri=tracking_uri)
        return predictor.Predictor(pulled.folder / package.DATA, device)


def read(folder: str | Path) -> torch.nn.Module:
    """The network of a package that `download` wrote to a folder: as from `pull`, on the CPU."""
    return predictor.load_model(Path(folder) / package.DATA)


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """A verified package on this machine."""

    folder: Path
    version: ModelVersion

    @property
    def may_be_numbers(self) -> bool:
        """Whether its class names may be mere numbers: its tag says so, or it is too old to have the tag."""
        return self.version.tags.get(CLASS_NAMES_TAG) != FROM_IMAGES


def download(model: str, target: Path, *, tracking_uri: str | None = None) -> Pulled:
    """Downloads a version's package to the folder `target`, which must not exist, and verifies it.

    Raises as `pull` does, and then leaves nothing in `target`.
    """
    if target.exists():
        raise ValueError(f"{target} exists already; give a --target that does not exist")
    client = open_client(tracking_uri)
    version = find_version(client, model)
    recorded = version.tags.get("manifest_sha256")
    if recorded is None:
        raise ValueError(
            f"{model} has no tag manifest_sha256 to verify it by: it was not published by this project; "
            "load it with mlflow's own functions if you trust it"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        try:
            got = mlflow.artifacts.download_artifacts(
                artifact_uri=client.get_model_version_download_uri(version.name, version.version),
                dst_path=folder,
                tracking_uri=client.tracking_uri,
            )
        except MlflowException as error:
            raise OSError(f"{model} cannot be downloaded: {first_line(error)}") from error
        package.take(Path(got), Path(folder, "recorded"), recorded)
        Path(folder, "recorded").rename(target)
    return Pulled(folder=target, version=version)


def open_client(tracking_uri: str | None) -> MlflowClient:
    """A client of a server or store. Raises ValueError if MLflow cannot use the address, OSError if opening fails."""
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise ValueError("no tracking server is given; give --tracking-uri or set MLFLOW_TRACKING_URI")
    address.check_registry()
    address.check(uri, may_be_new=False)
    address.check_database(uri)
    address.set_client_limits()
    try:
        database.connect(uri)
        return MlflowClient(uri)
    except (MlflowException, SQLAlchemyError) as error:
        raise OSError(f"the registry at {without_credentials(uri)} cannot be opened: {first_line(error)}") from error


def find_version(client: MlflowClient, model: str) -> ModelVersion:
    """The version that `models:/NAME/VERSION` or `models:/NAME@ALIAS` names. Raises ValueError if there is none."""
    rest = model.removeprefix("models:/")
    name, at, alias = rest.partition("@")
    plain, slash, number = rest.rpartition("/")
    try:
        if model.startswith("models:/") and at and name and alias:
            return client.get_model_version_by_alias(name, alias)
        if model.startswith("models:/") and slash and plain and number.isdigit():
            return client.get_model_version(plain, number)
    except MlflowException as error:
        raise ValueError(f"the registry has no {model}: {first_line(error)}; {_list_models(client)}") from error
    raise ValueError(f"a model is models:/NAME/VERSION or models:/NAME@ALIAS, got {model!r}; {_list_models(client)}")


def _list_models(client: MlflowClient) -> str:
    try:
        names = [model.name for model in client.search_registered_models(max_results=20)]
    except MlflowException as error:
        return f"its models cannot be listed ({first_line(error)})"
    return f"the registry has {', '.join(names)}" if names else "the registry has no models yet"
