"""Observers of a run's records, such as the Prometheus gauges."""

import logging
from collections.abc import Callable, Sequence

from dist_resnet.tracking.records import Record

logger = logging.getLogger(__name__)

Observer = Callable[[Sequence[Record]], None]
"""Called with new records, from any thread; must not block."""


def nobody(records: Sequence[Record]) -> None:
    """Observes nothing."""


class Tolerated:
    """Passes records on to an observer; after its first failure logs one warning and no longer calls it.

    A failing observer never ends a run.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def __call__(self, records: Sequence[Record]) -> None:
        try:
            self._observer(records)
        except Exception as error:
            self._observer = nobody
            logger.warning("an observer of the run failed and is no longer called: %s: %s", type(error).__name__, error)
