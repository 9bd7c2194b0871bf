"""Runs on Ray Train workers: on an existing cluster, or on the job's own Ray on this machine.

Recovery is Ray Train's: if a worker or its machine dies, all workers restart, with MIN:MAX workers on the remaining
cluster, and each resumes from the newest checkpoint in the run's directory. `ray.train.report` is not used: it takes
two seconds a call and commits nothing. The journal and the checkpoints on storage are authoritative.
"""

import dataclasses
import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

from ray.exceptions import RayActorError
from ray.train import (
    ControllerError,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer

from dist_resnet.launch.plan import Plan, prepare
from dist_resnet.launch.ray import internals
from dist_resnet.launch.ray import storage as ray_storage
from dist_resnet.launch.ray import worker as ray_worker
from dist_resnet.launch.ray.cluster import (
    connect,
    disconnect,
    first_line,
    hold,
    own_cluster,
    resources,
)
from dist_resnet.launch.ray.jobs import take_over
from dist_resnet.launch.ray.network import NodeTorchConfig, SlicesError
from dist_resnet.launch.ray.telemetry import RunTelemetry
from dist_resnet.launch.resources import settle_workers
from dist_resnet.launch.supervise import supervise
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.storage.patience import patiently
from dist_resnet.tracking.holding import taking
from dist_resnet.train import checkpoint
from dist_resnet.train.precision import check_precision

logger = logging.getLogger(__name__)

T = TypeVar("T")

_HANG_VARIABLE = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"
_START_VARIABLE = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_START_IS_FREE = _START_VARIABLE not in os.environ
# Right after a machine has died, Ray may still count it and wait in vain for as many workers as before. With MIN:MAX
# workers it should soon count again. With a fixed number there is nothing to count, and images may be slow to load.
_START_SECONDS_ELASTIC, _START_SECONDS = 30, 300


def prepare_run(recipe: Recipe, execution: Execution, *, job: str) -> Plan:
    """The plan of a run, checked, with the device and cores of each worker; connects to Ray.

    Uses the cluster that RAY_ADDRESS or a `ray start` on this machine names, and otherwise starts Ray in this process.
    From then on no other process may run it. Raises ValueError or FileNotFoundError, before any worker starts, as
    `prepare` does, and if another process runs it or the cluster is too small.
    """
    plan = prepare(recipe, execution, job=job)
    if plan.summary() is not None:
        return plan
    with taking(plan.directory):
        connect(execution)
        execution = settle_workers(plan.execution, resources())
        check_precision(execution)
        return dataclasses.replace(plan, execution=execution)


def run(plan: Plan) -> dict[str, Any]:
    """Trains a prepared run to its end on Ray Train workers and returns its summary.

    Raises RuntimeError, with one line that names the rank and its error, after too many failures.
    """
    with RunTelemetry(plan.name, plan.execution.most_workers) as telemetry:
        return supervise(plan, lambda: _fit(plan), telemetry)


def _fit(plan: Plan) -> None:
    """Runs the worker group to its end.

    Ray Train limits the failures of a whole run and allows none of its controller; here both count only while no new
    checkpoint is committed. Raises RuntimeError after too many.
    """
    allowed = plan.execution.recovery.max_failures
    newest, failures = _committed(plan), 0
    while True:
        trainer = _trainer(plan)
        if not own_cluster():
            _patiently(plan, "written", lambda trainer=trainer: take_over(plan.directory, internals.run_id(trainer)))
        try:
            hold(trainer.fit)
            return
        except (TrainingFailedError, RayActorError) as error:
            if isinstance(error, ControllerError) and isinstance(error.controller_failure, SlicesError):
                raise RuntimeError(str(error.controller_failure)) from error
            reached = _committed(plan)
            # Ray Train reports its workers' failures only once all allowed ones are used.
            used = allowed + 1 if isinstance(error, WorkerGroupError) else 1
            failures = failures + used if reached == newest else 0
            newest = reached
            if allowed == 0 or failures > allowed:
                raise RuntimeError(f"training failed {_times(allowed)}: {_reason(error)}") from error
            logger.warning("the workers or their controller failed (%s); restarting", _reason(error))
            if isinstance(error, RayActorError) and own_cluster():
                # Ends a dead controller's workers and frees their resources.
                disconnect()
                _connect_again(plan.execution)


def _connect_again(execution: Execution) -> None:
    """As `connect`, but raises RuntimeError if the environment has changed so that Ray cannot start."""
    try:
        connect(execution)
    except ValueError as error:
        raise RuntimeError(str(error)) from error


def _committed(plan: Plan) -> int | None:
    """The step of the newest committed checkpoint."""
    return _patiently(plan, "read", lambda: checkpoint.newest_step(plan.directory))


def _patiently(plan: Plan, what: str, action: Callable[[], T]) -> T:
    """What `action` returns, retried while the run's storage may fail."""
    return patiently(
        action,
        what=f"the run's directory {plan.directory.uri} cannot be {what}",
        seconds=plan.execution.recovery.storage_seconds,
    )


def _times(allowed: int) -> str:
    return f"after {allowed} restarts" if allowed else "without a restart"


def _reason(error: TrainingFailedError | RayActorError) -> str:
    """Why Ray Train's run ended, in one line."""
    if isinstance(error, WorkerGroupError):
        rank, failure = min(error.worker_failures.items())
        return f"rank {rank}: {first_line(failure)}"
    if isinstance(error, ControllerError):
        return first_line(error.controller_failure)
    return "the training controller died"


def _trainer(plan: Plan) -> TorchTrainer:
    execution = plan.execution
    use_gpu = execution.device == "gpu"
    least, most = execution.worker_range
    # Ray reads them in the driver and passes them to the workers.
    os.environ[_HANG_VARIABLE] = str(round(execution.recovery.hang_seconds))
    if _START_IS_FREE:
        os.environ[_START_VARIABLE] = str(_START_SECONDS if least == most else _START_SECONDS_ELASTIC)
    trainer = TorchTrainer(
        ray_worker.run,
        train_loop_config={"plan": plan},
        torch_config=NodeTorchConfig(timeout_s=round(execution.recovery.hang_seconds)),
        scaling_config=ScalingConfig(
            num_workers=most if least == most else (least, most),
            use_gpu=use_gpu,
            resources_per_worker={"CPU": execution.cpus_per_worker or 1} | ({"GPU": 1} if use_gpu else {}),
            elastic_resize_monitor_interval_s=execution.recovery.resize_seconds,
        ),
        run_config=RunConfig(
            name="ray",
            **ray_storage.of(plan.directory.uri),
            failure_config=FailureConfig(max_failures=execution.recovery.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    internals.leave_out_helpers(trainer, own_cluster=own_cluster())
    return trainer
