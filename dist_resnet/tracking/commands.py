"""Commands that work as printed in the shell that started this process."""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path


def python() -> str:
    """The command that runs a Python file: `uv run`, `python`, or this interpreter's path.

    `uv run` puts its environment only on the PATH of the process it starts, so the user's shell may not find a program
    that this process finds.
    """
    return _python(os.environ, sys.executable, sys.prefix, Path.cwd())


def job(name: str) -> str:
    """The command that runs `jobs/NAME.py`; with the file's absolute path if the working directory has no such file."""
    file = f"jobs/{name}.py"
    checkout = Path(__file__).parents[2] / file
    found = file if Path(file).exists() or not checkout.exists() else shlex.quote(str(checkout))
    return f"{python()} {found}"


def mlflow() -> str:
    """The command for MLflow's command line: `uv run mlflow`, `mlflow`, or `PYTHON -m mlflow`."""
    runner = python()
    return {"uv run": "uv run mlflow", "python": "mlflow"}.get(runner, f"{runner} -m mlflow")


def mlflow_at(tracking_uri: str) -> str:
    """As `mlflow`, with the server or store to use."""
    return f"MLFLOW_TRACKING_URI={shlex.quote(tracking_uri)} {mlflow()}"


def look_at(tracking_uri: str) -> str:
    """Where to see the tracked runs: a server's address, or the command that serves a store."""
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
