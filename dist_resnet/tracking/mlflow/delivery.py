"""Delivers a run's tracking to MLflow after the run, or to another server."""

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from dist_resnet.storage.uri import without_credentials
from dist_resnet.tracking.journal import Tail
from dist_resnet.tracking.mlflow.ledger import Ledger
from dist_resnet.tracking.mlflow.refusal import RefusedError, first_line
from dist_resnet.tracking.mlflow.run import MlflowRun, unwatched
from dist_resnet.tracking.mlflow.run_description import Ending
from dist_resnet.tracking.run_directory import RunDirectory

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_TRIES = 2.0


def deliver(
    directory: RunDirectory,
    tracking_uri: str,
    *,
    wait_seconds: float,
    experiment: str | None = None,
    watch: Callable[[int], None] = unwatched,
) -> bool:
    """Whether a run's journal, files and ending arrived at a server within `wait_seconds`; delivers the parent first.

    A server that has a part gets the rest. A new MLflow run goes to `experiment`, by default the run's own.
    `watch` is called with the number of waiting points, after each batch and at each retry while the server is down.
    Raises FileNotFoundError if the run was never tracked, RefusedError if the server refuses.
    """
    ledger = Ledger(directory, tracking_uri)
    if ledger.is_delivered():
        return True
    description, parent_uri, every = ledger.description()
    description = dataclasses.replace(description, experiment=experiment or description.experiment)
    parent = None
    if parent_uri is not None:
        above = RunDirectory(parent_uri)
        if not deliver(above, tracking_uri, wait_seconds=wait_seconds, experiment=experiment):
            return False
        parent = _Delivered(above, Ledger(above, tracking_uri).run_id())
    run = MlflowRun(tracking_uri, directory, description, parent=parent, every=every)
    run.keep()
    ending = ledger.ending() or Ending(status="KILLED")
    return _send(run, Tail(directory), ending, tracking_uri, wait_seconds, watch)


def _send(
    run: MlflowRun, tail: Tail, ending: Ending, uri: str, wait_seconds: float, watch: Callable[[int], None]
) -> bool:
    """Whether all of a run arrived in time; retries while the server is down."""
    deadline, is_down = time.monotonic() + wait_seconds, False
    while True:
        try:
            run.take(tail.poll())
            run.send(watch)
            run.end(ending)
            return True
        except Exception as error:
            # MLflow's client may raise anything; whatever is not a refusal counts as an outage.
            if refusal := run.refusal(error):
                raise refusal from error
            if not is_down:
                shown, seconds = without_credentials(uri), wait_seconds
                logger.warning(
                    "MLflow at %s does not answer (%s); retrying for %.0f s", shown, first_line(error), seconds
                )
            is_down = True
        if time.monotonic() >= deadline:
            return False
        watch(run.waiting_points)
        time.sleep(min(_SECONDS_BETWEEN_TRIES, max(0.0, deadline - time.monotonic())))


@dataclass
class _Delivered:
    """A parent whose MLflow run exists."""

    directory: RunDirectory
    run_id: str | None
    refusal: RefusedError | None = None
