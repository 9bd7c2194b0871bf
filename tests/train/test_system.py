"""Machine load. Oracle: psutil's own figures."""

import psutil
import pytest
import torch

from dist_resnet.train.system import System


def test_samples_are_psutils_at_the_given_interval():
    assert System(torch.device("cpu")).sample() == {}
    sample = System(torch.device("cpu"), seconds_between=0.0).sample()
    assert 0 <= sample["system/cpu_utilization_percentage"] <= 100
    assert sample["system/system_memory_usage_percentage"] == pytest.approx(psutil.virtual_memory().percent, abs=5)
    assert "system/gpu_0_memory_usage_megabytes" not in sample


@pytest.fixture
def gpu(monkeypatch) -> System:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 << 20, 10 << 20))
    return System(torch.device("cuda", 0), seconds_between=0.0)


class NotSupportedError(Exception):
    """As of nvidia-ml-py, whose errors are none of Python's own."""


@pytest.mark.parametrize("error", [ModuleNotFoundError("pynvml"), RuntimeError("no driver"), NotSupportedError("MIG")])
def test_a_gpu_without_a_figure_of_its_use_costs_that_figure_alone(gpu: System, error: Exception, monkeypatch):
    def utilization(_: torch.device) -> int:
        raise error

    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    sample = gpu.sample()
    assert sample["system/gpu_0_memory_usage_megabytes"] == 7
    assert "system/cpu_utilization_percentage" in sample
    assert "system/gpu_0_utilization_percentage" not in sample


def test_a_gpus_use_is_recorded(gpu: System, monkeypatch):
    monkeypatch.setattr(torch.cuda, "utilization", lambda _: 83)
    assert gpu.sample()["system/gpu_0_utilization_percentage"] == 83.0


@pytest.mark.gpu
def test_a_real_gpus_use_is_recorded():
    sample = System(torch.device("cuda", 0), seconds_between=0.0).sample()
    assert sample["system/gpu_0_memory_usage_megabytes"] > 0
    assert 0 <= sample["system/gpu_0_utilization_percentage"] <= 100
