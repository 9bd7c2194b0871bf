"""How a run is told to stop with a checkpoint, and a sweep to have its trials do so: a file named `stop` in its
directory, whoever puts it there."""

import logging
import threading

from dist_resnet.tracking.run_directory import SWEEP_FILE, RunDirectory

logger = logging.getLogger(__name__)

FILE = "stop"
_DONE = b"stopped"
_SECONDS_BETWEEN_LOOKS = 1.0


def request(directory: RunDirectory) -> None:
    """Asks the workers of the run, or the trials of the sweep, in a directory to save a checkpoint and to stop."""
    if not directory.exists(SWEEP_FILE):
        directory.check_present()
    directory.write(FILE, b"")


def withdraw(directory: RunDirectory) -> None:
    """Takes back what `request` asked, so that the run or the sweep can go on."""
    directory.delete(FILE)


def confirm(directory: RunDirectory) -> None:
    """Writes down that a sweep which was asked to has stopped; a run says so in its journal."""
    directory.write(FILE, _DONE)


def is_confirmed(directory: RunDirectory) -> bool:
    """Whether a sweep has stopped as it was asked to, and not been started again."""
    return directory.exists(FILE) and directory.read(FILE) == _DONE


class StopWatch:
    """Looks every second, beside the loop that trains or waits for trials, whether it was asked to stop."""

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self._asked, self._over = threading.Event(), threading.Event()
        threading.Thread(target=self._look, name="stop-watch", daemon=True).start()

    def asked(self) -> bool:
        """Whether the run was asked to stop."""
        return self._asked.is_set()

    def close(self) -> None:
        """Looks no more."""
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
