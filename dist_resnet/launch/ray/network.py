"""Which network interface the workers of several machines talk over: the one of their node's address in Ray.

Left to itself gloo resolves the machine's host name, which on many machines is a loopback address, and two machines
never meet. NCCL finds an interface itself and is left alone.
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
    """Leaves alone what the environment says already."""
    interface = interface_of(ray.util.get_node_ip_address())
    if interface is not None:
        os.environ.setdefault(_VARIABLE, interface)


def interface_of(address: str) -> str | None:
    """The name of this machine's network interface that has an IP address; None where none has."""
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in entries):
            return name
    return None
