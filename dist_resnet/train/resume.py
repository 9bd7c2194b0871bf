"""Resuming: every worker loads the same newest undamaged checkpoint."""

import logging
import time

from dist_resnet.tracking import records
from dist_resnet.tracking.journal import read_journal
from dist_resnet.tracking.run_directory import RunDirectory
from dist_resnet.train import checkpoint
from dist_resnet.train.checkpoint import Checkpoint
from dist_resnet.train.context import RunContext
from dist_resnet.train.initial import load_initial
from dist_resnet.train.state import TrainState

logger = logging.getLogger(__name__)

# Sent by rank 0 in place of a step: there is no checkpoint, or the storage fails.
_NONE, _UNKNOWN = -1, -2


def resume(state: TrainState, context: RunContext, *, pause_seconds: float = 5.0) -> None:
    """Loads the newest undamaged checkpoint of a run, or its initial weights, into the state; all workers call it
    together.

    Rank 0 chooses it and, while the storage fails, lets the others wait. Raises OSError once the storage has failed for
    too long, ValueError as `newest_checkpoint` does.
    """
    found, step = _agree(context, pause_seconds)
    if step == _NONE:
        load_initial(state, context)
        return
    if found is None:
        found = context.patiently(lambda: _read_step(context.directory, step), "cannot be read")
    state.load(found.weights, found.slots, found.counters)


def newest_checkpoint(directory: RunDirectory) -> Checkpoint | None:
    """The newest undamaged checkpoint of a run; None if none was ever committed.

    Raises ValueError if all are damaged or gone, because a run never restarts from scratch silently; OSError if the
    storage fails.
    """
    directory.check_present()
    found = checkpoint.latest(directory)
    if found is None:
        steps = [record.step for record in read_journal(directory) if isinstance(record, records.Checkpoint)]
        if steps:
            raise ValueError(
                f"the journal of {directory.uri} records a checkpoint after step {steps[-1]}, but there is none under "
                f"{checkpoint.FOLDER}; restore it from a copy, or start a new run under another --execution.name"
            )
    return found


def _agree(context: RunContext, pause_seconds: float) -> tuple[Checkpoint | None, int]:
    """The newest checkpoint, read on rank 0 alone, and its step or _NONE, on every worker."""
    directory, worker = context.directory, context.worker
    found, step, failing_since = None, _UNKNOWN, None
    while step == _UNKNOWN:
        context.watchdog.alive()
        if worker.rank == 0:
            try:
                found = newest_checkpoint(directory)
                step = found.step if found else _NONE
            except OSError as error:
                if failing_since is None:
                    failing_since = time.monotonic()
                    logger.warning("the run's directory %s cannot be read (%s); retrying", directory.uri, error)
                if time.monotonic() - failing_since > context.patience_seconds:
                    raise
                time.sleep(pause_seconds)
        step = worker.from_rank_zero(step)
    if failing_since is not None:
        logger.warning("the storage works again after %.0f s", time.monotonic() - failing_since)
    return found, step


def _read_step(directory: RunDirectory, step: int) -> Checkpoint:
    """The checkpoint of a step that rank 0 has found. Raises FileNotFoundError if this machine does not see it."""
    found = checkpoint.read(directory, checkpoint.folder_of(step))
    if found is None:
        raise FileNotFoundError(
            f"this machine does not see {directory.child(checkpoint.folder_of(step))}; mount the storage on every node"
        )
    return found
