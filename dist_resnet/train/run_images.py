"""Files for people to look at, next to the journal; training does not depend on them."""

import io
import logging
from typing import Self

import numpy as np
import torch
from PIL import Image

from dist_resnet.data.datasets import normalization_of
from dist_resnet.data.input.normalize import to_pixels
from dist_resnet.recipe import Data
from dist_resnet.tracking.run_directory import RunDirectory

logger = logging.getLogger(__name__)

AUGMENTED_BATCH, CONFUSION = "augmented_batch.png", "confusion.npy"
_MOST_IMAGES = 32
_COLUMNS, _GAP = 8, 2


class RunImages:
    """Writes these files, on rank 0 only; if the storage fails, logs a warning."""

    def __init__(self, directory: RunDirectory | None) -> None:
        self._directory = directory

    @classmethod
    def of_rank(cls, rank: int, directory: RunDirectory) -> Self:
        """The writer of one rank; ranks other than 0 write nothing."""
        return cls(directory if rank == 0 else None)

    def augmented_batch(self, images: torch.Tensor, data: Data) -> None:
        """Writes the first images, float32 [N, 3, H, W], as the network sees them."""
        if self._directory is not None:
            self._write(AUGMENTED_BATCH, contact_sheet(to_pixels(images[:_MOST_IMAGES], normalization_of(data))))

    def confusion(self, counts: torch.Tensor) -> None:
        """Writes the number of images by label and predicted class: int64 [classes, classes]."""
        if self._directory is not None:
            buffer = io.BytesIO()
            np.save(buffer, counts.cpu().numpy(), allow_pickle=False)
            self._write(CONFUSION, buffer.getvalue())

    def _write(self, name: str, content: bytes) -> None:
        assert self._directory is not None
        try:
            self._directory.check_present()
            self._directory.write(name, content)
        except OSError as error:
            logger.warning("%s could not be written: %s", self._directory.child(name), error)


def contact_sheet(images: np.ndarray) -> bytes:
    """A PNG of uint8 [N, H, W, 3] in rows of eight."""
    num, height, width, _ = images.shape
    columns = min(num, _COLUMNS)
    rows = -(-num // columns)
    sheet = Image.new("RGB", (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP), "white")
    for number, image in enumerate(images):
        corner = (number % columns * (width + _GAP), number // columns * (height + _GAP))
        sheet.paste(Image.fromarray(image), corner)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
