"""The network interface between workers of several machines: that of their node's address in Ray.

By default gloo resolves the machine's host name, which on many machines is a loopback address, so two machines cannot
connect. NCCL finds an interface itself.
"""

import os
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig

_VARIABLE = "GLOO_SOCKET_IFNAME"


class NodeTorchConfig(TorchConfig):
    """Ray Train's set-up of torch.distributed, after each worker has chosen its interface."""

    @property
    def backend_cls(self) -> type:
        return _NodeBackend


class _NodeBackend(TorchConfig().backend_cls):  # pyrefly: ignore
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_choose_interface)
        super().on_start(worker_group, backend_config)


def _choose_interface() -> None:
    """Sets gloo's interface, unless the environment names one."""
    interface = interface_of(ray.util.get_node_ip_address())
    if interface is not None:
        os.environ.setdefault(_VARIABLE, interface)


def interface_of(address: str) -> str | None:
    """The name of this machine's network interface that has the IP address; None if none has."""
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in entries):
            return name
    return None
