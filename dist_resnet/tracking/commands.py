"""Commands as they can be typed in the environment that this process was started from."""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path


def python() -> str:
    """What runs a Python file there: `uv run`, `python`, or this interpreter's path.

    `uv run` puts its environment on the PATH of what it starts and of nothing else, so that a name found here need
    not be found by the user's shell.
    """
    return _python(os.environ, sys.executable, sys.prefix, Path.cwd())


def mlflow() -> str:
    """What runs MLflow's command line there: `uv run mlflow`, `mlflow`, or `PYTHON -m mlflow`."""
    runner = python()
    return {"uv run": "uv run mlflow", "python": "mlflow"}.get(runner, f"{runner} -m mlflow")


def mlflow_at(tracking_uri: str) -> str:
    """MLflow's command line as `mlflow`, told which server or store it is about."""
    return f"MLFLOW_TRACKING_URI={shlex.quote(tracking_uri)} {mlflow()}"


def look_at(tracking_uri: str) -> str:
    """How to look at what is tracked: a server's address, or the command that serves a store."""
    if tracking_uri.startswith(("http://", "https://", "databricks")):
        return tracking_uri
    return f"{mlflow()} ui --backend-store-uri {shlex.quote(tracking_uri)}"


def _python(environment: Mapping[str, str], executable: str, prefix: str, folder: Path) -> str:
    if "UV" in environment:
        project = Path(prefix).parent
        return "uv run" if project in (folder, *folder.parents) else shlex.quote(executable)
    own = Path(executable).parent
    found = [shutil.which(name, path=environment.get("PATH", "")) for name in ("python", "mlflow")]
    return "python" if all(path and Path(path).parent == own for path in found) else shlex.quote(executable)
