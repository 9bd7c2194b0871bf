"""BN's running statistics of a whole network. Oracle: the layers' own buffers, read one by one."""

import pytest
import torch
import torch.distributed as dist

from dist_resnet.model import build_model
from dist_resnet.recipe import Model
from dist_resnet.train.statistics import RunningStatistics
from dist_resnet.worker import Worker


@pytest.mark.parametrize("depth", [8, 56])
def test_a_broadcast_is_three_tensors_whatever_the_depth(depth: int, monkeypatch: pytest.MonkeyPatch):
    model = build_model(Model(depth=depth, num_classes=10))
    statistics = RunningStatistics(model)
    sent = []

    def broadcast(tensor: torch.Tensor, src: int) -> None:
        assert src == 0
        sent.append(tensor.numel())
        tensor.fill_(7)  # rank 0's

    monkeypatch.setattr(dist, "broadcast", broadcast)
    statistics.broadcast(Worker(rank=1, world_size=2, device=torch.device("cpu")))
    buffers = dict(model.named_buffers())
    assert len(sent) == 3
    assert sum(sent) == sum(buffer.numel() for buffer in buffers.values())
    assert all((buffer == 7).all() for buffer in buffers.values())
