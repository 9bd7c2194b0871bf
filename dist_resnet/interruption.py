"""The line that an interrupted command prints. Importing this changes nothing and loads nothing."""

import os
import sys


def line(advice: str = "") -> str:
    """The line, with what to do next after a semicolon."""
    name = os.path.basename(sys.argv[0]).removesuffix(".py")
    return f"{name}: interrupted{advice and '; '}{advice}\n"


def write(text: str) -> None:
    """Writes to standard error at once, if that is possible."""
    try:  # noqa: SIM105
        os.write(2, text.encode("ascii", "backslashreplace"))
    except OSError:
        pass
