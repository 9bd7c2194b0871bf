"""What the training loop calls to record a run; on ranks other than 0 it records nothing."""

from typing import Any

from dist_resnet.tracking.outbox import Journal
from dist_resnet.tracking.storage import RunDirectory


class Run:
    """Records a run's metrics and events in its journal. Make it with `Run.of_rank`."""

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal

    @classmethod
    def of_rank(cls, rank: int, directory: RunDirectory) -> "Run":
        """The recorder of one rank: rank 0 writes the journal, the others are silent."""
        return cls(Journal(directory) if rank == 0 else None)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Records metrics as they stand after `step` optimizer steps."""
        if self._journal:
            self._journal.append("metrics", step=step, values=values)

    def event(self, kind: str, **fields: Any) -> None:
        """Records that something happened, at once."""
        if self._journal:
            self._journal.append(kind, **fields)
            self._journal.flush(now=True)

    def flush(self, *, now: bool = False) -> None:
        """Hands what was recorded to the storage; `now` whatever the storage."""
        if self._journal:
            self._journal.flush(now=now)
