"""Ctrl-C and SIGTERM on the driver: the first stops the run with a checkpoint, the second at once."""

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
    """Within the block the first SIGINT or SIGTERM asks the run or the sweep in a directory to stop, by `stop.request`.

    The second raises KeyboardInterrupt. Outside the main thread, where Python handles no signals, it does nothing.
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
        # In a thread, because a signal interrupts anything, and the storage may be slow.
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
        what=f"cannot ask the workers to stop through {directory.uri}",
        seconds=_SECONDS_TO_ASK,
    )
