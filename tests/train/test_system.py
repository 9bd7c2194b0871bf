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
