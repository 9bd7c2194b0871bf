"""One run in MLflow: found or created, sent the journal, ended.

The journal is authoritative. A tag of the MLflow run, written with each batch, counts the records that have arrived. A
batch that is sent again after a lost answer adds no points: MLflow drops points equal in key, step, value and time, and
the times come from the journal.
"""

import json
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID

from dist_resnet.storage.uri import without_credentials
from dist_resnet.tracking.mlflow.client import ensure_experiment, log_file, open_client
from dist_resnet.tracking.mlflow.ledger import Ledger
from dist_resnet.tracking.mlflow.refusal import RefusedError, check_run, refusal_of
from dist_resnet.tracking.mlflow.run_description import DataSet, Ending, RunDescription
from dist_resnet.tracking.records import Metrics, Record, Session
from dist_resnet.tracking.run_directory import RunDirectory

logger = logging.getLogger(__name__)

POSITION_TAG = "dist_resnet.journal_position"
KEY_TAG = "dist_resnet.key"
_METRICS_PER_BATCH = 900
_PARAMS_PER_BATCH = 90


class Parent(Protocol):
    """The parent of a run: its directory, its id once the server has answered, and why the server refuses it."""

    directory: RunDirectory

    @property
    def run_id(self) -> str | None: ...

    @property
    def refusal(self) -> RefusedError | None: ...


def unwatched(waiting_points: int) -> None:
    """Ignores the progress of a delivery."""


