"""The machines' cores and GPUs, and the device and cores that a worker or a trial gets of them."""

import dataclasses
import os
from dataclasses import dataclass

from dist_resnet.recipe import Execution


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine's cores and GPUs."""

    cores: int
    gpus: int = 0
    gpu_kind: str | None = None


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The machines of a cluster."""

    nodes: tuple[Node, ...]
    place: str = "the cluster"
    """Its name in messages."""

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
        """CPU cores that every GPU can have on its own machine. There must be a GPU."""
        return min(node.cores // node.gpus for node in self.nodes if node.gpus)

    def room(self, cores: int, *, with_gpu: bool) -> int:
        """The number of workers of `cores` cores, with or without a GPU each, that run at once, each on one machine.

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
    """This machine's cores, or more if the execution asks for more; processes then share them."""
    return max(os.cpu_count() or 1, execution.most_workers * (execution.cpus_per_worker or 1))


def of_this_machine(execution: Execution) -> Resources:
    """This machine's cores and GPUs for the workers of an execution."""
    # Imported late: a driver of other machines' workers does not need torch here.
    import torch

    node = Node(cores=cores_here(execution), gpus=torch.cuda.device_count())
    return Resources(nodes=(node,), place="this machine")


def settle_workers(execution: Execution, resources: Resources, *, fewest: int | None = None) -> Execution:
    """The execution with `device` and `cpus_per_worker` settled for its workers.

    Workers use GPUs if each of the `fewest` workers, by default the MIN of MIN:MAX, can have one. By default each
    worker has as many cores as leave room for all workers. Raises ValueError if the cores or GPUs do not suffice.
    """
    least = execution.worker_range[0] if fewest is None else fewest
    if execution.device == "gpu" and resources.gpus < least:
        raise ValueError(
            f"--execution.device gpu needs a GPU for each of the {least} workers, but {resources.place} has "
            f"{resources.gpus}; use fewer workers, a larger cluster, or --execution.device cpu"
        )
    on_gpu = execution.device != "cpu" and resources.gpus >= least
    most = min(execution.most_workers, resources.gpus) if on_gpu else execution.most_workers
    cores = execution.cpus_per_worker or _cores_for(most, resources, with_gpu=on_gpu)
    room = resources.room(cores, with_gpu=on_gpu)
    if room < least:
        raise ValueError(
            f"{least} workers of {cores} CPU cores need {least * cores}, but {resources.place} has {resources.cores}, "
            f"with room for {room} of them{' on machines with GPUs' if on_gpu else ''}; use fewer --execution.workers "
            "or --execution.cpus-per-worker, or a larger cluster"
        )
    return dataclasses.replace(execution, device="gpu" if on_gpu else "cpu", cpus_per_worker=cores)


def settle_trial(execution: Execution, resources: Resources) -> Execution:
    """The execution with `device` and `cpus_per_worker` settled for a trial, by default with one core.

    Raises ValueError if the cores or GPUs do not suffice.
    """
    cores = execution.cpus_per_worker or 1
    if execution.device == "gpu" and not resources.gpus:
        raise ValueError(
            f"--execution.device gpu needs a GPU, but {resources.place} has none; use --execution.device cpu"
        )
    on_gpu = execution.device != "cpu" and resources.gpus > 0
    if not resources.room(cores, with_gpu=on_gpu):
        raise ValueError(
            f"a trial of {cores} CPU cores does not fit on any machine of {resources.place}, which has "
            f"{resources.cores} in all; lower --execution.cpus-per-worker"
        )
    return dataclasses.replace(execution, device="gpu" if on_gpu else "cpu", cpus_per_worker=cores)


def _cores_for(workers: int, resources: Resources, *, with_gpu: bool) -> int:
    """The most cores per worker for which all workers have room; 1 if they have no room at all."""
    largest = max((node.cores for node in resources.nodes), default=1)
    return next((c for c in range(largest, 0, -1) if resources.room(c, with_gpu=with_gpu) >= workers), 1)
