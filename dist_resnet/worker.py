"""A worker among the workers of a run: its rank, and sums, lists and broadcasts over all of them.

Works the same under Ray Train, in processes that `launch.local` starts and, with one worker, without a process group.
"""

import itertools
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Worker:
    """This process's rank among the workers, and its device."""

    rank: int
    world_size: int
    device: torch.device

    def share(self, num_ghost_batches: int) -> range:
        """The numbers of this worker's ghost batches, of so many in a step."""
        return range(self.rank, num_ghost_batches, self.world_size)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The elementwise sum over all workers, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def from_rank_zero(self, number: int) -> int:
        """Rank 0's number, on every worker."""
        tensor = torch.tensor(number, device=self.device)
        if self.world_size > 1:
            dist.broadcast(tensor, src=0)
        return int(tensor)

    def gather(self, items: list[T]) -> list[T]:
        """The items of all workers, in the order of ranks."""
        if self.world_size == 1:
            return items
        lists: list[Any] = [None] * self.world_size
        dist.all_gather_object(lists, items)
        return list(itertools.chain.from_iterable(lists))

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Fills the tensor with rank 0's, in place."""
        if self.world_size > 1:
            dist.broadcast(tensor, src=0)
