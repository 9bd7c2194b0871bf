"""Checkpoints written in the background: the training loop stops only for a copy in memory, on a GPU for its launch."""

import logging
import threading
import time
from collections.abc import Callable

from dist_resnet.storage.patience import patiently
from dist_resnet.tracking import records
from dist_resnet.tracking.recorder import Recorder
from dist_resnet.tracking.run_directory import RunDirectory
from dist_resnet.train import checkpoint
from dist_resnet.train.checkpoint import Snapshot
from dist_resnet.train.state import TrainState

logger = logging.getLogger(__name__)

_SECONDS_TO_CLOSE = 5.0


class CheckpointWriter:
    """Commits copies of the training state, one after the other, in a thread of rank 0.

    A checkpoint is committed once the journal up to its step, its files and, last, its manifest are on the storage. A
    newer copy replaces one that still waits. If the storage fails, the newest copy is retried for `patience_seconds`;
    then the loop's next call raises the error. The newest `keep` checkpoints and the one with the lowest validation
    error are kept; `errors` are those of earlier sessions by step.
    """

    def __init__(
        self,
        directory: RunDirectory,
        recorder: Recorder,
        *,
        keep: int,
        patience_seconds: float,
        errors: dict[int, float],
        grace_seconds: float = 60.0,
    ) -> None:
        self._grace_seconds = grace_seconds
        self._directory, self._recorder = directory, recorder
        self._keep, self._patience_seconds = keep, patience_seconds
        self._errors = dict(errors)
        self._waiting: Snapshot | None = None
        self._current: Snapshot | None = None
        self._taken_at = 0.0
        self._over = False
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
        self._thread.start()

    def save(self, state: TrainState) -> float:
        """Copies the state, as `Snapshot.of`; returns the seconds this took. Raises an earlier checkpoint's error."""
        start = time.perf_counter()
        snapshot = Snapshot.of(state)
        seconds = time.perf_counter() - start
        with self._changed:
            self._check()
            self._waiting = snapshot
            self._changed.notify_all()
        return seconds

    def note_error(self, step: int, error: float) -> None:
        """Notes the validation error after a step: the best checkpoint is kept however old it gets."""
        self._errors[step] = error

    def wait(self, alive: Callable[[], None]) -> None:
        """Returns once every copy is committed, calling `alive` every second. Raises the error of writing it."""
        with self._changed:
            self._check()
            while self._current or self._waiting:
                alive()
                self._changed.wait(1.0)
                self._check()

    def close(self) -> None:
        """Drops a waiting copy and gives the one being written a few seconds."""
        with self._changed:
            self._over, self._waiting = True, None
            self._changed.notify_all()
        self._thread.join(_SECONDS_TO_CLOSE)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        # A storage that neither fails nor answers, such as a network disk without its server.
        seconds = time.monotonic() - self._taken_at
        if self._current and seconds > self._patience_seconds + self._grace_seconds:
            raise TimeoutError(f"writing a checkpoint to {self._directory.uri} has not finished after {seconds:.0f} s")

    def _work(self) -> None:
        while self._take():
            try:
                self._commit()
            except Exception as error:
                self._error = error
            with self._changed:
                self._current = None
                self._changed.notify_all()

    def _take(self) -> bool:
        """Waits for a copy and makes it the current one; False if there will be none."""
        with self._changed:
            while self._waiting is None and not self._over:
                self._changed.wait()
            self._current, self._waiting = self._waiting, None
            self._taken_at = time.monotonic()
            return self._current is not None

    def _commit(self) -> None:
        start = time.perf_counter()
        step = patiently(
            self._write_newest,
            what=f"no checkpoint can be written to {self._directory.uri}, training continues meanwhile",
            seconds=self._patience_seconds,
        )
        self._recorder.event(records.Checkpoint(step=step, seconds=time.perf_counter() - start))
        try:
            checkpoint.prune(self._directory, newest=step, keep=self._keep, errors=dict(self._errors))
        except OSError as error:
            logger.warning("old checkpoints could not be deleted: %s", error)

    def _write_newest(self) -> int:
        with self._changed:
            if self._waiting is not None:
                self._current, self._waiting = self._waiting, None
            snapshot = self._current
        assert snapshot is not None
        self._directory.check_present()
        self._recorder.commit()
        checkpoint.save(self._directory, snapshot)
        return snapshot.step
