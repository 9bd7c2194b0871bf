"""The workers of a run: who does which ghost batches, and the sums over all of them.

Works alike under Ray Train, under processes of our own and, with one worker, without a process group.
"""

import itertools
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Worker:
    """This process's place among the workers."""

    rank: int
    world_size: int
    device: torch.device

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
        """The items of every worker, by rank."""
        if self.world_size == 1:
            return items
        lists: list[Any] = [None] * self.world_size
        dist.all_gather_object(lists, items)
        return list(itertools.chain.from_iterable(lists))

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Fills the tensor with rank 0's, in place."""
        if self.world_size > 1:
            dist.broadcast(tensor, src=0)
