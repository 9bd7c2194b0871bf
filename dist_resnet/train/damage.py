"""The damaged images that a run meets: named in the journal once each, and too many of them end the run."""

import dataclasses
import logging
from collections.abc import Iterable, Sequence

from dist_resnet.data.input.batch import Batch, Damaged
from dist_resnet.tracking import records as journal
from dist_resnet.tracking.recorder import Recorder
from dist_resnet.worker import Worker

logger = logging.getLogger(__name__)

_TOLD_IN_THE_LOG = 10


class TooDamagedError(Exception):
    """More of the training images are damaged than the execution allows, or all validation images are."""


class DamageRecord:
    """Gathers the damaged images of all workers. Their effect on the numbers is none but that they are not seen."""

    def __init__(
        self, worker: Worker, run: Recorder, *, images: int, share: float, records: Iterable[journal.Record]
    ) -> None:
        """`images`: images of the training split; `share` of them may be damaged. `records`: rank 0's journal."""
        self._worker, self._run = worker, run
        self._images, self._share = images, share
        self._named = {(record.split, record.index) for record in records if isinstance(record, journal.Damaged)}
        self._found: dict[int, Damaged] = {}

    def add(self, batches: Sequence[Batch]) -> None:
        """Adds what this worker met in a step."""
        for batch in batches:
            self._found |= {image.index: image for image in batch.damaged}

    def report(self, step: int) -> None:
        """Names what was added on any worker since the last call; all workers call it together.

        Raises TooDamagedError, on every worker, once there are too many.
        """
        new, self._found = list(self._found.values()), {}
        self._name("train", sorted(self._worker.gather(new), key=lambda image: image.index))
        found = self._worker.from_rank_zero(sum(split == "train" for split, _ in self._named))
        self._run.metrics(step, {"data/damaged_images": float(found)})
        if found > self._share * self._images:
            raise TooDamagedError(
                f"{found} of the {self._images} training images are damaged, more than the share of {self._share:g} "
                "allowed (--execution.max-damaged-fraction); the journal lists them by file and row; repair the data, "
                "or allow more and run the same command"
            )

    def name_validation(self, images: Sequence[Damaged]) -> None:
        """Names validation images that an evaluation has counted as errors."""
        self._name("validation", images)

    def _name(self, split: str, images: Sequence[Damaged]) -> None:
        for image in images:
            if (split, image.index) in self._named:
                continue
            self._named.add((split, image.index))
            self._run.event(journal.Damaged(split=split, **dataclasses.asdict(image)))
            if self._worker.rank == 0 and len(self._named) <= _TOLD_IN_THE_LOG:
                effect = "is left out of the loss" if split == "train" else "counts as an error"
                more = "; further ones are named in the journal alone" if len(self._named) == _TOLD_IN_THE_LOG else ""
                logger.warning("the %s image %s cannot be decoded and %s%s", split, image, effect, more)
