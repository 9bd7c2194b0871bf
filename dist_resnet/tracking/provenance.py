"""Where a run's numbers came from: commit, versions, hardware."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

from dist_resnet.storage.uri import without_credentials
from dist_resnet.terminal import escaped, program

PACKAGES = ("torch", "torchvision", "ray", "nvidia-dali-cuda130", "pyarrow", "mlflow", "numpy", "safetensors")


def collect() -> dict[str, str]:
    """Tags that say what ran: commit, Python, the packages of `PACKAGES` that are installed, machine, and the command
    unless the run was started from a notebook or a prompt.

    `commit` says what the tag holds without a checkout.
    """
    tags = {
        "commit": commit(),
        "version.python": platform.python_version(),
        "hardware.machine": platform.machine(),
        "hardware.cpu_cores": str(os.cpu_count()),
    }
    if name := program():
        tags["command"] = without_credentials(escaped(shlex.join([name, *sys.argv[1:]])))
    for package in PACKAGES:
        try:
            tags[f"version.{package}"] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return tags


def commit() -> str:
    """The commit of the checkout that this file is in, with `-dirty` if files differ from it.

    Without a checkout, as in a container image or a working directory shipped to a cluster, the environment variable
    DIST_RESNET_COMMIT; `unknown` if that is unset.
    """
    return os.environ.get("DIST_RESNET_COMMIT") or _commit()


def environment() -> str:
    """Every installed distribution with its version, one `name==version` per line, sorted."""
    found = {(item.metadata["Name"], item.version) for item in importlib.metadata.distributions()}
    return "".join(f"{name}=={version}\n" for name, version in sorted(found, key=str))


def _commit() -> str:
    folder = Path(__file__).resolve().parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        state = subprocess.run(["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("-dirty" if state.stdout.strip() else "")