class MlflowRun:
    """The MLflow run of one of our runs, on one server or store.

    `description` is used if the run is new; if the run's directory already names an MLflow run, that one continues.
    With a `parent`, the run is its child and starts after it. Training metrics are sent for every `every`-th step.
    `run_id` is None until the server has answered once. `waiting_points` counts the journal's points that the server
    has not received.
    """

    def __init__(
        self,
        tracking_uri: str,
        directory: RunDirectory,
        description: RunDescription,
        *,
        parent: Parent | None = None,
        every: int = 1,
    ) -> None:
        self.run_id: str | None = None
        self.waiting_points = 0
        self._uri, self._description, self._parent, self._every = tracking_uri, description, parent, every
        self._ledger = Ledger(directory, tracking_uri)
        self._client: MlflowClient | None = None
        self._counting = threading.Lock()
        self._records: list[Record] = []
        self._position = 0
        self._steps: dict[str, int] = {}

    def keep(self, ending: Ending | None = None) -> None:
        """Saves on the run's storage what a later delivery needs, whether the server answers or not."""
        parent = self._parent.directory.uri if self._parent else None
        self._ledger.note_description(self._description, parent=parent, every=self._every)
        if ending is not None:
            self._ledger.note_ending(ending)

    def take(self, records: Sequence[Record]) -> None:
        """Adds the journal's next records, starting with its first; any thread may call it.

        Records of earlier drivers must be added before the first `send`, which finds out how many of them have arrived.
        """
        with self._counting:
            self._records += records
            self.waiting_points += sum(len(self._sent(record)) for record in records)

    def send(self, watch: Callable[[int], None] = unwatched) -> None:
        """Finds or creates the MLflow run, then sends every record that has not arrived.

        `watch` is called with the number of waiting points, at first and after each batch. Raises whatever MLflow does.
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
        """Uploads the ending's files and tags and sets the run's status. Raises whatever MLflow does."""
        assert self._client is not None
        assert self.run_id is not None
        for name, content in ending.files.items():
            log_file(self._client, self.run_id, name, content)
        for key, value in ending.tags.items():
            self._client.set_tag(self.run_id, key, value)
        self._client.set_terminated(self.run_id, ending.status)
        self._ledger.note_delivered(self._position)

    def refusal(self, error: Exception) -> RefusedError | None:
        """The refusal behind an error of `send` or `end`; None for an outage."""
        found = refusal_of(error, self._uri, has_answered=self.run_id is not None)
        if found is None or found.of_store or self._client is None or self.run_id is None:
            return found
        try:
            check_run(self._client, self._client.get_run(self.run_id))
        except RefusedError as precise:
            return precise
        except MlflowException as other:
            logger.debug("could not find out why MLflow refuses: %s", other)
        return found

    def _next_batch(self) -> tuple[list[Record], list[Metric]]:
        """The first waiting records that fit into one call, and their metrics.

        Steps that a restarted session repeated are left out if the server already has them.
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
        """The metrics of a record that are sent to MLflow."""
        if not isinstance(record, Metrics) or (record.step % self._every and not record.is_evaluation):
            return {}
        return record.values

    def _note(self, batch: list[Record]) -> None:
        """Counts the first records as arrived."""
        with self._counting:
            self._position += len(batch)
            del self._records[: len(batch)]
            self.waiting_points -= sum(len(self._sent(record)) for record in batch)
        for record in batch:
            if isinstance(record, Metrics):
                for key in record.values:
                    self._steps[key] = max(record.step, self._steps.get(key, -1))

    def _start(self) -> str:
        """The id of the MLflow run, created if needed; reads how many records an earlier driver has delivered."""
        self._client = open_client(self._uri)
        run = self._earlier()
        if run is None:
            return self._create()
        self._client.update_run(run.info.run_id, status="RUNNING")
        self._note(self._records[: int(run.data.tags.get(POSITION_TAG, 0))])
        return run.info.run_id

    def _earlier(self) -> Run | None:
        """The MLflow run that an earlier driver created; None if there is none to continue.

        Raises RefusedError if it or its experiment was deleted, unless another experiment is given now.
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
            shown = without_credentials(self._uri)
            logger.warning("MLflow at %s no longer has the run %s; creating a new one", shown, run_id)
            return None
        if run.info.lifecycle_stage == LifecycleStage.DELETED and self._is_elsewhere(run):
            return None
        check_run(self._client, run)
        return run

    def _is_elsewhere(self, run: Run) -> bool:
        """Whether a run is in a deleted experiment that is not the one given now."""
        assert self._client is not None
        experiment = self._client.get_experiment(run.info.experiment_id)
        return experiment.lifecycle_stage == LifecycleStage.DELETED and experiment.name != self._description.experiment

    def _create(self) -> str:
        """The id of a new MLflow run as described, or of the one that a lost answer left behind."""
        assert self._client is not None
        experiment, key = ensure_experiment(self._client, self._description.experiment), self._ledger.key()
        run_id = self._with_key(experiment, key) or self._create_empty(experiment, key)
        params = [Param(key, str(value)) for key, value in self._description.params.items()]
        for first in range(0, len(params), _PARAMS_PER_BATCH):
            self._client.log_batch(run_id, params=params[first : first + _PARAMS_PER_BATCH])
        self._client.log_inputs(run_id, [_input(entry) for entry in self._description.data_sets])
        for name, text in self._description.texts.items():
            log_file(self._client, run_id, name, text.encode())
        self._ledger.note_run(run_id)
        return run_id

    def _with_key(self, experiment: str, key: str) -> str | None:
        """The id of the MLflow run with that key, if the server has one."""
        assert self._client is not None
        found = self._client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        return found[0].info.run_id if found else None

    def _create_empty(self, experiment: str, key: str) -> str:
        assert self._client is not None
        tags = self._description.tags | self._parent_tag() | {KEY_TAG: key}
        return self._client.create_run(experiment, tags=tags, run_name=self._description.name).info.run_id

    def _parent_tag(self) -> dict[str, str]:
        if self._parent is None:
            return {}
        if self._parent.run_id is None:
            raise MlflowException("the parent run has not started")
        return {MLFLOW_PARENT_RUN_ID: self._parent.run_id}


def _input(entry: DataSet) -> DatasetInput:
    source = json.dumps({"uri": without_credentials(entry.source)})
    profile = json.dumps({"images": entry.images, "classes": entry.classes})
    # MLflow accepts digests of up to 36 characters.
    data_set = Dataset(entry.name, entry.digest[:36], "dist_resnet", source, profile=profile)
    return DatasetInput(data_set, [InputTag(MLFLOW_DATASET_CONTEXT, entry.context)])


def _hardware_tags(records: Sequence[Record]) -> list[RunTag]:
    """The hardware of the newest session among the records, as rank 0 reported it."""
    sessions = [record for record in records if isinstance(record, Session) and record.device is not None]
    return [RunTag("hardware.workers", f"{each.world_size} x {each.device}") for each in sessions[-1:]]
