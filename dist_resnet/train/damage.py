"""Damaged images of a run: each is named in the journal once, and too many of them end the run."""

import dataclasses
import logging
from collections.abc import Iterable, Sequence

from dist_resnet.data.input.batch import Batch, Damaged
from dist_resnet.tracking import records as journal
from dist_resnet.tracking.recorder import Recorder
from dist_resnet.worker import Worker

logger = logging.getLogger(__name__)

_MOST_LOGGED = 10


class TooDamagedError(Exception):
    """More of the training images are damaged than the execution allows, or all validation images are."""


class DamageRecord:
    """Collects the damaged images of all workers. Apart from their absence they do not affect training."""

    def __init__(
        self, worker: Worker, recorder: Recorder, *, images: int, fraction: float, records: Iterable[journal.Record]
    ) -> None:
        """`images`: images of the training split; `fraction` of them may be damaged. `records`: rank 0's journal."""
        self._worker, self._recorder = worker, recorder
        self._images, self._fraction = images, fraction
        self._named = {(record.split, record.index) for record in records if isinstance(record, journal.Damaged)}
        self._found: dict[int, Damaged] = {}

    def add(self, batch: Batch) -> None:
        """Adds the damaged images of a ghost batch."""
        self._found |= {image.index: image for image in batch.damaged}

    def report(self, step: int) -> None:
        """Records the images added on all workers since the last call; all workers call it together.

        Raises TooDamagedError, on every worker, once there are too many.
        """
        new, self._found = list(self._found.values()), {}
        self._name("train", sorted(self._worker.gather(new), key=lambda image: image.index))
        found = self._worker.from_rank_zero(sum(split == "train" for split, _ in self._named))
        self._recorder.metrics(step, {"data/damaged_images": float(found)})
        if found > self._fraction * self._images:
            raise TooDamagedError(
                f"{found} of the {self._images} training images are damaged, more than the fraction {self._fraction:g} "
                "that --execution.max-damaged-fraction allows; the journal lists them by file and row; repair the data "
                "or allow more, then run the same command"
            )

    def name_validation(self, images: Sequence[Damaged]) -> None:
        """Records validation images that an evaluation counted as errors."""
        self._name("validation", images)

    def _name(self, split: str, images: Sequence[Damaged]) -> None:
        for image in images:
            if (split, image.index) in self._named:
                continue
            self._named.add((split, image.index))
            self._recorder.event(journal.Damaged(split=split, **dataclasses.asdict(image)))
            if self._worker.rank == 0 and len(self._named) <= _MOST_LOGGED:
                effect = "is excluded from the loss" if split == "train" else "counts as an error"
                more = "; more of them are named only in the journal" if len(self._named) == _MOST_LOGGED else ""
                logger.warning("the %s image %s cannot be decoded and %s%s", split, image, effect, more)
