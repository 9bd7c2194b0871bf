"""The network interface between workers of several machines: that of their node's address in Ray.

By default gloo resolves the machine's host name, which on many machines is a loopback address, so two machines cannot
connect. NCCL takes the first interface that looks right, such as a container's bridge.
"""

import ipaddress
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig


class SlicesError(ValueError):
    """Workers of one run have slices of a GPU on the same machine."""


Place = tuple[str, bool]
"""A worker's node, and whether its GPU is a slice of one."""


class NodeTorchConfig(TorchConfig):
    """Ray Train's set-up of torch.distributed, after each worker has chosen its interface."""

    @property
    def backend_cls(self) -> type:
        return _NodeBackend


class _NodeBackend(TorchConfig().backend_cls):  # pyrefly: ignore
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        check_slices(worker_group.execute(_begin))
        super().on_start(worker_group, backend_config)


def _begin() -> Place:
    """Chooses this worker's interface and returns its place."""
    address = ray.util.get_node_ip_address()
    os.environ.update({name: value for name, value in interfaces(address).items() if name not in os.environ})
    gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    return address, any(gpu.startswith("MIG-") for gpu in gpus)


def check_slices(places: Sequence[Place]) -> None:
    """Raises SlicesError if workers on one machine have MIG slices, which NCCL does not connect."""
    for address, workers in Counter(address for address, is_slice in places if is_slice).items():
        if workers > 1:
            raise SlicesError(
                f"{workers} workers have MIG slices of the GPUs of {address}, which NCCL does not connect; use "
                "--execution.workers 1, or whole GPUs"
            )


def interfaces(address: str) -> dict[str, str]:
    """The variables by which gloo and, beyond one machine, NCCL find the interface of a node's address."""
    interface = interface_of(address)
    if interface is None:
        return {}
    nccl = {} if ipaddress.ip_address(address).is_loopback else {"NCCL_SOCKET_IFNAME": f"={interface}"}
    return {"GLOO_SOCKET_IFNAME": interface} | nccl


def interface_of(address: str) -> str | None:
    """The name of this machine's network interface that has the IP address; None if none has."""
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in entries):
            return name
    return None
