"""Jobs as a user starts them, but within this process: what ends before any work need not wait for imports."""

import contextlib
import io
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

JOBS = Path(__file__).parents[2] / "jobs"


def run_inside(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs jobs/NAME.py as the main program with these arguments; its exit code and what it wrote."""
    job = str(JOBS / f"{name}.py")
    told, complained = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        mock.patch.object(sys, "argv", [job, *arguments]),
        mock.patch.dict(os.environ),
        contextlib.redirect_stdout(told),
        contextlib.redirect_stderr(complained),
    ):
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            runpy.run_path(job, run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    assert isinstance(code, int), code
    return subprocess.CompletedProcess([job, *arguments], code, told.getvalue(), complained.getvalue())
