"""Brings a run's tracking to a server after the run, or to another server."""

from dataclasses import dataclass

from dist_resnet.tracking.card import Ending
from dist_resnet.tracking.ledger import Ledger
from dist_resnet.tracking.mlflow_sink import MlflowSink
from dist_resnet.tracking.storage import RunDirectory


def deliver(directory: RunDirectory, tracking_uri: str, *, wait_seconds: float) -> bool:
    """Brings everything a run's directory holds to a server, its parent first; whether it arrived in that time.

    A server that has a part of it gets the rest. Raises FileNotFoundError where the run was never tracked.
    """
    ledger = Ledger(directory, tracking_uri)
    if ledger.is_delivered():
        return True
    card, parent_uri, every = ledger.card()
    parent = None
    if parent_uri is not None:
        above = RunDirectory(parent_uri)
        deliver(above, tracking_uri, wait_seconds=wait_seconds)
        parent = _Known(above, Ledger(above, tracking_uri).run_id())
    sink = MlflowSink(tracking_uri, directory, card, parent=parent, every=every)
    ending = ledger.ending() or Ending(status="KILLED")
    sink.close(ending.status, ending.files, tags=ending.tags, wait_seconds=wait_seconds)
    return sink.is_delivered


@dataclass
class _Known:
    directory: RunDirectory
    run_id: str | None
