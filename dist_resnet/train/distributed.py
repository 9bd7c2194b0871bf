"""The workers of a run: who does which ghost batches, and the sums over all of them.

Works alike under Ray Train, under processes of our own and, with one worker, without a process group.
"""

import inspect
import itertools
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

_DDP = torch.nn.parallel.DistributedDataParallel
# Rank 0's buffers are given out before evaluations, not before every forward pass; newer torch renamed the option.
_SYNC_BUFFERS = (
    "forward_sync_buffers" if "forward_sync_buffers" in inspect.signature(_DDP).parameters else "broadcast_buffers"
)


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

    def broadcast_buffers(self, model: torch.nn.Module) -> None:
        """Gives every worker rank 0's buffers: BN's running statistics, which follow ghost batch 0."""
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)


def data_parallel(model: torch.nn.Module, worker: Worker) -> torch.nn.Module:
    """The model in DDP, reducing gradients to their sum over the workers; the model itself with one worker.

    DDP's own average would weigh workers equally, whatever their share of the ghost batches.
    """
    if worker.world_size == 1:
        return model
    options: dict[str, Any] = {_SYNC_BUFFERS: False}
    device_ids = [worker.device] if worker.device.type == "cuda" else None
    ddp = _DDP(model, device_ids=device_ids, gradient_as_bucket_view=True, **options)
    ddp.register_comm_hook(None, _sum_gradients)
    return ddp


def _sum_gradients(_: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda future: future.value()[0])
