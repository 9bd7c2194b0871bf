"""Follows runs from the driver: reads the journal of each once, and hands what is new to whoever wants to know."""

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
    """Reads a run's journal as it grows, and tells whoever observes it."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.ending: Ending | None = None
        """How the run ended, by its newest record."""
        self._tail = Tail(directory)
        self._observers: list[Observer] = []
        self._looking = threading.Lock()

    def report(self, *observers: Observer) -> None:
        """Tells these too, at each look from now on; one that fails costs a warning and is told no more."""
        self._observers += map(Tolerated, observers)

    def look(self) -> list[Record]:
        """Reads what is new, tells it, be it nothing, and returns it; from any thread.

        Raises OSError where the storage fails, which loses nothing, and ValueError where the journal is damaged.
        """
        with self._looking:
            records = self._tail.poll()
            if records:
                self.ending = records[-1] if isinstance(records[-1], ENDINGS) else None
            for observe in self._observers:
                observe(records)
            return records

    def look_back(self) -> list[Record]:
        """All that was read so far, read once more. Raises as `look` does."""
        return self._tail.again()


class Lookout:
    """A thread that looks every second, until it is closed."""

    def __init__(self, look: Callable[[], object]) -> None:
        self._look, self._over = look, threading.Event()
        self._thread = threading.Thread(target=self._work, name="lookout", daemon=True)
        self._thread.start()

    def close(self, *, wait_seconds: float) -> None:
        """Looks once more, for as long as that if the storage fails; what could not be seen costs a warning."""
        self._over.set()
        self._thread.join()
        try:
            patiently(self._look, what="a journal cannot be read", seconds=wait_seconds)
        except (OSError, ValueError) as error:
            logger.warning("the end of a journal was not seen (%s); the same command brings it to MLflow", error)

    def _work(self) -> None:
        while not self._over.wait(_SECONDS_BETWEEN_LOOKS):
            try:
                self._look()
            except OSError as error:
                logger.debug("a journal could not be read just now: %s", error)
            except ValueError as error:
                logger.error("%s", error)
                return


def with_waiting_points(observer: Observer, waiting_points: Callable[[], int]) -> Observer:
    """Is told the same, and how many of the journal's points MLflow has yet to take."""
    return lambda records: observer([*records, Tracking(waiting_points=waiting_points())])


def outcome(plan: Plan, ending: Ending | None) -> dict[str, Any]:
    """The summary of a run that ended so. Raises RuntimeError where its journal has no end."""
    if ending is None:
        raise RuntimeError(f"the workers returned, but the journal of {plan.directory.uri} has no end")
    finished = ending if isinstance(ending, Finished) else Finished()
    found = {"status": ending.kind, "steps": ending.steps if isinstance(ending, Finished) else ending.step}
    for key in ("epochs", "top1_error", "top5_error", "images_per_second", "weights_sha256"):
        found[key] = getattr(finished, key)
    if isinstance(ending, TooDamaged):
        found["reason"] = ending.reason
    weights = plan.directory.child(finished.model) if finished.model else None
    # What MLflow's loaders take, once the model is registered.
    return found | {
        "fingerprint": plan.recipe.fingerprint(),
        "mlflow_run_id": None,
        "model_uri": weights,
        "weights_uri": weights,
    }
