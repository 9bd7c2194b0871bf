"""The order for shards as image indices: what its windows and spans add up to."""

import numpy as np

from dist_resnet.data.input.order import WindowedOrder


class IndexedOrder(WindowedOrder):
    """A `WindowedOrder` that tells which images make a ghost batch, not only where they are stored."""

    def __init__(self, group_rows: np.ndarray, **options: int) -> None:
        super().__init__(group_rows, **options)
        self._firsts = np.cumsum(group_rows) - group_rows

    def indices(self, step: int, ghost: int) -> np.ndarray:
        """Image indices of ghost batch `ghost` of step `step`: int64 [ghost_batch]."""
        parts = []
        for number, start, stop in self.spans(step, ghost):
            window = self.window(ghost, number)
            parts.append(self._firsts[window.row_groups[window.pieces[start:stop]]] + window.rows[start:stop])
        return np.concatenate(parts)
