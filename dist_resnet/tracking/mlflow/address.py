"""Addresses of MLflow tracking servers and stores, and how long to wait for them."""

import configparser
import os
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

from dist_resnet.storage.uri import without_credentials
from dist_resnet.tracking import commands
from dist_resnet.tracking.mlflow import database
from dist_resnet.tracking.run_directory import RunDirectory

VARIABLE, REGISTRY_VARIABLE = "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"
_SERVERS = {"http": 80, "https": 443}
_SETTINGS = {
    # MLflow's own defaults repeat a failed call for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    # MLflow would print the server's address with the password.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def set_client_limits() -> None:
    """Makes MLflow's client give up after seconds and print no address, unless the environment sets otherwise."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)


def check(uri: str, *, may_be_new: bool = True, resolve: bool = True) -> None:
    """Raises ValueError if MLflow cannot use a tracking address.

    With `resolve`, also if its host is not found, or its sqlite file cannot be written or, without `may_be_new`, does
    not exist.
    """
    url = database.parse(uri)
    if url is not None:
        if url.get_backend_name() == "sqlite" and (resolve or database.sqlite_file(uri) is None):
            database.check_sqlite(uri, to_write=may_be_new)
    elif uri.partition(":")[0] == "databricks":
        _check_databricks(uri)
    else:
        _check_server(uri, resolve)


def check_database(uri: str, *, resolve: bool = True) -> None:
    """Raises ValueError if a database's driver is not installed here or, with `resolve`, its host is not found."""
    url = database.parse(uri)
    if url is None:
        return
    database.check_driver(url)
    if resolve and url.host:
        _check_host(uri, url.host, url.port)


def store_of(directory: RunDirectory, tracking_uri: str | None, *, resolve: bool = True) -> str:
    """The tracking URI: `tracking_uri`, MLFLOW_TRACKING_URI, or the sqlite file next to the run, in this order.

    Raises ValueError as `check` does, also for MLFLOW_REGISTRY_URI.
    """
    return store_beside(directory.parent, tracking_uri, resolve=resolve)


def store_beside(storage: RunDirectory, tracking_uri: str | None, *, resolve: bool = True) -> str:
    """As `store_of`, for runs in a storage."""
    check_registry(resolve=resolve)
    uri = tracking_uri or os.environ.get(VARIABLE) or embedded_store(storage)
    is_from_environment = not tracking_uri and bool(os.environ.get(VARIABLE))
    _check_named(VARIABLE if is_from_environment else None, uri, resolve=resolve)
    return uri


def check_registry(*, resolve: bool = True) -> None:
    """Raises ValueError if MLFLOW_REGISTRY_URI, which every MLflow client opens, is set and MLflow cannot use it."""
    uri = os.environ.get(REGISTRY_VARIABLE, "")
    if uri.partition(":")[0] == "databricks-uc":
        _check_databricks(uri)
    elif uri:
        _check_named(REGISTRY_VARIABLE, uri, resolve=resolve)


def embedded_store(storage: RunDirectory) -> str:
    """The default tracking URI: a sqlite file next to the runs, or in `~/dist_resnet` for runs on an object store."""
    folder = storage.path("") if storage.is_local else os.path.expanduser("~/dist_resnet")
    os.makedirs(folder, exist_ok=True)
    # Characters that would point the address to another file.
    quoted = re.sub(r"%(?=[0-9a-fA-F]{2})", "%25", folder).replace("?", "%3F")
    return f"sqlite:///{quoted}/mlflow.db"


def _check_named(variable: str | None, uri: str, *, resolve: bool) -> None:
    """As `check`; the error names the environment variable that the address comes from."""
    try:
        check(uri, resolve=resolve)
        check_database(uri, resolve=resolve)
    except ValueError as error:
        raise ValueError(f"{variable}: {error}" if variable else str(error)) from error


def _check_server(uri: str, resolve: bool) -> None:
    shown = without_credentials(uri)
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"the tracking address {shown} does not parse: {error}") from error
    if parts.scheme not in _SERVERS or not parts.hostname:
        raise ValueError(
            "a tracking address is http://HOST:PORT, https://HOST, sqlite:////FOLDER/mlflow.db or postgresql://..., "
            f"got {shown!r}{_hint(uri)}"
        )
    if resolve:
        _check_host(uri, parts.hostname, port or _SERVERS[parts.scheme])


def _hint(uri: str) -> str:
    if re.fullmatch(r"[\w.-]+:\d+", uri):
        return f"; perhaps http://{uri}"
    if "://" in uri and not uri.startswith("file:"):
        return ""
    return f"; MLflow no longer tracks in folders: `{commands.mlflow()} migrate-filestore` moves one to a sqlite file"


def _check_host(uri: str, host: str, port: int | None) -> None:
    try:
        socket.getaddrinfo(host, port)
    except OSError as error:
        shown = without_credentials(uri)
        raise ValueError(f"the host of the tracking address {shown} is not found: {error}") from error


def _check_databricks(uri: str) -> None:
    """Raises ValueError if neither the environment nor a profile has credentials for Databricks."""
    profile = uri.partition("://")[2].partition(":")[0] or os.environ.get("DATABRICKS_CONFIG_PROFILE")
    if not profile and os.environ.get("DATABRICKS_HOST"):
        return
    path = Path(os.environ.get("DATABRICKS_CONFIG_FILE", "~/.databrickscfg")).expanduser()
    profiles = configparser.ConfigParser(default_section="")
    try:
        profiles.read(path)
    except (OSError, configparser.Error) as error:
        raise ValueError(f"the Databricks profiles in {path} cannot be read: {error}; repair the file") from error
    if not profiles.has_section(profile or "DEFAULT"):
        raise ValueError(
            f"{uri} needs credentials: set DATABRICKS_HOST and DATABRICKS_TOKEN, or add the profile "
            f"{profile or 'DEFAULT'} to {path}"
        )
