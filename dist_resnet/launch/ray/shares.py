"""The share of a cluster that each trial of a sweep takes: one process with some cores and a share of a GPU."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import ray
import torch

from dist_resnet.launch.gpu import CONTEXT_BYTES, USABLE
from dist_resnet.launch.measure import measure_step
from dist_resnet.launch.plan import Plan
from dist_resnet.launch.ray.cluster import connect, first_line, resources
from dist_resnet.launch.resources import settle_trial
from dist_resnet.recipe import Execution
from dist_resnet.train.precision import check_precision

logger = logging.getLogger(__name__)

_MOST_TRIALS_PER_GPU = 8
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Share:
    """The CPU cores and GPUs of one trial."""

    cpus: int
    gpus: float = 0.0


def allot(
    plans: Sequence[Plan], execution: Execution, *, trials_per_gpu: int | None = None
) -> tuple[Execution, list[Share]]:
    """The execution with its device and cores decided, and each plan's share of the cluster; connects to Ray.

    `trials_per_gpu` trials share a GPU, by default as many as fit: a step of every different plan is first measured on
    a GPU of the cluster. Raises ValueError if the cluster has too little.
    """
    connect(execution)
    found = resources()
    execution = settle_trial(execution, found)
    _check_fraction(execution, trials_per_gpu)
    check_precision(execution)
    cpus = execution.cpus_per_worker or 1
    if execution.device == "cpu":
        logger.info("%d trials at once, each on %d CPU cores", min(len(plans), found.room(cpus, with_gpu=False)), cpus)
        return execution, [Share(cpus=cpus)] * len(plans)
    needs, gpu_bytes = _measure_memory(plans, execution)
    shares = []
    for plan, need in zip(plans, needs, strict=True):
        most = min(_MOST_TRIALS_PER_GPU, found.cores_per_gpu // cpus)
        number = fitting(plan.name, trials_per_gpu, need, gpu_bytes, most)
        # Rounded down to Ray's four digits, so that three thirds fit.
        shares.append(Share(cpus=cpus, gpus=int(10_000 / number) / 10_000))
        logger.info(
            "%s: %d such trials share a GPU; each needs %.2f GiB (measured) of its %.1f GiB",
            *(plan.name, number, need / _GIB, gpu_bytes / _GIB),
        )
    return execution, shares


def check_trials(execution: Execution, *, trials_per_gpu: int | None = None) -> None:
    """Raises ValueError if trials cannot run this way on any cluster."""
    if execution.worker_range != (1, 1):
        raise ValueError(
            f"execution.workers must be 1 for a trial, got {execution.workers}; leave it out: as many trials run "
            "at once as the cluster has room for"
        )
    if trials_per_gpu is not None and trials_per_gpu < 1:
        raise ValueError(f"--trials-per-gpu must be at least 1, got {trials_per_gpu}")
    _check_fraction(execution, trials_per_gpu)


def _check_fraction(execution: Execution, trials_per_gpu: int | None) -> None:
    """Raises ValueError if trials that should share a GPU run on the CPU."""
    if execution.device == "cpu" and trials_per_gpu is not None:
        raise ValueError(
            f"--trials-per-gpu {trials_per_gpu} cannot fit: the trials run on the CPU; leave it out, or use a cluster "
            "with a GPU"
        )


def fitting(name: str, asked: int | None, need: int, gpu_bytes: int, most: int) -> int:
    """The number of trials of `need` bytes each that share a GPU: `asked`, or else as many as fit, at most `most`.

    Raises ValueError if that many cannot fit.

    >>> fitting("trial", None, 10 << 30, 80 << 30, 8)
    7
    """
    room = int(gpu_bytes * USABLE // need)
    if (asked or 1) > room:
        raise ValueError(
            f"--trials-per-gpu {asked or 1} cannot fit: {name} needs {need / _GIB:.2f} GiB and a GPU has "
            f"{gpu_bytes / _GIB:.1f} GiB, of which {USABLE:.0%} are usable; at most {room} fit"
        )
    return asked or max(1, min(room, most))


def _measure_memory(plans: Sequence[Plan], execution: Execution) -> tuple[list[int], int]:
    """The GPU memory that each plan needs, and that of the GPU, in bytes; measured in a process that then ends."""
    # The seed does not change the memory.
    keys = [dataclasses.replace(plan.recipe, seed=0).fingerprint() for plan in plans]
    different = dict(zip(keys, plans, strict=True))
    measure = ray.remote(num_gpus=1, num_cpus=1, max_calls=1)(_peak_memory)
    try:
        peaks, gpu_bytes = ray.get(measure.remote(list(different.values()), execution))
    except ray.exceptions.RayError as error:
        raise ValueError(
            f"cannot measure a step of the sweep's networks on a GPU of the cluster ({first_line(error)}); use GPUs "
            "with more memory, or --execution.device cpu"
        ) from error
    needs = dict(zip(different, peaks, strict=True))
    return [needs[key] for key in keys], gpu_bytes


def _peak_memory(plans: Sequence[Plan], execution: Execution) -> tuple[list[int], int]:
    device = torch.device("cuda")
    needs = []
    for plan in plans:
        cost = measure_step(plan.recipe, execution, device, num_steps=1)
        images = (plan.train.num_images + plan.validation.num_images) * 3 * plan.recipe.augment.size**2
        needs.append(cost.memory_bytes + images + CONTEXT_BYTES)
    return needs, torch.cuda.get_device_properties(device).total_memory


def hardware() -> str:
    """The cluster's cores and GPUs, such as `8 CPU cores, 1 x H200`."""
    return str(resources())
