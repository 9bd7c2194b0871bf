"""The load of rank 0's machine, under the metric names that MLflow's system-metrics page shows."""

import logging
import time

import psutil
import torch

logger = logging.getLogger(__name__)

_MEGABYTE = 1 << 20


class System:
    """Samples CPU, memory and the worker's GPU at an interval."""

    def __init__(self, device: torch.device, *, seconds_between: float = 10.0) -> None:
        self._device, self._seconds_between = device, seconds_between
        self._sampled_at = time.monotonic()
        # psutil's first call only starts its measurement.
        psutil.cpu_percent(None)

    def sample(self) -> dict[str, float]:
        """CPU and memory use in percent and megabytes; empty within `seconds_between` of the last sample."""
        now = time.monotonic()
        if now - self._sampled_at < self._seconds_between:
            return {}
        self._sampled_at = now
        memory = psutil.virtual_memory()
        values = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(None),
            "system/system_memory_usage_megabytes": memory.used / _MEGABYTE,
            "system/system_memory_usage_percentage": memory.percent,
        }
        return values | self._gpu()

    def _gpu(self) -> dict[str, float]:
        if self._device.type != "cuda":
            return {}
        free, total = torch.cuda.mem_get_info(self._device)
        values = {"system/gpu_0_memory_usage_megabytes": (total - free) / _MEGABYTE}
        try:
            values["system/gpu_0_utilization_percentage"] = float(torch.cuda.utilization(self._device))
        except Exception as error:
            # Of torch, or nvidia-ml-py's own: it is not installed, or the driver does not tell, as of a MIG slice.
            logger.debug("the GPU's utilization is not known: %s", error)
        return values
