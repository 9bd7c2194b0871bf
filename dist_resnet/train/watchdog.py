"""Kills a hung worker so that its launcher restarts it."""

import faulthandler
import sys
from typing import Self

# Opening data, compiling a network and its first step take longer than any later step.
_TIMES_WHILE_STARTING = 3


class Watchdog:
    """Ends this process, after writing every thread's stack to standard error, unless `alive` is called in time.

    A collective that waits for a dead host, a read that never returns and a stopped peer all look alike. It watches
    within a `with` block, which starts with the longer time for starting. A process has only one such clock.
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
        """Restarts the time; `starting` allows for work that takes longer than a step.

        Any thread may call it. After the `with` block it does nothing.
        """
        if not self._watches:
            return
        seconds = self._seconds * (_TIMES_WHILE_STARTING if starting else 1)
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)
