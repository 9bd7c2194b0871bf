"""What a Ray that starts in this environment would fail at, late or without a word, found before it starts."""

import os
import re
import sys
import tempfile
from pathlib import Path

from ray.exceptions import AuthenticationError

from dist_resnet.launch.ray import internals

# Of a path in a Unix socket's address, without the zero at its end.
_MOST_SOCKET_BYTES = 107
_SPECIAL_TO_A_SHELL = re.compile(r"[\s\"'\\$`&|;<>()*?\[]|\{[^}]*,")


def check() -> None:
    """Raises ValueError, with the variable to set, if a Ray of this process's own could not work here."""
    check_executable(sys.executable)
    folder = internals.temporary_folder()
    check_socket_paths(folder)
    check_writable(folder, f"Ray keeps its sessions in it; set {_variable()} to a folder that can be written")
    check_token(os.path.expanduser("~/.ray"))


def check_executable(path: str) -> None:
    """Raises ValueError if a shell would not find the Python at a path as Ray writes it down for its workers."""
    if special := _SPECIAL_TO_A_SHELL.search(path):
        raise ValueError(
            f"Ray cannot start workers with the Python {path!r}: its path has a {special[0][0]!r}; set "
            "UV_PROJECT_ENVIRONMENT to a path without it, for `uv sync` and `uv run`, or clone to one"
        )


def check_socket_paths(folder: str) -> None:
    """Raises ValueError if the sockets of a session in a folder for temporary files cannot have their addresses."""
    if not os.path.isabs(folder):
        raise ValueError(
            f"Ray needs the whole path of a folder for temporary files, got {os.path.dirname(folder)!r}; set "
            f"{_variable()} to one that begins with /, or unset it for /tmp"
        )
    # As Ray names it: the moment and the process.
    session = f"session_2026-01-01_00-00-00_000000_{os.getpid()}"
    length = len(os.fsencode(os.path.join(folder, session, "sockets", "plasma_store")))
    if length > _MOST_SOCKET_BYTES:
        raise ValueError(
            f"the folder for temporary files {folder} is too long for Ray's sockets, {length} bytes of at most "
            f"{_MOST_SOCKET_BYTES}; set RAY_TMPDIR to a folder at least {length - _MOST_SOCKET_BYTES} bytes shorter, "
            "such as /tmp"
        )


def check_writable(folder: str, advice: str) -> None:
    """Raises ValueError if no file can be made in a folder, or where it would have to be made."""
    place = Path(folder).absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"\0")
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error.strerror or error}); {advice}") from error


def check_token(folder: str) -> None:
    """Raises ValueError if Ray wants a token, has none and could not keep a new one in a folder, ~/.ray."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    try:
        if internals.has_token():
            return
    except AuthenticationError as error:
        raise ValueError(
            f"Ray finds no token in RAY_AUTH_TOKEN_PATH {os.environ.get('RAY_AUTH_TOKEN_PATH', '')}; unset it, "
            "or write one there by `ray get-auth-token --generate`"
        ) from error
    check_writable(
        folder,
        "Ray keeps its token in it; set RAY_AUTH_TOKEN to 32 or more random characters, or HOME to another folder",
    )


def _variable() -> str:
    """The one that decides where Ray keeps temporary files."""
    return "TMPDIR" if "TMPDIR" in os.environ and "RAY_TMPDIR" not in os.environ else "RAY_TMPDIR"
