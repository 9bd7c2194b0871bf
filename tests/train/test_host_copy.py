"""Copies on the CPU. Oracle: the tensors themselves, and the bytes of their safetensors file."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from dist_resnet.recipe import Execution, Recipe
from dist_resnet.train.host_copy import HostCopy, pack, portable, unpack
from dist_resnet.train.loop import create_state
from dist_resnet.worker import Worker

CPU = torch.device("cpu")


def _tensors() -> dict[str, torch.Tensor]:
    """Of several types, sizes and memory formats, one of which is a view."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(8, 3, 5, 5, generator=generator)
    return {
        "last": wide.to(memory_format=torch.channels_last).requires_grad_(),
        "count": torch.tensor(7),
        "odd": torch.randn(3, generator=generator),
        "half": torch.randn(5, generator=generator).bfloat16(),
        "empty": torch.empty(0, 4),
        "view": wide[2:3, :, 1],
        "bytes": torch.arange(13, dtype=torch.uint8),
        "double": torch.randn(2, 2, generator=generator).double().T,
    }


def _assert_same(copies: list[torch.Tensor], tensors: list[torch.Tensor]) -> None:
    for copy, tensor in zip(copies, tensors, strict=True):
        assert copy.dtype == tensor.dtype
        assert copy.is_contiguous()
        assert not copy.requires_grad
        assert torch.equal(copy, tensor.detach().cpu())


def test_packed_tensors_come_out_as_they_went_in():
    tensors = list(_tensors().values())
    packed = pack(tensors, CPU)
    assert (packed.dtype, packed.dim()) == (torch.uint8, 1)
    _assert_same(unpack(packed.clone(), tensors), tensors)


def test_packed_tensors_begin_where_every_type_may(tmp_path: Path):
    tensors = list(_tensors().values())
    packed = pack(tensors, CPU)
    assert all((view.data_ptr() - packed.data_ptr()) % 64 == 0 for view in unpack(packed, tensors) if view.numel())


def test_a_file_of_packed_tensors_is_that_of_single_ones(recipe: Recipe, execution: Execution, tmp_path: Path):
    state = create_state(recipe, execution, Worker(rank=0, world_size=1, device=CPU))
    live = state.live_weights()
    copies = dict(zip(live, unpack(pack(list(live.values()), CPU), list(live.values())), strict=True))
    for name, tensors in (("packed", copies), ("single", state.weights())):
        safetensors.torch.save_file(tensors, tmp_path / name)
    assert (tmp_path / "packed").read_bytes() == (tmp_path / "single").read_bytes()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_copy_is_of_the_time_when_it_began(device: str):
    tensors = [tensor.to(device) for tensor in _tensors().values()]
    before = [portable(tensor) for tensor in tensors]
    copy = HostCopy(tensors)
    with torch.no_grad():
        for tensor in tensors:
            tensor.zero_()
    copy.wait()
    _assert_same(copy.tensors, before)


@pytest.mark.gpu
def test_a_copy_of_a_gpus_tensors_does_not_wait_for_it():
    tensors = [torch.ones(1 << 20, device="cuda") for _ in range(8)]
    HostCopy(tensors).wait()  # makes the stream and the pinned memory
    torch.cuda.synchronize()
    torch.cuda._sleep(1_000_000_000)
    copy = HostCopy(tensors)
    assert not torch.cuda.current_stream().query()
    assert all(tensor.is_pinned() for tensor in copy.tensors)
    copy.wait()
    _assert_same(copy.tensors, tensors)
