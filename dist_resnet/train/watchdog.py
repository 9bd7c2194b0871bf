"""A worker that stands still is ended, so that whoever started it sees a death and starts it again."""

import faulthandler
import sys


class Watchdog:
    """Ends this process, after writing every thread's stack to standard error, unless it hears `alive` in time.

    A collective that waits for a dead host, a read that never returns and a stopped peer all look alike from here.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def alive(self) -> None:
        """Starts the time anew."""
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=sys.__stderr__ or sys.stderr)

    def close(self) -> None:
        """Watches no more."""
        faulthandler.cancel_dump_traceback_later()
