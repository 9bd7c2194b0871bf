"""One run's run in MLflow: made or found, brought level with the journal, ended.

The journal is the truth. How many of its records have arrived is kept in a tag of the MLflow run, written with each
batch. A batch that is sent again after a doubtful answer makes no second point, because MLflow drops points equal in
key, step, value and time, and times are the journal's own.
"""

import contextlib
import json
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID

from dist_resnet.storage.uri import without_credentials
from dist_resnet.tracking.mlflow import address, database
from dist_resnet.tracking.mlflow.ledger import Ledger
from dist_resnet.tracking.mlflow.refusal import RefusedError, check_experiment, check_run, refusal_of, refusal_of_a_file
from dist_resnet.tracking.mlflow.run_description import DataSet, Ending, RunCard
from dist_resnet.tracking.records import Metrics, Record, Session
from dist_resnet.tracking.run_directory import RunDirectory

logger = logging.getLogger(__name__)
# MLflow tells of its schema migrations line by line, and of a database's failures with a traceback.
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
logging.getLogger("alembic").setLevel(logging.WARNING)

POSITION_TAG = "dist_resnet.journal_position"
KEY_TAG = "dist_resnet.key"
_METRICS_PER_BATCH = 900
_PARAMS_PER_BATCH = 90


class Parent(Protocol):
    """The run that another one belongs to: its directory, its id once the server has answered, why it never will."""

    directory: RunDirectory

    @property
    def run_id(self) -> str | None: ...

    @property
    def refusal(self) -> RefusedError | None: ...


def unwatched(waiting_points: int) -> None:
    """Looks at no delivery."""


