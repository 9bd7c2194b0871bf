"""Addresses of MLflow tracking servers and stores, and how long to wait for them."""

import os
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

from dist_resnet.tracking.provenance import without_credentials
from dist_resnet.tracking.storage import RunDirectory

_SERVERS = {"http": 80, "https": 443}
_STORES = ("postgresql", "mysql", "mssql")
_SETTINGS = {
    # MLflow's own defaults repeat a failed call for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    # It would print the server's address with the password in it.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def set_client_limits() -> None:
    """Lets MLflow's client give up after seconds and print no address, unless the environment says otherwise."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)


def check(uri: str, *, may_be_new: bool = True, resolve: bool = True) -> None:
    """Raises ValueError where a tracking address does not parse or, with `resolve`, its host is not found.

    With `may_be_new` a sqlite file need not exist yet.
    """
    shown = without_credentials(uri)
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        if not may_be_new and not path.is_file():
            raise ValueError(f"there is no tracking store {shown}; give the address of one, or of a server")
        return
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"the tracking address {shown} does not parse: {error}") from error
    scheme = parts.scheme.split("+")[0]
    if scheme in _STORES and parts.hostname:
        return
    if scheme not in _SERVERS or not parts.hostname:
        raise ValueError(
            f"a tracking address is http://HOST:PORT, https://HOST, sqlite:///FILE or postgresql://..., got {shown!r}"
        )
    if not resolve:
        return
    try:
        socket.getaddrinfo(parts.hostname, port or _SERVERS[scheme])
    except OSError as error:
        raise ValueError(f"the host of the tracking address {shown} is not found: {error}") from error


def check_no_password(name: str, uri: str) -> None:
    """Raises ValueError where an address holds a secret: it would be in logs, journals and tags."""
    if re.search(r"://[^/\s]*:[^/\s]*@", uri) or "secret_key=" in uri:
        raise ValueError(
            f"{name} has a password in it, {without_credentials(uri)}; leave it out and give credentials by "
            "the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )


def store_of(directory: RunDirectory, tracking_uri: str | None, *, resolve: bool = True) -> str:
    """The tracking URI given, else MLFLOW_TRACKING_URI, else the embedded store beside a run.

    Raises ValueError where it cannot be one or, with `resolve`, its host is not found.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or embedded_store(directory.parent)
    check(uri, resolve=resolve)
    return uri


def embedded_store(storage: RunDirectory) -> str:
    """The tracking URI where none is given: a sqlite file beside the runs, or in the home directory where the runs
    are on an object store."""
    folder = storage.path("") if storage.is_local else os.path.expanduser("~/dist_resnet")
    os.makedirs(folder, exist_ok=True)
    return f"sqlite:///{folder}/mlflow.db"
