"""Retries of storage operations: most outages end within minutes."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from dist_resnet.wording import one_line

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 15.0


def patiently(
    action: Callable[[], T],
    *,
    what: str,
    seconds: float,
    alive: Callable[[], None] = lambda: None,
    final: tuple[type[OSError], ...] = (),
) -> T:
    """The result of `action`, retried while it raises OSError; logs one warning, and one line on recovery.

    `what` is the failure's text in the log, such as "the journal of /runs/a cannot be written". `alive` is called at
    each try. Raises the last OSError after `seconds` of failures; one of the `final` kinds, which waiting does not
    fix, at once.
    """
    failing_since, pause = None, _FIRST_PAUSE_SECONDS
    while True:
        alive()
        try:
            result = action()
        except final:
            raise
        except OSError as error:
            now = time.monotonic()
            if failing_since is None:
                failing_since = now
                logger.warning("%s (%s); retrying for %.0f minutes", what, one_line(error), seconds / 60)
            if now - failing_since >= seconds:
                raise
            time.sleep(min(pause, max(0.01, failing_since + seconds - now)))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            continue
        if failing_since is not None:
            logger.warning("the storage works again after %.0f s", time.monotonic() - failing_since)
        return result
