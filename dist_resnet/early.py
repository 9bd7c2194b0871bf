"""Ctrl-C before a command's main: importing this makes it end the process in one line, with 130, and no traceback.

What a command imports takes seconds. This is imported before all of it, so that it needs nothing that is not loaded.
"""

import os
import sys

_INTERRUPTED = 130  # as a shell says it


def interruption(advice: str = "") -> str:
    """The line that a command ends in when it is interrupted."""
    name = os.path.basename(sys.argv[0]).removesuffix(".py")
    return f"{name}: interrupted{advice and '; '}{advice}\n"


def write_line(line: str) -> None:
    """Writes to standard error at once, if that is possible."""
    try:  # noqa: SIM105
        os.write(2, line.encode("ascii", "backslashreplace"))
    except OSError:
        pass


def _hook(kind: type[BaseException], error: BaseException, traceback: object) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)  # pyrefly: ignore
        return
    write_line(interruption())
    os._exit(_INTERRUPTED)


sys.excepthook = _hook
