"""The order for shards as image indices: what its windows and spans add up to."""

from typing import Any

import numpy as np

from dist_resnet.data.input.order import WindowedOrder


class IndexedOrder(WindowedOrder):
    """A `WindowedOrder` that tells which images make a ghost batch, not only where they are stored."""

    def __init__(self, group_rows: np.ndarray, **options: Any) -> None:
        super().__init__(group_rows, **options)
        self._first_images = np.cumsum(group_rows) - group_rows

    def draws(self, step: int, ghost: int) -> np.ndarray:
        """The image's index, plus the number of images for each earlier draw of it: int64 [ghost_batch]."""
        parts = []
        for number, start, stop in self.spans(step, ghost):
            window = self.window(ghost, number)
            firsts = self._first_images[window.row_groups[window.pieces[start:stop]]]
            parts.append(firsts + window.rows[start:stop] + window.copies[start:stop] * self.num_images)
        return np.concatenate(parts)
