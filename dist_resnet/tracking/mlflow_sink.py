"""Delivers a run's journal to MLflow, on the driver, beside the training and never in its way.

The journal is the truth; this reads it as it grows. How many of its records have arrived is kept in a tag of the
MLflow run, written with each batch. A batch that is sent again after a doubtful answer makes no second point, because
MLflow drops points equal in key, step, value and time, and times are the journal's own.
"""

import json
import logging
import os
import shlex
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID

from dist_resnet.tracking import address
from dist_resnet.tracking.card import DataSet, Ending, RunCard
from dist_resnet.tracking.ledger import Ledger
from dist_resnet.tracking.outbox import Tail
from dist_resnet.tracking.provenance import without_credentials
from dist_resnet.tracking.storage import RunDirectory

logger = logging.getLogger(__name__)
# MLflow tells of its schema migrations line by line.
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)

POSITION_TAG = "dist_resnet.journal_position"
KEY_TAG = "dist_resnet.key"
_METRICS_PER_BATCH = 900
_PARAMS_PER_BATCH = 90
_SECONDS_BETWEEN_POLLS = 2.0


class Parent(Protocol):
    """The run that another one belongs to: its directory, and its id once the server has answered."""

    directory: RunDirectory
    run_id: str | None


class MlflowSink:
    """A background thread that keeps one MLflow run level with one journal.

    `card` describes the run when it is new; a run whose directory already names an MLflow run continues that one.
    With a `parent` the run is its child, and starts once the parent's has. Of the training metrics, those of every
    `every`-th step are sent. `run_id` is None until the server has answered once. `waiting_points` counts the journal's
    points that it has not taken.
    """

    def __init__(
        self,
        tracking_uri: str,
        directory: RunDirectory,
        card: RunCard,
        *,
        parent: Parent | None = None,
        every: int = 1,
    ) -> None:
        self.run_id: str | None = None
        self.waiting_points = 0
        self.is_delivered = False
        self.directory = directory
        self._uri, self._card, self._parent, self._every = tracking_uri, card, parent, every
        self._ledger = Ledger(directory, tracking_uri)
        self._client: MlflowClient | None = None
        self._tail, self._polling = Tail(directory), threading.Lock()
        self._records: list[dict[str, Any]] = []
        self._position = 0
        self._steps: dict[str, int] = {}
        self._down = False
        self._closing = threading.Event()
        self._ending: Ending | None = None
        self._is_kept = self._is_ending_kept = False
        self._thread = threading.Thread(target=self._work, name="mlflow-sink", daemon=True)
        self._thread.start()

    def close(
        self, status: str, files: dict[str, bytes], *, tags: dict[str, str] | None = None, wait_seconds: float = 60.0
    ) -> None:
        """Delivers what is left, attaches files and tags, ends the MLflow run with `status` (FINISHED, FAILED, KILLED).

        Waits no longer than `wait_seconds`; what could not be delivered stays in the run's directory, with a warning.
        """
        self._ending = Ending(status=status, files=files, tags=tags or {})
        self._closing.set()
        self._thread.join(wait_seconds)
        if not self.is_delivered:
            self._warn_of_the_rest()

    def _warn_of_the_rest(self) -> None:
        try:
            self._poll()
        except OSError as error:
            logger.warning("the journal cannot be read: %s", error)
        logger.warning(
            "MLflow at %s did not take the end of the run; %d points wait in %s; to deliver them: "
            "python jobs/deliver_tracking.py --run %s --tracking-uri %s",
            without_credentials(self._uri),
            self.waiting_points,
            self.directory.child("journal"),
            shlex.quote(self.directory.uri),
            shlex.quote(without_credentials(self._uri)),
        )

    def _work(self) -> None:
        while not self.is_delivered:
            closing = self._closing.is_set()
            try:
                self._keep()
                if self._parent is not None and self._parent.run_id is None and not closing:
                    self._closing.wait(_SECONDS_BETWEEN_POLLS)
                    continue
                self._level()
                if closing:
                    self._end()
            except Exception as error:
                # Whatever a server that is not well makes MLflow's client raise: it is an outage.
                self._report_down(error)
            else:
                self._report_up()
            if not self.is_delivered:
                # While closing, the event is set and no longer waits: only a failure gets here then.
                time.sleep(_SECONDS_BETWEEN_POLLS) if closing else self._closing.wait(_SECONDS_BETWEEN_POLLS)

    def _level(self) -> None:
        """Starts or finds the MLflow run, then sends every record that has not arrived."""
        self._poll()
        if self.run_id is None:
            self.run_id = self._start_run()
        while self._records:
            batch, metrics = self._next_batch()
            position = self._position + len(batch)
            tags = [RunTag(POSITION_TAG, str(position)), *_hardware_tags(batch)]
            assert self._client is not None
            self._client.log_batch(self.run_id, metrics=metrics, tags=tags)
            self._note(batch)

    def _next_batch(self) -> tuple[list[dict[str, Any]], list[Metric]]:
        """The records of one call, from the front of those that wait, and their metrics.

        A step that a restarted session did again is left out where the server has it from before.
        """
        batch: list[dict[str, Any]] = []
        metrics: list[Metric] = []
        steps = dict(self._steps)
        for record in self._records:
            values = self._sent(record)
            if batch and len(metrics) + len(values) > _METRICS_PER_BATCH:
                break
            batch.append(record)
            for key, value in values.items():
                if record["step"] > steps.get(key, -1):
                    metrics.append(Metric(key, value, int(record["time"] * 1000), record["step"]))
                    steps[key] = record["step"]
        return batch, metrics

    def _sent(self, record: dict[str, Any]) -> dict[str, float]:
        """The metrics of a record that are for MLflow."""
        if record["kind"] != "metrics":
            return {}
        thinned = record["step"] % self._every and "val/loss" not in record["values"]
        return {} if thinned else record["values"]

    def _note(self, batch: list[dict[str, Any]]) -> None:
        """Counts the records at the front as arrived."""
        self._position += len(batch)
        del self._records[: len(batch)]
        self.waiting_points -= sum(len(self._sent(record)) for record in batch)
        for record in batch:
            if record["kind"] == "metrics":
                for key in record["values"]:
                    self._steps[key] = max(record["step"], self._steps.get(key, -1))

    def _poll(self) -> None:
        """Takes in what the journal has got since the last call; of the thread, and of `close` at the end."""
        with self._polling:
            new = self._tail.poll()
            self._records += new
            self.waiting_points += sum(len(self._sent(record)) for record in new)

    def _keep(self) -> None:
        """Keeps on the storage what a later delivery needs, whether the server answers or not."""
        if not self._is_kept:
            parent = self._parent.directory.uri if self._parent else None
            self._ledger.note_card(self._card, parent=parent, every=self._every)
            self._is_kept = True
        if self._ending is not None and not self._is_ending_kept:
            self._ledger.note_ending(self._ending)
            self._is_ending_kept = True

    def _start_run(self) -> str:
        """The id of this run's MLflow run, made if need be; reads how far an earlier driver came."""
        self._client = open_client(self._uri)
        run_id = self._ledger.run_id()
        if run_id is not None:
            run = self._client.get_run(run_id)
            self._client.update_run(run_id, status="RUNNING")
            self._note(self._records[: int(run.data.tags.get(POSITION_TAG, 0))])
            return run_id
        experiment, key = ensure_experiment(self._client, self._card.experiment), self._ledger.key()
        run_id = self._made(experiment, key) or self._make(experiment, key)
        params = [Param(key, str(value)) for key, value in self._card.params.items()]
        for first in range(0, len(params), _PARAMS_PER_BATCH):
            self._client.log_batch(run_id, params=params[first : first + _PARAMS_PER_BATCH])
        self._client.log_inputs(run_id, [_input(entry) for entry in self._card.data_sets])
        for name, text in self._card.texts.items():
            self._client.log_text(run_id, text, name)
        self._ledger.note_run(run_id)
        return run_id

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

    def _end(self) -> None:
        assert self._client is not None
        assert self.run_id is not None
        assert self._ending is not None
        for name, content in self._ending.files.items():
            _log_bytes(self._client, self.run_id, name, content)
        for key, value in self._ending.tags.items():
            self._client.set_tag(self.run_id, key, value)
        self._client.set_terminated(self.run_id, self._ending.status)
        self._ledger.note_delivered(self._position)
        self.is_delivered = True

    def _report_down(self, error: Exception) -> None:
        if not self._down:
            reason = without_credentials((str(error).splitlines() or [type(error).__name__])[0])[:200]
            logger.warning(
                "MLflow at %s does not answer; training goes on, the journal keeps the metrics (%s)",
                without_credentials(self._uri),
                reason,
            )
        self._down = True

    def _report_up(self) -> None:
        if self._down:
            logger.warning("MLflow at %s answers again; the journal has been delivered", without_credentials(self._uri))
        self._down = False


def ensure_experiment(client: MlflowClient, name: str) -> str:
    """The id of the experiment of that name, made if need be; its artifacts lie beside an embedded store."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    location = None
    if client.tracking_uri.startswith("sqlite:///"):
        store = os.path.abspath(client.tracking_uri.removeprefix("sqlite:///"))
        location = Path(store).with_name("mlartifacts").as_uri()
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


def _hardware_tags(records: list[dict[str, Any]]) -> list[RunTag]:
    """What the newest session among the records trains on, as rank 0 saw it."""
    sessions = [record for record in records if record["kind"] == "session" and "device" in record]
    return [RunTag("hardware.workers", f"{each['world_size']} x {each['device']}") for each in sessions[-1:]]


def open_client(uri: str) -> MlflowClient:
    """A client of a server or store that gives up after seconds.

    A sqlite store gets its schema here, by one process at a time: several at once ruin the file.
    """
    address.set_client_limits()
    if not uri.startswith("sqlite:///"):
        return MlflowClient(uri)
    with FileLock(uri.removeprefix("sqlite:///") + ".lock"):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
        return client


def _log_bytes(client: MlflowClient, run_id: str, name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, name)
        with open(path, "wb") as file:
            file.write(content)
        client.log_artifact(run_id, path)
