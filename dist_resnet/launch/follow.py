"""Follows runs from the driver: reads each journal once, and passes new records to observers."""

import logging
import threading
from collections.abc import Callable
from typing import Any

from dist_resnet.launch.plan import Plan
from dist_resnet.storage.patience import patiently
from dist_resnet.tracking.journal import Tail
from dist_resnet.tracking.observer import Observer, Tolerated
from dist_resnet.tracking.records import ENDINGS, Ending, Finished, Record, TooDamaged, Tracking
from dist_resnet.tracking.run_directory import RunDirectory

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 1.0


class RunFollower:
    """Reads a run's journal as it grows, and passes new records to its observers."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.ending: Ending | None = None
        """How the run ended, by its newest record."""
        self._tail = Tail(directory)
        self._observers: list[Observer] = []
        self._looking = threading.Lock()

    def report(self, *observers: Observer) -> None:
        """Calls these observers at each look from now on; one that fails is not called again, with one warning."""
        self._observers += map(Tolerated, observers)

    def look(self) -> list[Record]:
        """The new records, possibly none, after passing them to the observers; may be called from any thread.

        Raises OSError if the storage fails, which loses nothing, and ValueError if the journal is damaged.
        """
        with self._looking:
            records = self._tail.poll()
            if records:
                self.ending = records[-1] if isinstance(records[-1], ENDINGS) else None
            for observe in self._observers:
                observe(records)
            return records

    def look_back(self) -> list[Record]:
        """All records read so far, read again. Raises as `look` does."""
        return self._tail.again()


class Lookout:
    """A thread that calls `look` every second until it is closed."""

    def __init__(self, look: Callable[[], object]) -> None:
        self._look, self._over = look, threading.Event()
        self._thread = threading.Thread(target=self._work, name="lookout", daemon=True)
        self._thread.start()

    def close(self, *, wait_seconds: float) -> None:
        """Looks once more, retrying for `wait_seconds` if the storage fails; then logs a warning."""
        self._over.set()
        self._thread.join()
        try:
            patiently(self._look, what="a journal cannot be read", seconds=wait_seconds)
        except (OSError, ValueError) as error:
            logger.warning("cannot read the end of a journal (%s); the same command delivers it to MLflow", error)

    def _work(self) -> None:
        while not self._over.wait(_SECONDS_BETWEEN_LOOKS):
            try:
                self._look()
            except OSError as error:
                logger.debug("cannot read a journal now: %s", error)
            except ValueError as error:
                logger.error("%s", error)
                return


def with_waiting_points(observer: Observer, waiting_points: Callable[[], int]) -> Observer:
    """An observer that passes records on, with the number of points not yet delivered to MLflow."""
    return lambda records: observer([*records, Tracking(waiting_points=waiting_points())])


def outcome(plan: Plan, ending: Ending | None) -> dict[str, Any]:
    """The summary of a run with this ending. Raises RuntimeError if its journal has no end."""
    if ending is None:
        raise RuntimeError(f"the workers returned, but the journal of {plan.directory.uri} has no end")
    finished = ending if isinstance(ending, Finished) else Finished()
    found = {"status": ending.kind, "steps": ending.steps if isinstance(ending, Finished) else ending.step}
    for key in ("epochs", "top1_error", "top5_error", "images_per_second", "weights_sha256"):
        found[key] = getattr(finished, key)
    if isinstance(ending, TooDamaged):
        found["reason"] = ending.reason
    weights = plan.directory.child(finished.model) if finished.model else None
    # `model_uri` becomes the address for MLflow's loaders once the model is registered.
    return found | {
        "fingerprint": plan.recipe.fingerprint(),
        "mlflow_run_id": None,
        "model_uri": weights,
        "weights_uri": weights,
    }
