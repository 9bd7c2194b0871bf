"""Checks of a database before MLflow opens it: address, driver, and whether it can be written."""

import os
import sqlite3
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sqlalchemy import create_engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import NullPool

from dist_resnet.storage.uri import without_credentials

ENGINES = ("sqlite", "postgresql", "mysql", "mssql")
_EXAMPLES = "sqlite:////FOLDER/mlflow.db or postgresql://USER@HOST/DATABASE"
# Failures that may pass: another process is writing, or a disk is full or unreachable for a while.
_TRANSIENT = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def parse(uri: str) -> URL | None:
    """A database's address in its parts; None if it is not a database's.

    Raises ValueError if it starts like a database's and does not parse.
    """
    if uri.partition(":")[0].partition("+")[0] not in ENGINES:
        return None
    shown = without_credentials(uri)
    try:
        url = make_url(uri)
    except (ArgumentError, ValueError) as error:
        raise ValueError(f"the tracking address {shown} does not parse; give {_EXAMPLES}") from error
    if url.get_backend_name() == "sqlite" and url.host:
        raise ValueError(
            f"the tracking address {shown} has no file after a third slash; give sqlite:////FOLDER/mlflow.db"
        )
    return url


def sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite address; None for other addresses and for a database in memory."""
    url = parse(uri)
    if url is None or url.get_backend_name() != "sqlite" or not url.database or ":memory:" in url.database:
        return None
    if url.database.startswith("file:"):
        return Path(unquote(urlsplit(url.database).path)).absolute()
    return Path(url.database).absolute()


def connect(uri: str) -> None:
    """Raises at once if a database cannot be opened; MLflow itself would retry for minutes."""
    if parse(uri) is None:
        return
    if (file := sqlite_file(uri)) is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(uri, poolclass=NullPool)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def check_driver(url: URL) -> None:
    """Raises ValueError if the Python package for such a database is not installed."""
    shown = without_credentials(url.render_as_string())
    try:
        url.get_dialect().import_dbapi()
    except NoSuchModuleError as error:
        raise ValueError(f"the tracking address {shown} names an unknown driver; give {_EXAMPLES}") from error
    except ImportError as error:
        raise ValueError(
            f"the tracking address {shown} needs the Python package {error.name or error}, which is not installed; "
            "install it (`uv sync --extra server` installs psycopg for postgresql://), or give the address of an "
            "MLflow server"
        ) from error


def check_sqlite(uri: str, *, to_write: bool, lock_seconds: float = 5.0) -> None:
    """Raises ValueError if a sqlite address is not a database or, with `to_write`, cannot be written.

    A file that is to be written need not exist yet. A database that is still locked after `lock_seconds`, or whose disk
    is full or fails, passes.
    """
    shown, path = without_credentials(uri), sqlite_file(uri)
    if path is None:
        raise ValueError(f"{shown} is a database in memory, lost at exit; give a file: sqlite:////FOLDER/mlflow.db")
    if path.exists():
        _check_file(uri, path, to_write, lock_seconds)
    elif to_write:
        _check_folder(path)
    else:
        raise ValueError(f"there is no tracking store {shown}; give the address of one, or of a server")


def _check_file(uri: str, path: Path, to_write: bool, lock_seconds: float) -> None:
    try:
        _try(uri, to_write, lock_seconds)
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _TRANSIENT:
            return
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise ValueError(
                f"the tracking store {path} is not a sqlite database ({error}); move it away, or give another address "
                "with --execution.tracking.uri or MLFLOW_TRACKING_URI"
            ) from error
        raise _not_writable(path, error) from error


def _try(uri: str, to_write: bool, lock_seconds: float) -> None:
    """Reads the database and starts a write as MLflow would, then rolls it back."""
    url = make_url(uri)
    arguments, options = url.get_dialect()().create_connect_args(url)
    settings: dict[str, Any] = {**options, "timeout": lock_seconds, "isolation_level": None}
    connection = sqlite3.connect(arguments[0], **settings)
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if to_write:
            connection.execute("BEGIN IMMEDIATE")
            # sqlite writes its journal into the folder only if a page changes.
            connection.execute(f"PRAGMA user_version = {version + 1}")
            connection.execute("ROLLBACK")
    finally:
        connection.close()


def _check_folder(path: Path) -> None:
    """Raises ValueError if a file cannot be created at a path whose folders may not exist either."""
    folder = next(folder for folder in path.parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _not_writable(path, error) from error


def _not_writable(path: Path, error: Exception) -> ValueError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return ValueError(
        f"the tracking store {path} cannot be written ({reason}); make it and its folder {os.path.dirname(path)} "
        "writable, or give another address with --execution.tracking.uri or MLFLOW_TRACKING_URI"
    )
