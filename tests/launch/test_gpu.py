"""A worker's GPU before its first tensor. Oracle: arithmetic by hand, and a GPU where there is one."""

import datetime
import itertools
import logging
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from dist_resnet.launch import gpu
from dist_resnet.launch.worker import join_group
from dist_resnet.worker import Worker

GIB = 1 << 30


def test_the_cpu_is_taken_at_once():
    gpu.take(torch.device("cpu"), share=0.25)


def test_a_successor_waits_until_its_predecessors_memory_is_free(caplog):
    # A dying process holds 70 of 80 GiB, then 30, then none.
    steps = itertools.chain([10] * 3, [50] * 3, itertools.repeat(80))
    asked = []

    def free_bytes() -> int:
        asked.append(next(steps) * GIB)
        return asked[-1]

    gpu.wait_for_memory(free_bytes, wanted=73 * GIB, patience_seconds=30)
    assert asked[-1] == 80 * GIB
    assert len(asked) == 7
    assert caplog.text == ""


def test_memory_that_stays_taken_is_waited_for_in_vain_and_named(caplog):
    start = time.monotonic()
    with caplog.at_level(logging.WARNING):
        gpu.wait_for_memory(lambda: 10 * GIB, wanted=73 * GIB, patience_seconds=0.3)
    assert 0.3 <= time.monotonic() - start < 10
    assert "only 10.0 GiB of the GPU's memory are free" in caplog.text


def test_memory_is_waited_for_as_long_as_more_becomes_free(caplog):
    steps = itertools.chain(range(10, 20), itertools.repeat(80))
    gpu.wait_for_memory(lambda: next(steps) * GIB, wanted=73 * GIB, patience_seconds=0.25)
    assert caplog.text == ""


@pytest.mark.parametrize("trials", [2, 3, 7, 8])
def test_trials_are_bounded_so_that_all_fit_and_each_has_what_it_was_found_to_need(trials: int):
    pytest.importorskip("ray")
    from dist_resnet.launch.ray.shares import fitting

    total = 80 * GIB
    need = int(0.92 * total / trials)
    assert fitting("trial", trials, need, total, 8) == trials
    bound = gpu.memory_fraction(1 / trials, total) * total
    assert need - gpu.CONTEXT_BYTES == pytest.approx(bound)
    assert trials * (bound + gpu.CONTEXT_BYTES) <= 0.92 * total * (1 + 1e-9)


@pytest.mark.parametrize(("share", "bounds"), [(1.0, []), (0.5, [0.92 / 2 - 0.75 / 80])])
def test_a_process_of_several_on_a_gpu_is_bounded_to_its_share(share: float, bounds: list[float], monkeypatch):
    device, asked = torch.device("cuda", 0), []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 * GIB))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (79 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: asked.append(given))
    gpu.take(device, share=share)
    assert [where for _, where in asked] == [device] * len(bounds)
    assert [fraction for fraction, _ in asked] == pytest.approx(bounds)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_of_this_machine_does_everything_on_its_own_gpu(rank: int, monkeypatch):
    done, device = [], torch.device("cuda", rank)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: done.append(device))
    monkeypatch.setattr(dist, "init_process_group", lambda *how, **options: done.append((how, options)))
    worker = Worker(rank=rank, world_size=2, device=device)
    join_group(worker, "file:///nowhere", timeout=datetime.timedelta(seconds=9))
    chosen, (how, options) = done
    assert chosen == device
    assert how == ("nccl",)
    assert options["device_id"] == device


def test_workers_on_the_cpu_join_gloos_group(tmp_path: Path):
    worker = Worker(rank=0, world_size=1, device=torch.device("cpu"))
    join_group(worker, (tmp_path / "rendezvous").as_uri(), timeout=datetime.timedelta(seconds=30))
    try:
        assert dist.get_backend() == "gloo"
    finally:
        dist.destroy_process_group()


@pytest.mark.gpu
def test_a_group_of_nccl_gathers_objects_on_the_last_gpu(tmp_path: Path):
    worker = Worker(rank=0, world_size=1, device=torch.device("cuda", torch.cuda.device_count() - 1))
    join_group(worker, (tmp_path / "rendezvous").as_uri(), timeout=datetime.timedelta(seconds=60))
    try:
        assert torch.cuda.current_device() == worker.device.index
        found = [None]
        dist.all_gather_object(found, "mine")
        assert found == ["mine"]
    finally:
        dist.destroy_process_group()


@pytest.mark.gpu
def test_a_process_cannot_allocate_beyond_its_share():
    device = torch.device("cuda", 0)
    total = torch.cuda.get_device_properties(device).total_memory
    try:
        gpu.take(device, share=0.25)
        torch.empty(int(0.15 * total), dtype=torch.uint8, device=device)
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(int(0.3 * total), dtype=torch.uint8, device=device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        torch.cuda.empty_cache()
