"""Data parallelism: the gradients of all workers, summed once per step."""

import inspect
from typing import Any

import torch
import torch.distributed as dist

from dist_resnet.worker import Worker

_DDP = torch.nn.parallel.DistributedDataParallel
# Rank 0's buffers are broadcast before evaluations, not before every forward pass; newer torch renamed the option.
_SYNC_BUFFERS = (
    "forward_sync_buffers" if "forward_sync_buffers" in inspect.signature(_DDP).parameters else "broadcast_buffers"
)


def data_parallel(model: torch.nn.Module, worker: Worker) -> torch.nn.Module:
    """The model in DDP, which sums gradients over the workers; with one worker, the model itself.

    DDP's own average would weight all workers equally, however many ghost batches each has.
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
