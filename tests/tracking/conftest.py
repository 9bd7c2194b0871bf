"""Stores for the tests of this room."""

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sqlite store with its schema, which takes ten seconds to create."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    MlflowClient(uri).search_experiments()
    return uri


@pytest.fixture
def own_store(store: str, tmp_path: Path) -> str:
    """Such a store for one test, empty."""
    folder = tmp_path / "store"
    folder.mkdir()
    shutil.copy(store.removeprefix("sqlite:///"), folder / "mlflow.db")
    return f"sqlite:///{folder}/mlflow.db"
