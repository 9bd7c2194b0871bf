"""Tells MLflow's refusals, which waiting does not fix, from outages, which pass."""

import errno
import os
import re
import shlex

import requests
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Run
from mlflow.exceptions import MlflowException, RestException
from sqlalchemy.exc import DBAPIError

from dist_resnet.storage.uri import without_credentials
from dist_resnet.tracking import commands
from dist_resnet.tracking.mlflow import address, database

_CREDENTIALS = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to valid ones"
_PERMISSION = (
    "have its administrator give this user permission to edit, or name this server's host in its --allowed-hosts"
)
# MLflow's error codes for calls that will fail the same way again.
_FINAL = (
    "BAD_REQUEST",
    "ENDPOINT_NOT_FOUND",
    "FEATURE_DISABLED",
    "INVALID_PARAMETER_VALUE",
    "NOT_IMPLEMENTED",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
)
# SQLSTATE classes and codes: invalid authorization, no such database, no privilege, read-only transaction.
_FINAL_SQLSTATES = re.compile("28...|3D000|42501|25006")
# PostgreSQL's driver has no SQLSTATE for failures before the connection is open.
_FINAL_CONNECTIONS = re.compile(r'authentication failed|no password supplied|(database|role) ".*" does not exist')
# Messages of S3's client.
_FINAL_UPLOADS = re.compile(
    "AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|NoSuchBucket|Unable to locate credentials"
)
_LONGEST = 300
_SECONDS_FOR_AN_ANSWER = 10.0


class RefusedError(OSError):
    """A tracking server or store refuses; the message says in one line why and how to fix it.

    With `of_store` it refuses every run, otherwise only this one.
    """

    def __init__(self, reason: str, *, of_store: bool = True) -> None:
        super().__init__(reason)
        self.of_store = of_store


def refusal_of(error: Exception, uri: str, *, has_answered: bool) -> RefusedError | None:
    """The refusal behind an error; None for an outage.

    `has_answered`: whether MLflow has answered at this address before; "not found" then means that it is restarting.
    """
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, ImportError):
        return RefusedError(f"the Python package {error.name or error} is not installed; install it")
    return _of_sqlite(uri, has_answered) or _of_database(error) or _of_answer(error, uri, has_answered)


def refusal_of_a_file(error: Exception) -> RefusedError | None:
    """The refusal behind a failed upload of a file; None for an outage."""
    said = first_line(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RefusedError(f"its folder for files cannot be written ({said}); make it writable")
    if status in (401, 403) or _FINAL_UPLOADS.search(said):
        return RefusedError(f"its storage for files refuses ({said}); correct its credentials or its rights")
    return None


def check_experiment(client: MlflowClient, experiment_id: str) -> None:
    """Raises RefusedError if an experiment was deleted: MLflow then accepts nothing for it."""
    experiment = client.get_experiment(experiment_id)
    if experiment.lifecycle_stage == LifecycleStage.DELETED:
        raise RefusedError(
            f"its experiment {experiment.name} is deleted; restore it with `{commands.mlflow_at(_shown(client))} "
            f"experiments restore --experiment-id {experiment_id}`, or use another --execution.tracking.experiment",
            of_store=False,
        )


def check_run(client: MlflowClient, run: Run) -> None:
    """Raises RefusedError if a run or its experiment was deleted."""
    if run.info.lifecycle_stage != LifecycleStage.DELETED:
        return
    check_experiment(client, run.info.experiment_id)
    raise RefusedError(
        f"the run {run.info.run_id} is deleted; restore it with `{commands.mlflow_at(_shown(client))} "
        f"runs restore --run-id {run.info.run_id}`",
        of_store=False,
    )


def first_line(error: BaseException) -> str:
    """The first line of an MLflow error's message, without credentials."""
    return without_credentials((str(error).splitlines() or [type(error).__name__])[0])[:_LONGEST]


def _of_sqlite(uri: str, has_answered: bool) -> RefusedError | None:
    """Why a sqlite file cannot be used now; None if it can."""
    file = database.sqlite_file(uri)
    if file is None:
        return None
    if has_answered and not file.exists():
        return RefusedError(f"its database {file} is gone; put it back, or let the next delivery create a new one")
    try:
        address.check(uri)
    except ValueError as error:
        return RefusedError(str(error))
    return None


def _of_database(error: Exception) -> RefusedError | None:
    """A database server's final refusal; None for others of its errors."""
    cause = error if isinstance(error, DBAPIError) else error.__cause__
    if not isinstance(cause, DBAPIError):
        return None
    code = getattr(cause.orig, "sqlstate", None) or ""
    said = " ".join(str(cause.orig).split())
    if _FINAL_SQLSTATES.fullmatch(code) or _FINAL_CONNECTIONS.search(said):
        return RefusedError(
            f"{without_credentials(said)[:_LONGEST]}; correct the address, the credentials or the rights"
        )
    return None


def _of_answer(error: Exception, uri: str, has_answered: bool) -> RefusedError | None:
    if not isinstance(error, MlflowException):
        return None
    said, shown = first_line(error), without_credentials(uri)
    if "out-of-date database schema" in said:
        command = f"{commands.mlflow()} db upgrade {shlex.quote(shown)}"
        return RefusedError(f"its database schema is of another MLflow version; run `{command}`")
    status = _status(uri) if isinstance(error, RestException) and error.error_code == "INTERNAL_ERROR" else None
    if status == 401 or error.error_code in ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"):
        return RefusedError(f"it does not know this user ({said}); {_CREDENTIALS}")
    if status == 403 or error.error_code == "PERMISSION_DENIED":
        return RefusedError(f"it forbids this ({said}); {_PERMISSION}")
    if status == 404 or error.error_code == "ENDPOINT_NOT_FOUND":
        return None if has_answered else RefusedError("there is no MLflow there (404); correct the address")
    return RefusedError(said, of_store=False) if error.error_code in _FINAL else None


def _status(uri: str) -> int | None:
    """The HTTP status of a server's answer to a request with the environment's credentials; None without an answer.

    MLflow's client hides the status if the JSON is not MLflow's own, such as a gateway's.
    """
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    try:
        return requests.get(
            f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search",
            params={"max_results": 1},
            auth=(user, password) if user and password else None,
            headers={"Authorization": f"Bearer {token}"} if token and not user else {},
            timeout=_SECONDS_FOR_AN_ANSWER,
        ).status_code
    except requests.RequestException:
        return None


def _shown(client: MlflowClient) -> str:
    return without_credentials(client.tracking_uri)
