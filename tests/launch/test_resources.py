"""The device and cores of each worker. Oracle: arithmetic by hand, and the resources of a real Ray."""

import dataclasses
import os

import pytest

from dist_resnet.launch import local
from dist_resnet.launch.ray import cluster
from dist_resnet.launch.resources import Node, Resources, settle_trial, settle_workers
from dist_resnet.recipe import Execution

CPUS = Node(cores=8)
GPUS = Node(cores=8, gpus=2, gpu_kind="H200")


def _of(*nodes: Node) -> Resources:
    return Resources(nodes=nodes)


@pytest.mark.parametrize(
    ("changes", "nodes", "expected"),
    [
        ({"workers": 2, "device": "cpu"}, (GPUS,), ("cpu", 4)),
        ({"workers": 2}, (GPUS,), ("gpu", 4)),
        ({"workers": 4}, (GPUS,), ("cpu", 2)),
        ({"workers": 2, "cpus_per_worker": 3}, (CPUS,), ("cpu", 3)),
        # A machine without GPUs cannot run workers that need one.
        ({"workers": 2}, (GPUS, Node(cores=64)), ("gpu", 4)),
        ({"workers": 4}, (GPUS, Node(cores=64), Node(cores=16, gpus=2)), ("gpu", 4)),
        # A worker does not span two machines: with 4 cores each, the third worker would not fit in 12 cores.
        ({"workers": 3}, (Node(cores=6), Node(cores=6)), ("cpu", 3)),
        # Only the workers of MIN:MAX that have a GPU now share the cores; with all eight, each would have one core.
        ({"workers": "1:8"}, (GPUS,), ("gpu", 4)),
        ({"workers": "1:8"}, (CPUS,), ("cpu", 1)),
        ({"workers": "4:8"}, (GPUS,), ("cpu", 1)),
    ],
)
def test_workers_share_the_cores_of_their_machines(execution: Execution, changes, nodes, expected):
    asked = dataclasses.replace(execution, **({"cpus_per_worker": None, "device": "auto"} | changes))
    settled = settle_workers(asked, _of(*nodes))
    assert (settled.device, settled.cpus_per_worker) == expected


@pytest.mark.parametrize(
    ("changes", "nodes", "complaint"),
    [
        ({"workers": 2, "device": "gpu"}, (CPUS,), "needs a GPU for each of the 2 workers, but the cluster has 0"),
        ({"workers": 9}, (CPUS,), "9 workers of 1 CPU cores need 9, but the cluster has 8, with room for 8 of them;"),
        ({"workers": 2, "cpus_per_worker": 5}, (CPUS, Node(cores=4)), "but the cluster has 12, with room for 1"),
        (
            {"workers": 2, "cpus_per_worker": 5, "device": "gpu"},
            (GPUS, Node(cores=64)),
            "the cluster has 72, with room for 1 of them on machines with GPUs",
        ),
    ],
)
def test_workers_that_do_not_fit_are_refused(execution: Execution, changes, nodes, complaint):
    with pytest.raises(ValueError, match=complaint):
        settle_workers(dataclasses.replace(execution, **({"device": "auto"} | changes)), _of(*nodes))


@pytest.mark.parametrize(
    ("changes", "node", "expected"),
    [
        ({}, CPUS, ("cpu", 1)),
        ({}, GPUS, ("gpu", 1)),
        ({"device": "cpu", "cpus_per_worker": 2}, GPUS, ("cpu", 2)),
        ({"device": "gpu", "cpus_per_worker": 4}, GPUS, ("gpu", 4)),
    ],
)
def test_a_trial_trains_on_a_gpu_if_there_is_one(execution: Execution, changes, node, expected):
    asked = dataclasses.replace(execution, **({"cpus_per_worker": None, "device": "auto"} | changes))
    settled = settle_trial(asked, _of(node))
    assert (settled.device, settled.cpus_per_worker) == expected


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"device": "gpu"}, "execution.device gpu needs a GPU, but the cluster has none"),
        ({"cpus_per_worker": 9}, "a trial of 9 CPU cores does not fit on any machine of the cluster, which has 8 in"),
    ],
)
def test_a_trial_that_does_not_fit_is_refused(execution: Execution, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        settle_trial(dataclasses.replace(execution, **changes), _of(CPUS))


def test_processes_of_this_machine_may_share_its_cores(execution: Execution):
    many = dataclasses.replace(execution, workers=2 * (os.cpu_count() or 1), cpus_per_worker=None)
    assert local.settle(many).cpus_per_worker == 1
    alone = dataclasses.replace(execution, workers=1, cpus_per_worker=None)
    assert local.settle(alone).cpus_per_worker == os.cpu_count()


def test_hardware_is_described_in_words():
    assert str(_of(GPUS, CPUS)) == "16 CPU cores, 2 x H200"
    assert str(_of(Node(cores=4, gpus=1))) == "4 CPU cores, 1 x GPU"
    assert str(_of(CPUS)) == "8 CPU cores"


def test_a_clusters_resources_are_those_of_its_machines(ray_cluster):
    assert cluster.resources() == _of(Node(cores=4))
