"""Ctrl-C before a command's main: importing this makes it end the process in one line, with 130, and no traceback.

What a command imports takes seconds. This is imported before all of it, so that it needs nothing that is not loaded. A
program or a notebook that imports the package to call it does not import this.
"""

import os
import sys

from dist_resnet import interruption

_INTERRUPTED = 130  # as a shell says it


def _hook(kind: type[BaseException], error: BaseException, traceback: object) -> None:
    # A prompt, where a job was imported for its recipe, goes on.
    if not issubclass(kind, KeyboardInterrupt) or hasattr(sys, "ps1"):
        sys.__excepthook__(kind, error, traceback)  # pyrefly: ignore
        return
    interruption.write(interruption.line())
    os._exit(_INTERRUPTED)


sys.excepthook = _hook
