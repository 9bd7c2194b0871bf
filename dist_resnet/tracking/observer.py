"""Who else is told of a run's records as they are made, such as gauges for Prometheus."""

import logging
from collections.abc import Callable, Sequence

from dist_resnet.tracking.records import Record

logger = logging.getLogger(__name__)

Observer = Callable[[Sequence[Record]], None]
"""Is called with new records by whatever thread has them, and waits for nothing."""


def nobody(records: Sequence[Record]) -> None:
    """Observes nothing."""


class Tolerated:
    """Passes records on to an observer until it fails: then there is one warning, and it is told no more.

    Nothing that only looks at a run may end it.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def __call__(self, records: Sequence[Record]) -> None:
        try:
            self._observer(records)
        except Exception as error:
            self._observer = nobody
            logger.warning("the run goes on without being observed: %s: %s", type(error).__name__, error)
