"""The gradients of all workers, added up once a step."""

import inspect
from typing import Any

import torch
import torch.distributed as dist

from dist_resnet.worker import Worker

_DDP = torch.nn.parallel.DistributedDataParallel
# Rank 0's buffers are given out before evaluations, not before every forward pass; newer torch renamed the option.
_SYNC_BUFFERS = (
    "forward_sync_buffers" if "forward_sync_buffers" in inspect.signature(_DDP).parameters else "broadcast_buffers"
)


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
