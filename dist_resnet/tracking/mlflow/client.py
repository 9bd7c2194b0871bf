"""MLflow's client: opened with short time limits, and what the runs and the registry do alike with it."""

import contextlib
import logging
import os
import tempfile

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from dist_resnet.tracking.mlflow import address, database
from dist_resnet.tracking.mlflow.refusal import check_experiment, refusal_of_a_file

# MLflow logs its schema migrations line by line, and a database's failures with a traceback.
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
logging.getLogger("alembic").setLevel(logging.WARNING)


def open_client(uri: str) -> MlflowClient:
    """A client of a server or store that gives up after seconds. Raises whatever MLflow or the database does.

    A sqlite store gets its schema here, by one process at a time: several at once corrupt the file.
    """
    address.set_client_limits()
    # Every client also opens the registry, which may have another address.
    stores = {uri, os.environ.get(address.REGISTRY_VARIABLE) or uri}
    files = sorted(str(file) for file in map(database.sqlite_file, stores) if file is not None)
    for store in sorted(stores):
        database.connect(store)
    with contextlib.ExitStack() as locks:
        for file in files:
            locks.enter_context(FileLock(f"{file}.lock"))
        client = MlflowClient(uri)
        if files:
            client.search_experiments(max_results=1)
        return client


def ensure_experiment(client: MlflowClient, name: str) -> str:
    """The id of an experiment, created if needed; with a sqlite store, its artifacts are stored next to the file.

    Raises RefusedError if it was deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is not None:
        check_experiment(client, found.experiment_id)
        return found.experiment_id
    store = database.sqlite_file(client.tracking_uri)
    location = None if store is None else store.with_name("mlartifacts").as_uri()
    try:
        return client.create_experiment(name, artifact_location=location)
    except MlflowException:
        # Another run created it in the meantime.
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return found.experiment_id


def log_file(client: MlflowClient, run_id: str, name: str, content: bytes) -> None:
    """Uploads a file of a run. Raises RefusedError if the storage for files refuses, otherwise whatever MLflow does."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, name)
        with open(path, "wb") as file:
            file.write(content)
        try:
            client.log_artifact(run_id, path)
        except Exception as error:
            refusal = refusal_of_a_file(error)
            if refusal is None:
                raise
            raise refusal from error
