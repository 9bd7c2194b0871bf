"""BN's running statistics of a whole network, kept, put back and shared as a few tensors whatever the depth.

Training computes them in every pass and a step keeps those of ghost batch 0: one variant of the network to compile or
record, where switching them off and on would make two.
"""

import contextlib
from collections.abc import Generator

import torch

from dist_resnet.worker import Worker


class RunningStatistics:
    """The running statistics of a network's trained BN layers, which become views of one tensor of each kind."""

    def __init__(self, model: torch.nn.Module) -> None:
        norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        # Frozen layers keep their statistics.
        self._norms = [norm for norm in norms if norm.weight.requires_grad]
        self._means, self._variances, self._counts = (
            _joined(self._norms, name) for name in ("running_mean", "running_var", "num_batches_tracked")
        )
        self._kept = [self._means.clone(), self._variances.clone()]

    @torch.no_grad()
    def keep(self) -> None:
        """Keeps means and variances as they are now, for `put_back`."""
        for kept, now in zip(self._kept, (self._means, self._variances), strict=True):
            kept.copy_(now)

    @torch.no_grad()
    def put_back(self) -> None:
        """Means and variances are again what they were at the last `keep`."""
        for kept, now in zip(self._kept, (self._means, self._variances), strict=True):
            now.copy_(kept)

    @contextlib.contextmanager
    def unchanged(self) -> Generator[None]:
        """After the block, means and variances are again what they were before it; it does not touch what is kept."""
        copies = self._means.clone(), self._variances.clone()
        yield
        with torch.no_grad():
            self._means.copy_(copies[0])
            self._variances.copy_(copies[1])

    @contextlib.contextmanager
    def uncounted(self) -> Generator[None]:
        """Within the block, passes do not count themselves, which would be a launch for each layer."""
        counts = [norm.num_batches_tracked for norm in self._norms]
        for norm in self._norms:
            norm.num_batches_tracked = None
        try:
            yield
        finally:
            for norm, count in zip(self._norms, counts, strict=True):
                norm.num_batches_tracked = count

    @torch.no_grad()
    def count(self) -> None:
        """Counts one pass."""
        self._counts.add_(1)

    def broadcast(self, worker: Worker) -> None:
        """Gives every worker rank 0's, which follow ghost batch 0."""
        for tensor in (self._means, self._variances, self._counts):
            if tensor.numel():
                worker.broadcast(tensor)


def _joined(norms: list[torch.nn.BatchNorm2d], name: str) -> torch.Tensor:
    """A buffer of all the layers as one tensor; the layers keep views of it."""
    buffers = [getattr(norm, name) for norm in norms]
    if not buffers:
        return torch.empty(0)
    joined = torch.cat([buffer.reshape(-1) for buffer in buffers])
    for norm, buffer, part in zip(norms, buffers, joined.split([one.numel() for one in buffers]), strict=True):
        setattr(norm, name, part.view(buffer.shape))
    return joined
