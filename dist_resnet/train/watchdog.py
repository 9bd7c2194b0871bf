"""A worker that stands still is ended, so that whoever started it sees a death and starts it again."""

import faulthandler
import sys
from typing import Self

# Opening data, compiling a network and its first step take longer than any later step.
_TIMES_WHILE_STARTING = 3


class Watchdog:
    """Ends this process, after writing every thread's stack to standard error, unless it hears `alive` in time.

    A collective that waits for a dead host, a read that never returns and a stopped peer all look alike from here. It
    watches within a `with` block, which begins with the time for starting; there is one clock in a process.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._watches = False

    def __enter__(self) -> Self:
        self._watches = True
        self.alive(starting=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._watches = False
        faulthandler.cancel_dump_traceback_later()

    def alive(self, *, starting: bool = False) -> None:
        """Starts the time anew; `starting` for what takes longer than steps do.

        Any thread may call it. After the `with` block it does nothing.
        """
        if not self._watches:
            return
        seconds = self._seconds * (_TIMES_WHILE_STARTING if starting else 1)
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)