class MlflowRun:
    """A run's run in MLflow, on one server or store.

    `card` describes the run when it is new; a run whose directory already names an MLflow run continues that one.
    With a `parent` the run is its child, and starts once the parent's has. Of the training metrics, those of every
    `every`-th step are sent. `run_id` is None until the server has answered once. `waiting_points` counts the journal's
    points that it has not taken.
    """

    def __init__(
        self, tracking_uri: str, directory: RunDirectory, card: RunCard, *, parent: Parent | None = None, every: int = 1
    ) -> None:
        self.run_id: str | None = None
        self.waiting_points = 0
        self._uri, self._card, self._parent, self._every = tracking_uri, card, parent, every
        self._ledger = Ledger(directory, tracking_uri)
        self._client: MlflowClient | None = None
        self._counting = threading.Lock()
        self._records: list[Record] = []
        self._position = 0
        self._steps: dict[str, int] = {}

    def keep(self, ending: Ending | None = None) -> None:
        """Keeps on the run's storage what a later delivery needs, whether the server answers or not."""
        parent = self._parent.directory.uri if self._parent else None
        self._ledger.note_card(self._card, parent=parent, every=self._every)
        if ending is not None:
            self._ledger.note_ending(ending)

    def take(self, records: Sequence[Record]) -> None:
        """Takes in the journal's next records, from its first one on, from any thread.

        Those of earlier drivers come before the first call of `level`, which finds out how many of them have arrived.
        """
        with self._counting:
            self._records += records
            self.waiting_points += sum(len(self._sent(record)) for record in records)

    def level(self, watch: Callable[[int], None] = unwatched) -> None:
        """Starts or finds the MLflow run, then sends every record that was taken in and has not arrived.

        `watch` is called with the points that wait, at first and after each batch. Raises whatever MLflow does.
        """
        if self.run_id is None:
            self.run_id = self._start()
        watch(self.waiting_points)
        while self._records:
            batch, metrics = self._next_batch()
            position = self._position + len(batch)
            tags = [RunTag(POSITION_TAG, str(position)), *_hardware_tags(batch)]
            assert self._client is not None
            self._client.log_batch(self.run_id, metrics=metrics, tags=tags)
            self._note(batch)
            watch(self.waiting_points)

    def end(self, ending: Ending) -> None:
        """Attaches the files and tags of a run's end and sets its status. Raises whatever MLflow does."""
        assert self._client is not None
        assert self.run_id is not None
        for name, content in ending.files.items():
            _log_bytes(self._client, self.run_id, name, content)
        for key, value in ending.tags.items():
            self._client.set_tag(self.run_id, key, value)
        self._client.set_terminated(self.run_id, ending.status)
        self._ledger.note_delivered(self._position)

    def refusal(self, error: Exception) -> RefusedError | None:
        """The refusal that an error of `level` or `end` stands for; None for an outage."""
        found = refusal_of(error, self._uri, has_answered=self.run_id is not None)
        if found is None or found.of_store or self._client is None or self.run_id is None:
            return found
        try:
            check_run(self._client, self._client.get_run(self.run_id))
        except RefusedError as precise:
            return precise
        except MlflowException as other:
            logger.debug("why MLflow refuses could not be found out: %s", other)
        return found

    def _next_batch(self) -> tuple[list[Record], list[Metric]]:
        """The records of one call, from the front of those that wait, and their metrics.

        A step that a restarted session did again is left out where the server has it from before.
        """
        batch: list[Record] = []
        metrics: list[Metric] = []
        steps = dict(self._steps)
        for record in self._records:
            values = self._sent(record)
            if batch and len(metrics) + len(values) > _METRICS_PER_BATCH:
                break
            batch.append(record)
            for key, value in values.items():
                assert isinstance(record, Metrics)
                if record.step > steps.get(key, -1):
                    metrics.append(Metric(key, value, int(record.time * 1000), record.step))
                    steps[key] = record.step
        return batch, metrics

    def _sent(self, record: Record) -> dict[str, float]:
        """The metrics of a record that are for MLflow."""
        if not isinstance(record, Metrics) or (record.step % self._every and not record.is_evaluation):
            return {}
        return record.values

    def _note(self, batch: list[Record]) -> None:
        """Counts the records at the front as arrived."""
        with self._counting:
            self._position += len(batch)
            del self._records[: len(batch)]
            self.waiting_points -= sum(len(self._sent(record)) for record in batch)
        for record in batch:
            if isinstance(record, Metrics):
                for key in record.values:
                    self._steps[key] = max(record.step, self._steps.get(key, -1))

    def _start(self) -> str:
        """The id of this run's MLflow run, made if need be; reads how far an earlier driver came."""
        self._client = open_client(self._uri)
        run = self._known()
        if run is None:
            return self._new()
        self._client.update_run(run.info.run_id, status="RUNNING")
        self._note(self._records[: int(run.data.tags.get(POSITION_TAG, 0))])
        return run.info.run_id

    def _known(self) -> Run | None:
        """The MLflow run that an earlier driver made; None if there is none to go on with.

        Raises RefusedError if it or its experiment was deleted, unless another experiment is asked for now.
        """
        assert self._client is not None
        run_id = self._ledger.run_id()
        if run_id is None:
            return None
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            logger.warning("MLflow at %s no longer has the run %s; another is made", self._shown(), run_id)
            return None
        if run.info.lifecycle_stage == LifecycleStage.DELETED and self._is_elsewhere(run):
            return None
        check_run(self._client, run)
        return run

    def _is_elsewhere(self, run: Run) -> bool:
        """Whether a run is in a deleted experiment that is no longer the one asked for."""
        assert self._client is not None
        experiment = self._client.get_experiment(run.info.experiment_id)
        return experiment.lifecycle_stage == LifecycleStage.DELETED and experiment.name != self._card.experiment

    def _new(self) -> str:
        """The id of a new MLflow run that has what the card says, or of the one that a lost answer left behind."""
        assert self._client is not None
        experiment, key = ensure_experiment(self._client, self._card.experiment), self._ledger.key()
        run_id = self._made(experiment, key) or self._make(experiment, key)
        params = [Param(key, str(value)) for key, value in self._card.params.items()]
        for first in range(0, len(params), _PARAMS_PER_BATCH):
            self._client.log_batch(run_id, params=params[first : first + _PARAMS_PER_BATCH])
        self._client.log_inputs(run_id, [_input(entry) for entry in self._card.data_sets])
        for name, text in self._card.texts.items():
            _log_bytes(self._client, run_id, name, text.encode())
        self._ledger.note_run(run_id)
        return run_id

    def _shown(self) -> str:
        return without_credentials(self._uri)

    def _made(self, experiment: str, key: str) -> str | None:
        """The MLflow run of that key, where the server has one."""
        assert self._client is not None
        found = self._client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        return found[0].info.run_id if found else None

    def _make(self, experiment: str, key: str) -> str:
        assert self._client is not None
        tags = self._card.tags | self._parent_tag() | {KEY_TAG: key}
        return self._client.create_run(experiment, tags=tags, run_name=self._card.name).info.run_id

    def _parent_tag(self) -> dict[str, str]:
        if self._parent is None:
            return {}
        if self._parent.run_id is None:
            raise MlflowException("the parent run has not started")
        return {MLFLOW_PARENT_RUN_ID: self._parent.run_id}


def ensure_experiment(client: MlflowClient, name: str) -> str:
    """The id of the experiment of that name, made if need be; its artifacts lie beside an embedded store.

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
        # Another run made it in the meantime.
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return found.experiment_id


def _input(entry: DataSet) -> DatasetInput:
    source = json.dumps({"uri": without_credentials(entry.source)})
    profile = json.dumps({"images": entry.images, "classes": entry.classes})
    # MLflow takes digests of up to 36 characters.
    data_set = Dataset(entry.name, entry.digest[:36], "dist_resnet", source, profile=profile)
    return DatasetInput(data_set, [InputTag(MLFLOW_DATASET_CONTEXT, entry.context)])


def _hardware_tags(records: Sequence[Record]) -> list[RunTag]:
    """What the newest session among the records trains on, as rank 0 saw it."""
    sessions = [record for record in records if isinstance(record, Session) and record.device is not None]
    return [RunTag("hardware.workers", f"{each.world_size} x {each.device}") for each in sessions[-1:]]


def open_client(uri: str) -> MlflowClient:
    """A client of a server or store that gives up after seconds.

    A sqlite store gets its schema here, by one process at a time: several at once ruin the file.
    """
    address.set_client_limits()
    # A registry of its own is opened with every client.
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


def _log_bytes(client: MlflowClient, run_id: str, name: str, content: bytes) -> None:
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
