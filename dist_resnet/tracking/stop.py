"""Stopping a run, or the trials of a sweep, with a checkpoint: a file named `stop` in its directory.

Anybody may create the file.
"""

import logging
import threading

from dist_resnet.tracking.run_directory import SWEEP_FILE, RunDirectory

logger = logging.getLogger(__name__)

FILE = "stop"
_DONE = b"stopped"
_SECONDS_BETWEEN_LOOKS = 1.0


def request(directory: RunDirectory) -> None:
    """Asks the run's workers, or the sweep's trials, to save a checkpoint and stop."""
    if not directory.exists(SWEEP_FILE):
        directory.check_present()
    directory.write(FILE, b"")


def withdraw(directory: RunDirectory) -> None:
    """Withdraws a `request`, so that the run or the sweep can resume."""
    directory.delete(FILE)


def confirm(directory: RunDirectory) -> None:
    """Records that a sweep has stopped on request; a run records this in its journal."""
    directory.write(FILE, _DONE)


def is_confirmed(directory: RunDirectory) -> bool:
    """Whether a sweep has stopped on request and was not started again."""
    return directory.exists(FILE) and directory.read(FILE) == _DONE


class StopWatch:
    """A thread that looks every second for a request to stop."""

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self._asked, self._over = threading.Event(), threading.Event()
        threading.Thread(target=self._look, name="stop-watch", daemon=True).start()

    def asked(self) -> bool:
        """Whether the run was asked to stop."""
        return self._asked.is_set()

    def close(self) -> None:
        """Ends the thread."""
        self._over.set()

    def _look(self) -> None:
        while not self._over.wait(_SECONDS_BETWEEN_LOOKS):
            try:
                found = self._directory.exists(FILE)
            except OSError as error:
                logger.debug("could not look for %s: %s", self._directory.child(FILE), error)
                continue
            if found:
                self._asked.set()
                return
