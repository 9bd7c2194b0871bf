"""Delivers a run's journal to MLflow in a thread of the driver, without ever delaying training.

The follower of the journal passes its records on; the sink reads no file, so an outage of the storage does not affect
it. Records wait in memory until MLflow has them. The server stores with each batch how many records have arrived; a
later driver passes the whole journal to a new sink, which continues from there.
"""

import logging
import shlex
import threading
import time
from collections.abc import Sequence

from dist_resnet.storage.uri import without_credentials
from dist_resnet.tracking import commands
from dist_resnet.tracking.mlflow.refusal import RefusedError, first_line
from dist_resnet.tracking.mlflow.run import MlflowRun, Parent
from dist_resnet.tracking.mlflow.run_description import Ending, RunDescription
from dist_resnet.tracking.records import Record
from dist_resnet.tracking.run_directory import RunDirectory

logger = logging.getLogger(__name__)


class MlflowSink:
    """A background thread that sends the records given to `take` to one MLflow run, every `seconds_between` seconds.

    `description`, `parent` and `every` are those of `MlflowRun`; `records` is the journal so far. While MLflow does not
    answer, the sink keeps trying. If MLflow refuses, `refusal` says why, and the sink retries once, at the end.
    """

    def __init__(
        self,
        tracking_uri: str,
        directory: RunDirectory,
        description: RunDescription,
        *,
        records: Sequence[Record] = (),
        parent: Parent | None = None,
        every: int = 1,
        seconds_between: float = 2.0,
    ) -> None:
        self._seconds_between = seconds_between
        self.is_delivered = False
        self.directory = directory
        self.refusal: RefusedError | None = None
        self._uri, self._parent = tracking_uri, parent
        self._run = MlflowRun(tracking_uri, directory, description, parent=parent, every=every)
        self._run.take(records)
        self._down = False
        self._closing = threading.Event()
        self._ending: Ending | None = None
        self._is_kept = self._is_ending_kept = False
        self._thread = threading.Thread(target=self._work, name="mlflow-sink", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id; None until the server has answered once."""
        return self._run.run_id

    @property
    def waiting_points(self) -> int:
        """The number of the journal's points that MLflow has not received."""
        return self._run.waiting_points

    def take(self, records: Sequence[Record]) -> None:
        """Adds the journal's next records; does not block."""
        self._run.take(records)

    def close(
        self, status: str, files: dict[str, bytes], *, tags: dict[str, str] | None = None, wait_seconds: float = 60.0
    ) -> None:
        """Sends the remaining records, files and tags, and ends the MLflow run: FINISHED, FAILED or KILLED.

        Waits at most `wait_seconds`, and not after a refusal. What could not be delivered stays in the run's directory;
        a warning says so.
        """
        self._ending = Ending(status=status, files=files, tags=tags or {})
        self._closing.set()
        self._thread.join(wait_seconds)
        if not self.is_delivered:
            self._warn_of_undelivered()

    def _warn_of_undelivered(self) -> None:
        shown = without_credentials(self._uri)
        logger.warning(
            "MLflow at %s does not have the end of the run%s; %d points wait in %s; to deliver them%s: "
            "%s --run %s --tracking-uri %s",
            shown,
            f" ({self.refusal})" if self.refusal else "",
            self.waiting_points,
            self.directory.child("journal"),
            " once that is fixed" if self.refusal else "",
            commands.job("deliver_tracking"),
            shlex.quote(self.directory.uri),
            shlex.quote(shown),
        )

    def _work(self) -> None:
        while not self.is_delivered:
            closing = self._closing.is_set()
            try:
                self._keep()
                if closing or self.refusal is None:
                    self._deliver(closing)
            except Exception as error:
                # MLflow's client may raise anything; whatever is not a refusal counts as an outage.
                self._report(error)
            if self.is_delivered or (closing and self.refusal is not None):
                return
            # While closing, the event is set and no longer waits; then only a failure gets here.
            time.sleep(self._seconds_between) if closing else self._closing.wait(self._seconds_between)

    def _deliver(self, closing: bool) -> None:
        """Sends the records and, while closing, ends the MLflow run; does nothing before the parent has started."""
        if self._parent is not None and self._parent.run_id is None:
            if self._parent.refusal is not None:
                # The parent's sink has logged it.
                self.refusal = self._parent.refusal
                return
            if not closing:
                return
        self._run.send()
        self.refusal = None
        if closing:
            assert self._ending is not None
            self._run.end(self._ending)
            self.is_delivered = True
        self._report_up()

    def _keep(self) -> None:
        """Saves on the storage what a later delivery needs."""
        ending = None if self._is_ending_kept else self._ending
        if not self._is_kept or ending is not None:
            self._run.keep(ending)
            self._is_kept, self._is_ending_kept = True, ending is not None

    def _report(self, error: Exception) -> None:
        refusal = self._run.refusal(error)
        if refusal is None:
            self._report_down(error)
        elif self.refusal is None:
            self.refusal = refusal
            logger.warning(
                "MLflow at %s refuses: %s; training continues and the journal keeps the metrics",
                without_credentials(self._uri),
                refusal,
            )

    def _report_down(self, error: Exception) -> None:
        if not self._down:
            logger.warning(
                "MLflow at %s does not answer (%s); training continues and the journal keeps the metrics",
                without_credentials(self._uri),
                first_line(error),
            )
        self._down = True

    def _report_up(self) -> None:
        if self._down:
            logger.warning(
                "MLflow at %s answers again; all waiting points are delivered", without_credentials(self._uri)
            )
        self._down = False
