"""Ctrl-C before a command's main: importing this makes it end the process in one line, with 130, and no traceback.

A command's imports take seconds. This is imported before them, so it imports only what is loaded already. A program or
a notebook that calls the package does not import it.
"""

import os
import sys

from dist_resnet import interruption

_INTERRUPTED = 130  # a shell's exit code for SIGINT


def _hook(kind: type[BaseException], error: BaseException, traceback: object) -> None:
    # A prompt at which a job was imported for its recipe must not end.
    if not issubclass(kind, KeyboardInterrupt) or hasattr(sys, "ps1"):
        sys.__excepthook__(kind, error, traceback)  # pyrefly: ignore
        return
    interruption.write(interruption.line())
    os._exit(_INTERRUPTED)


sys.excepthook = _hook
