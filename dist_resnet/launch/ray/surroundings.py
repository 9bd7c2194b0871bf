"""Checks, before Ray starts, for faults of the environment on which it would fail late or without a message."""

import os
import re
import sys
import tempfile
from pathlib import Path

from ray.exceptions import AuthenticationError

from dist_resnet.launch.ray import internals

# The longest path in a Unix socket's address, without the terminating zero.
_MOST_SOCKET_BYTES = 107
_SPECIAL_TO_A_SHELL = re.compile(r"[\s\"'\\$`&|;<>()*?\[]|\{[^}]*,")


def check() -> None:
    """Raises ValueError, with the variable to set, if this process's own Ray could not work here."""
    check_executable(sys.executable)
    folder = internals.temporary_folder()
    check_socket_paths(folder)
    check_writable(folder, f"Ray keeps its sessions there; set {_variable()} to a writable folder")
    check_token(os.path.expanduser("~/.ray"))


def check_executable(path: str) -> None:
    """Raises ValueError if a shell could not run the Python at a path, which Ray gives its workers unquoted."""
    if special := _SPECIAL_TO_A_SHELL.search(path):
        raise ValueError(
            f"Ray cannot start workers with the Python {path!r}: its path contains {special[0][0]!r}; set "
            "UV_PROJECT_ENVIRONMENT to a path without it, for `uv sync` and `uv run`, or clone to one"
        )


def check_socket_paths(folder: str) -> None:
    """Raises ValueError if the paths of a session's sockets in a folder for temporary files would be too long."""
    if not os.path.isabs(folder):
        raise ValueError(
            f"Ray needs an absolute path of the folder for temporary files, got {os.path.dirname(folder)!r}; set "
            f"{_variable()} to a path that starts with /, or unset it for /tmp"
        )
    # Ray's pattern: time and process.
    session = f"session_2026-01-01_00-00-00_000000_{os.getpid()}"
    length = len(os.fsencode(os.path.join(folder, session, "sockets", "plasma_store")))
    if length > _MOST_SOCKET_BYTES:
        raise ValueError(
            f"the path of the folder for temporary files {folder} is too long: Ray's sockets need {length} bytes of at "
            f"most {_MOST_SOCKET_BYTES}; set RAY_TMPDIR to a path at least {length - _MOST_SOCKET_BYTES} bytes "
            "shorter, such as /tmp"
        )


def check_writable(folder: str, advice: str) -> None:
    """Raises ValueError if no file can be created in a folder or, if it does not exist, in its nearest parent."""
    existing = Path(folder).absolute()
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"\0")
    except OSError as error:
        raise ValueError(f"{folder} is not writable ({error.strerror or error}); {advice}") from error


def check_token(folder: str) -> None:
    """Raises ValueError if Ray needs a token, has none and could not write a new one to `folder`, ~/.ray."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    try:
        if internals.has_token():
            return
    except AuthenticationError as error:
        raise ValueError(
            f"Ray finds no token at RAY_AUTH_TOKEN_PATH {os.environ.get('RAY_AUTH_TOKEN_PATH', '')}; unset it, "
            "or write one there with `ray get-auth-token --generate`"
        ) from error
    check_writable(
        folder,
        "Ray keeps its token there; set RAY_AUTH_TOKEN to 32 or more random characters, or HOME to another folder",
    )


def _variable() -> str:
    """The variable that decides where Ray keeps temporary files."""
    return "TMPDIR" if "TMPDIR" in os.environ and "RAY_TMPDIR" not in os.environ else "RAY_TMPDIR"
