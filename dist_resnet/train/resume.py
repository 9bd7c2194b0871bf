"""Where a start of the training loop takes over: the newest whole checkpoint, the same one on every worker."""

import logging
import time

from dist_resnet.tracking import records
from dist_resnet.tracking.journal import read_journal
from dist_resnet.tracking.run_directory import RunDirectory
from dist_resnet.train import checkpoint
from dist_resnet.train.checkpoint import Checkpoint
from dist_resnet.train.context import RunContext
from dist_resnet.train.state import TrainState

logger = logging.getLogger(__name__)

# What rank 0 says in place of a step: there is no checkpoint, or the storage does not tell.
_NONE, _UNKNOWN = -1, -2


def resume(state: TrainState, context: RunContext, *, pause_seconds: float = 5.0) -> None:
    """Puts the newest whole checkpoint of a run, if there is any, into the state; all workers call it together.

    Rank 0 says which one it is, and while the storage fails it that it is still trying. Raises OSError once it has
    failed for too long, and ValueError as `newest_checkpoint` does.
    """
    found, step = _agree(context, pause_seconds)
    if step == _NONE:
        return
    if found is None:
        found = context.patiently(lambda: _read_step(context.directory, step), "cannot be read")
    state.load(found.weights, found.slots, found.counters)


def newest_checkpoint(directory: RunDirectory) -> Checkpoint | None:
    """The newest whole checkpoint of a run, or None where none was ever committed.

    Raises ValueError where all are damaged or gone, for a run shall not silently begin anew, and OSError where the
    storage fails.
    """
    directory.check_present()
    found = checkpoint.latest(directory)
    if found is None:
        told = [told.step for told in read_journal(directory) if isinstance(told, records.Checkpoint)]
        if told:
            raise ValueError(
                f"the journal of {directory.uri} tells of a checkpoint after step {told[-1]}, but there is none under "
                f"{checkpoint.FOLDER}; restore it from a copy, or start anew under another --execution.name"
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
                    logger.warning("the run's directory %s cannot be read (%s); trying again", directory.uri, error)
                if time.monotonic() - failing_since > context.patience_seconds:
                    raise
                time.sleep(pause_seconds)
        step = worker.from_rank_zero(step)
    if failing_since is not None:
        logger.warning("the storage works again after %.0f s", time.monotonic() - failing_since)
    return found, step


def _read_step(directory: RunDirectory, step: int) -> Checkpoint:
    """The checkpoint of a step that rank 0 has seen. Raises FileNotFoundError where it cannot be seen from here."""
    found = checkpoint.read(directory, checkpoint.folder_of(step))
    if found is None:
        raise FileNotFoundError(f"{directory.child(checkpoint.folder_of(step))} is not seen on this machine")
    return found
