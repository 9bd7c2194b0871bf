"""Records metrics and events of the training loop: rank 0's in the journal, every rank's for its observer.

A call only adds to a list; a thread writes it to the storage, so the loop never waits for a disk or the network.
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
        """The recorder of one rank: rank 0 writes the journal; `observer` gets the records of this rank."""
        return cls(Journal(directory) if rank == 0 else None, observer)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Records the metrics after `step` optimizer steps."""
        if values:
            self.record(Metrics(step=step, values=values))

    def record(self, record: Record) -> None:
        """Records anything else."""
        if self._journal:
            self._journal.append(record)
        self._observe([record])

    def event(self, record: Record) -> None:
        """Records an event and has it written without delay."""
        self.record(record)
        self._hurry.set()

    def flush(self) -> None:
        """Has everything recorded so far written without delay; does not wait for it."""
        self._hurry.set()

    def commit(self) -> None:
        """Returns once everything recorded so far is durable. Raises OSError if the storage fails."""
        if self._journal:
            self._journal.commit()

    def close(self) -> None:
        """Writes the remaining records and ends the thread; if the storage fails, logs a warning."""
        if self._journal and not self._over.is_set():
            self._over.set()
            self._hurry.set()
            self._thread.join()
            try:
                self._journal.commit()
            except OSError as error:
                logger.warning("the journal's last records could not be written: %s", error)

    def _write(self) -> None:
        assert self._journal is not None
        while not self._over.is_set():
            self._hurry.wait(self._journal.seconds_between_commits)
            self._hurry.clear()
            try:
                self._journal.commit()
                if self._failing:
                    logger.warning("the journal can be written again")
                self._failing = False
            except OSError as error:
                if not self._failing:
                    logger.warning("the journal cannot be written (%s); its records wait in memory", error)
                self._failing = True
                self._over.wait(_SECONDS_AFTER_A_FAILURE)
