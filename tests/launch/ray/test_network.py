"""The interface between machines, and slices of GPUs. Oracle: psutil's interfaces of this machine."""

import dataclasses
import socket
from types import SimpleNamespace

import psutil
import pytest
from ray.train import ControllerError

from dist_resnet.launch.plan import prepare
from dist_resnet.launch.ray import network
from dist_resnet.launch.ray import train as ray_train
from dist_resnet.launch.ray.network import SlicesError, check_slices, interfaces
from dist_resnet.recipe import Execution, Recipe


def _loopback() -> str:
    return next(
        name
        for name, entries in psutil.net_if_addrs().items()
        if any(entry.family == socket.AF_INET and entry.address == "127.0.0.1" for entry in entries)
    )


def test_workers_of_one_machine_need_no_interface_of_nccl():
    assert interfaces("127.0.0.1") == {"GLOO_SOCKET_IFNAME": _loopback()}


def test_gloo_and_nccl_find_the_interface_of_the_nodes_address(monkeypatch):
    addresses = {"eth1": [SimpleNamespace(address="10.0.0.7")], "eth10": [SimpleNamespace(address="10.0.0.8")]}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: addresses)
    # NCCL takes a name without "=" as the beginning of one.
    assert interfaces("10.0.0.7") == {"GLOO_SOCKET_IFNAME": "eth1", "NCCL_SOCKET_IFNAME": "=eth1"}
    assert interfaces("10.0.0.9") == {}


@pytest.mark.parametrize("chosen", [{}, {"NCCL_SOCKET_IFNAME": "ib0"}, {"GLOO_SOCKET_IFNAME": "eth7"}])
def test_an_interface_that_the_environment_names_stays(chosen: dict[str, str], monkeypatch):
    found = {"GLOO_SOCKET_IFNAME": "eth1", "NCCL_SOCKET_IFNAME": "=eth1"}
    environment = dict(chosen)
    monkeypatch.setattr(network, "os", type("os", (), {"environ": environment}))
    monkeypatch.setattr(network, "interfaces", lambda _: found)
    monkeypatch.setattr(network.ray.util, "get_node_ip_address", lambda: "10.0.0.7")
    monkeypatch.setattr(network.ray, "get_runtime_context", _Context)
    assert network._begin() == ("10.0.0.7", True)
    assert environment == found | chosen


class _Context:
    def get_accelerator_ids(self) -> dict[str, list[str]]:
        return {"GPU": ["MIG-6f9e1a52-0000-5000-8000-000000000000"], "TPU": []}


def test_slices_on_one_machine_cannot_train_together():
    with pytest.raises(SlicesError, match=r"2 workers have MIG slices of the GPUs of 10\.0\.0\.7, which NCCL does not"):
        check_slices([("10.0.0.7", True), ("10.0.0.8", False), ("10.0.0.7", True)])


def test_slices_end_a_run_without_a_restart(recipe: Recipe, execution: Execution, monkeypatch):
    starts = []

    def fit(_: object) -> None:
        starts.append(1)
        raise ControllerError(SlicesError("2 workers have MIG slices"))

    plan = prepare(recipe, dataclasses.replace(execution, workers=2), job="test")
    monkeypatch.setattr(ray_train, "_trainer", lambda _: type("Trainer", (), {"fit": None}))
    monkeypatch.setattr(ray_train, "own_cluster", lambda: True)
    monkeypatch.setattr(ray_train, "hold", fit)
    with pytest.raises(RuntimeError, match="^2 workers have MIG slices$"):
        ray_train._fit(plan)
    assert starts == [1]


@pytest.mark.parametrize(
    "places",
    [
        [("10.0.0.7", True)],
        [("10.0.0.7", True), ("10.0.0.8", True)],
        [("10.0.0.7", False), ("10.0.0.7", False)],
    ],
)
def test_whole_gpus_and_single_slices_can(places: list[tuple[str, bool]]):
    check_slices(places)
