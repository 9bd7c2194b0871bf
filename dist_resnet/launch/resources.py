"""What there is to train on, machine by machine, and which device and how many cores a worker or a trial gets of it."""

import dataclasses
import os
from dataclasses import dataclass

from dist_resnet.recipe import Execution


@dataclass(frozen=True, kw_only=True)
class Node:
    """What a machine has."""

    cores: int
    gpus: int = 0
    gpu_kind: str | None = None


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a cluster has."""

    nodes: tuple[Node, ...]
    place: str = "the cluster"
    """What it is called in a message."""

    @property
    def cores(self) -> int:
        """CPU cores of all machines."""
        return sum(node.cores for node in self.nodes)

    @property
    def gpus(self) -> int:
        """GPUs of all machines."""
        return sum(node.gpus for node in self.nodes)

    @property
    def cores_per_gpu(self) -> int:
        """Those that every GPU can have on its own machine. There has to be a GPU."""
        return min(node.cores // node.gpus for node in self.nodes if node.gpus)

    def room(self, cores: int, *, with_gpu: bool) -> int:
        """How many workers of so many cores, each with a GPU if they need one, run at once: none spans two machines.

        >>> two = Resources(nodes=(Node(cores=8, gpus=2), Node(cores=64)))
        >>> two.room(4, with_gpu=True), two.room(5, with_gpu=True), two.room(5, with_gpu=False)
        (2, 1, 13)
        """
        counts = ((node.cores // cores, node.gpus) for node in self.nodes)
        return sum(min(fit, gpus) if with_gpu else fit for fit, gpus in counts)

    def __str__(self) -> str:
        """Such as `8 CPU cores, 1 x H200`."""
        kinds = sorted({node.gpu_kind for node in self.nodes if node.gpu_kind})
        gpus = f", {self.gpus} x {' and '.join(kinds) or 'GPU'}" if self.gpus else ""
        return f"{self.cores} CPU cores{gpus}"


def cores_here(execution: Execution) -> int:
    """This machine's cores, or as many as were asked for, which processes then share."""
    return max(os.cpu_count() or 1, execution.most_workers * (execution.cpus_per_worker or 1))


def of_this_machine(execution: Execution) -> Resources:
    """What this machine has for the workers of an execution."""
    # Late, for a driver of others imports this without torch.
    import torch

    node = Node(cores=cores_here(execution), gpus=torch.cuda.device_count())
    return Resources(nodes=(node,), place="this machine")


def settle_workers(execution: Execution, resources: Resources, *, fewest: int | None = None) -> Execution:
    """The execution with `device` and `cpus_per_worker` settled for its workers.

    On GPUs where there is one for each of the `fewest` workers, by default those with which a run goes on. By default
    each has as many cores as leave room for all that may run here. Raises ValueError where more is asked for than
    there is.
    """
    least = execution.worker_range[0] if fewest is None else fewest
    if execution.device == "gpu" and resources.gpus < least:
        raise ValueError(
            f"execution.device gpu needs a GPU for each of the {least} workers, {resources.place} has "
            f"{resources.gpus}; use fewer workers, a larger cluster, or --execution.device cpu"
        )
    on_gpu = execution.device != "cpu" and resources.gpus >= least
    most = min(execution.most_workers, resources.gpus) if on_gpu else execution.most_workers
    cores = execution.cpus_per_worker or _cores_for(most, resources, with_gpu=on_gpu)
    room = resources.room(cores, with_gpu=on_gpu)
    if room < least:
        raise ValueError(
            f"{least} workers of {cores} CPU cores need {least * cores}, {resources.place} has {resources.cores}, with "
            f"room for {room} of them{' beside GPUs' if on_gpu else ''}; use fewer --execution.workers or "
            "--execution.cpus-per-worker, or a larger cluster"
        )
    return dataclasses.replace(execution, device="gpu" if on_gpu else "cpu", cpus_per_worker=cores)


def settle_trial(execution: Execution, resources: Resources) -> Execution:
    """The execution with `device` and `cpus_per_worker` settled for a trial, which has one core by default.

    Raises ValueError where more is asked for than there is.
    """
    cores = execution.cpus_per_worker or 1
    if execution.device == "gpu" and not resources.gpus:
        raise ValueError(f"execution.device gpu needs a GPU, {resources.place} has none; use --execution.device cpu")
    on_gpu = execution.device != "cpu" and resources.gpus > 0
    if not resources.room(cores, with_gpu=on_gpu):
        raise ValueError(
            f"a trial of {cores} CPU cores cannot fit into {resources.place}'s {resources.cores}; lower "
            "--execution.cpus-per-worker"
        )
    return dataclasses.replace(execution, device="gpu" if on_gpu else "cpu", cpus_per_worker=cores)


def _cores_for(workers: int, resources: Resources, *, with_gpu: bool) -> int:
    """The most cores of which so many workers have room; 1 where they have none anyhow."""
    largest = max((node.cores for node in resources.nodes), default=1)
    return next((c for c in range(largest, 0, -1) if resources.room(c, with_gpu=with_gpu) >= workers), 1)
