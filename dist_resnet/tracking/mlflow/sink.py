"""Delivers a run's journal to MLflow, on the driver, beside the training and never in its way.

Whoever follows the journal hands its records on; the sink itself reads no file, so an outage of the storage is none of
MLflow's. What MLflow has yet to take waits in memory. How many records have arrived is written down on the server with
each batch, and a later driver, which hands the whole journal to a sink of its own, goes on from there.
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
from dist_resnet.tracking.mlflow.run_description import Ending, RunCard
from dist_resnet.tracking.records import Record
from dist_resnet.tracking.run_directory import RunDirectory

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_DELIVERIES = 2.0


class MlflowSink:
    """A background thread that keeps one MLflow run level with what `take` is given of one journal.

    `card`, `parent` and `every` are those of `MlflowRun`; `records` is the journal so far. While MLflow does not
    answer, it is asked again every two seconds. Where it refuses, which waiting does not mend, `refusal` says why, and
    it is asked once more, at the end.
    """

    def __init__(
        self,
        tracking_uri: str,
        directory: RunDirectory,
        card: RunCard,
        *,
        records: Sequence[Record] = (),
        parent: Parent | None = None,
        every: int = 1,
    ) -> None:
        self.is_delivered = False
        self.directory = directory
        self.refusal: RefusedError | None = None
        self._uri, self._parent = tracking_uri, parent
        self._run = MlflowRun(tracking_uri, directory, card, parent=parent, every=every)
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
        """The journal's points that MLflow has not taken."""
        return self._run.waiting_points

    def take(self, records: Sequence[Record]) -> None:
        """Takes in the journal's next records, and waits for nothing."""
        self._run.take(records)

    def close(
        self, status: str, files: dict[str, bytes], *, tags: dict[str, str] | None = None, wait_seconds: float = 60.0
    ) -> None:
        """Delivers what was taken in, attaches files and tags, ends the MLflow run: FINISHED, FAILED or KILLED.

        Waits no longer than `wait_seconds`, and not for what is refused; what could not be delivered stays in the
        run's directory, with a warning.
        """
        self._ending = Ending(status=status, files=files, tags=tags or {})
        self._closing.set()
        self._thread.join(wait_seconds)
        if not self.is_delivered:
            self._warn_of_the_rest()

    def _warn_of_the_rest(self) -> None:
        shown = without_credentials(self._uri)
        logger.warning(
            "MLflow at %s did not take the end of the run%s; %d points wait in %s; to deliver them%s: "
            "%s jobs/deliver_tracking.py --run %s --tracking-uri %s",
            shown,
            f" ({self.refusal})" if self.refusal else "",
            self.waiting_points,
            self.directory.child("journal"),
            " once that is mended" if self.refusal else "",
            commands.python(),
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
                # Whatever a server that is not well makes MLflow's client raise: it is an outage, unless it refuses.
                self._report(error)
            if self.is_delivered or (closing and self.refusal is not None):
                return
            # While closing, the event is set and no longer waits: only a failure gets here then.
            time.sleep(_SECONDS_BETWEEN_DELIVERIES) if closing else self._closing.wait(_SECONDS_BETWEEN_DELIVERIES)

    def _deliver(self, closing: bool) -> None:
        """Brings the MLflow run level and, while closing, ends it; waits for its parent's before."""
        if self._parent is not None and self._parent.run_id is None:
            if self._parent.refusal is not None:
                # Said there.
                self.refusal = self._parent.refusal
                return
            if not closing:
                return
        self._run.level()
        self.refusal = None
        if closing:
            assert self._ending is not None
            self._run.end(self._ending)
            self.is_delivered = True
        self._report_up()

    def _keep(self) -> None:
        """Keeps on the storage what a later delivery needs."""
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
                "MLflow at %s refuses: %s; training goes on, the journal keeps the metrics",
                without_credentials(self._uri),
                refusal,
            )

    def _report_down(self, error: Exception) -> None:
        if not self._down:
            logger.warning(
                "MLflow at %s does not answer; training goes on, the journal keeps the metrics (%s)",
                without_credentials(self._uri),
                first_line(error),
            )
        self._down = True

    def _report_up(self) -> None:
        if self._down:
            logger.warning("MLflow at %s answers again; the journal has been delivered", without_credentials(self._uri))
        self._down = False
