"""Who else is told of a run's records as they are made, such as gauges for Prometheus."""

import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

Observer = Callable[[str, dict[str, Any]], None]
"""Is called with a record's kind and fields by whatever thread makes it, and waits for nothing."""


def nobody(kind: str, fields: dict[str, Any]) -> None:
    """Observes nothing."""


class Tolerated:
    """Passes records on to an observer until it fails: then there is one warning, and it is told no more.

    Nothing that only looks at a run may end it.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def __call__(self, kind: str, fields: dict[str, Any]) -> None:
        try:
            self._observer(kind, fields)
        except Exception as error:
            self._observer = nobody
            logger.warning("the run goes on without being observed: %s: %s", type(error).__name__, error)
