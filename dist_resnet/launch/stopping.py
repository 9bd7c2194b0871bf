"""Ctrl-C and SIGTERM on the driver: the first asks for an orderly stop, the second ends it at once."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator

from dist_resnet.storage.patience import patiently
from dist_resnet.tracking import stop
from dist_resnet.tracking.run_directory import RunDirectory

logger = logging.getLogger(__name__)

_SECONDS_TO_ASK = 600.0


@contextlib.contextmanager
def stopping_on_signals(directory: RunDirectory) -> Iterator[None]:
    """Within the block a first SIGINT or SIGTERM asks the run or the sweep in a directory to stop, by `stop.request`.

    A second one is a KeyboardInterrupt. In another thread than the main one, which hears no signals, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def on_signal(number: int, _: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        name = signal.Signals(number).name
        logger.warning("%s: stopping with a checkpoint; send it again to stop at once", name)
        # Elsewhere, for a signal comes in the middle of anything, and a storage may be slow.
        threading.Thread(target=_ask, args=(directory,), name="stop", daemon=True).start()

    earlier = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _ask(directory: RunDirectory) -> None:
    patiently(
        lambda: stop.request(directory),
        what=f"the workers cannot be asked to stop through {directory.uri}",
        seconds=_SECONDS_TO_ASK,
    )
