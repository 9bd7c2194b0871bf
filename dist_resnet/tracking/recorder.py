"""What the training loop calls to record a run: rank 0 in its journal, and every rank to whoever observes it.

A call only adds to a list: a thread takes it to the storage, so that the loop waits for no disk and no network.
"""

import logging
import threading

from dist_resnet.tracking.journal import Journal
from dist_resnet.tracking.observer import Observer, Tolerated, nobody
from dist_resnet.tracking.records import Metrics, Record
from dist_resnet.tracking.run_directory import RunDirectory

logger = logging.getLogger(__name__)

_SECONDS_AFTER_A_FAILURE = 5.0


class Recorder:
    """Records a run's metrics and events in its journal. Make it with `Recorder.of_rank`."""

    def __init__(self, journal: Journal | None, observer: Observer) -> None:
        self._journal, self._observe = journal, Tolerated(observer)
        self._hurry, self._over = threading.Event(), threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)
        if journal:
            self._thread.start()

    @classmethod
    def of_rank(cls, rank: int, directory: RunDirectory, observer: Observer = nobody) -> "Recorder":
        """The recorder of one rank: rank 0 writes the journal; `observer` is told of every rank's own records."""
        return cls(Journal(directory) if rank == 0 else None, observer)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Records metrics as they stand after `step` optimizer steps."""
        if values:
            self._record(Metrics(step=step, values=values))

    def event(self, record: Record) -> None:
        """Records that something happened, and has it written without delay."""
        self._record(record)
        self._hurry.set()

    def flush(self) -> None:
        """Has what was recorded so far written without delay."""
        self._hurry.set()

    def commit(self) -> None:
        """Returns once everything recorded so far is durable. Raises OSError where the storage fails."""
        if self._journal:
            self._journal.commit()

    def close(self) -> None:
        """Writes what is left, if the storage lets it, and ends the thread."""
        if self._journal and not self._over.is_set():
            self._over.set()
            self._hurry.set()
            self._thread.join()
            try:
                self._journal.commit()
            except OSError as error:
                logger.warning("the journal's last records could not be written: %s", error)

    def _record(self, record: Record) -> None:
        if self._journal:
            self._journal.append(record)
        self._observe([record])

    def _write(self) -> None:
        assert self._journal is not None
        while not self._over.is_set():
            self._hurry.wait(self._journal.seconds_between_commits)
            self._hurry.clear()
            try:
                self._journal.commit()
                if self._failing:
                    logger.warning("the journal is written again")
                self._failing = False
            except OSError as error:
                if not self._failing:
                    logger.warning("the journal cannot be written (%s); its records wait in memory", error)
                self._failing = True
                self._over.wait(_SECONDS_AFTER_A_FAILURE)
