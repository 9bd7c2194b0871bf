"""Runs on Ray Train workers: on the cluster at hand, or on a Ray of our own in this process's machine.

Recovery is Ray Train's: when a worker dies the whole group starts again, and each worker goes on from the newest
checkpoint in the run's directory. Nothing is reported through `ray.train.report`, which costs two seconds a call and
is no commit; the journal and the checkpoints on storage are what counts.
"""

import dataclasses
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Ray reads these when it is imported. With the first, workers would each resolve the environment again under `uv run`.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")

import ray
import ray.train
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from dist_resnet import logs
from dist_resnet.launch.preparation import Plan, prepare
from dist_resnet.launch.supervision import supervise
from dist_resnet.launch.worker import run_worker
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.train.distributed import Worker
from dist_resnet.train.precision import check_precision

logger = logging.getLogger(__name__)

# A collective that hangs longer than this is treated as a death.
_COLLECTIVE_TIMEOUT_SECONDS = 600


def prepare_run(recipe: Recipe, execution: Execution, *, job: str) -> Plan:
    """Checks a run, connects to Ray and settles on which device and on how many cores each worker trains.

    Uses the cluster that RAY_ADDRESS or a `ray start` on this machine names, else starts Ray in this process for as
    long as it lives. Raises ValueError or FileNotFoundError, before any worker starts, as `prepare` does and where
    the cluster lacks what was asked for.
    """
    plan = prepare(recipe, execution, job=job)
    if plan.summary() is not None:
        return plan
    connect(execution)
    execution = allot(plan.execution, ray.cluster_resources())
    check_precision(execution)
    return dataclasses.replace(plan, execution=execution)


def run(plan: Plan) -> dict[str, Any]:
    """Trains a prepared run to its end on Ray Train workers and returns its summary.

    Raises RuntimeError, with one line that names the rank and its error, once the failures allowed are used up.
    """
    return supervise(plan, lambda: _fit(plan))


def connect(execution: Execution) -> None:
    """Connects to a cluster, or starts one here with a core for each worker."""
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "configure_logging": True}
    if os.environ.get("RAY_ADDRESS") or Path("/tmp/ray/ray_current_cluster").exists():
        try:
            ray.init(address="auto", **quiet)
            logger.info("using the Ray cluster at %s", ray.get_runtime_context().gcs_address)
            return
        except ConnectionError as error:
            if os.environ.get("RAY_ADDRESS"):
                raise ValueError(
                    f"no Ray cluster answers at RAY_ADDRESS {os.environ['RAY_ADDRESS']} ({_first_line(error)}); "
                    "start one with `ray start --head`, or unset it to run Ray in this process"
                ) from error
    cores = max(os.cpu_count() or 1, execution.workers * (execution.cpus_per_worker or 1))
    ray.init(address="local", num_cpus=cores, **quiet)


def allot(execution: Execution, resources: Mapping[str, float]) -> Execution:
    """The execution with `device` and `cpus_per_worker` settled from a cluster's resources.

    Raises ValueError where more is asked for than the cluster has.
    """
    workers, gpus, cores = execution.workers, int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    if execution.device == "gpu" and gpus < workers:
        raise ValueError(
            f"execution.device gpu needs a GPU for each of the {workers} workers, the cluster has {gpus}; "
            "use fewer workers, a larger cluster, or --execution.device cpu"
        )
    cpus = execution.cpus_per_worker or max(1, cores // workers)
    if workers * cpus > cores:
        raise ValueError(
            f"{workers} workers of {cpus} CPU cores need {workers * cpus}, the cluster has {cores}; "
            "use fewer --execution.workers or --execution.cpus-per-worker, or a larger cluster"
        )
    device = "gpu" if execution.device != "cpu" and gpus >= workers else "cpu"
    return dataclasses.replace(execution, device=device, cpus_per_worker=cpus)


def _fit(plan: Plan) -> None:
    """Runs the worker group to its end, restarting it after failures as often as the execution allows."""
    use_gpu = plan.execution.device == "gpu"
    trainer = TorchTrainer(
        _run,
        train_loop_config={"plan": plan},
        torch_config=TorchConfig(timeout_s=_COLLECTIVE_TIMEOUT_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=plan.execution.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": plan.execution.cpus_per_worker or 1} | ({"GPU": 1} if use_gpu else {}),
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=plan.directory.uri,
            failure_config=FailureConfig(max_failures=plan.execution.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        rank, failure = min(error.worker_failures.items())
        times = f"after {plan.execution.max_failures} restarts" if plan.execution.max_failures else "without a restart"
        raise RuntimeError(f"training failed {times}: rank {rank}: {_first_line(failure)}") from error


def _first_line(error: BaseException) -> str:
    """What an error says, without the traceback that Ray wraps it in."""
    cause = getattr(error, "cause", None) or getattr(error, "_base_exc", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[-1] if lines else type(cause).__name__


def _run(config: dict[str, Any]) -> None:
    """A worker's whole life."""
    context = ray.train.get_context()
    worker = Worker(rank=context.get_world_rank(), world_size=context.get_world_size(), device=get_device())
    logs.configure(worker.rank)
    run_worker(config["plan"], worker)
