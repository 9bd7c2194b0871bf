"""The driver's part while workers train: progress in the terminal, delivery to MLflow, the summary at the end."""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from dist_resnet.launch.follow import Lookout, RunFollower, outcome, with_waiting_points
from dist_resnet.launch.mlflow_page import result_files, run_description
from dist_resnet.launch.plan import Plan
from dist_resnet.launch.progress import TrainingProgress
from dist_resnet.launch.stopping import stopping_on_signals
from dist_resnet.storage.patience import patiently
from dist_resnet.storage.uri import without_credentials
from dist_resnet.tracking import commands, stop
from dist_resnet.tracking.holding import keeping, release
from dist_resnet.tracking.mlflow.address import store_of
from dist_resnet.tracking.mlflow.delivery import deliver
from dist_resnet.tracking.mlflow.sink import MlflowSink
from dist_resnet.tracking.observer import Observer, nobody
from dist_resnet.tracking.records import Diverged, Finished, Record, Stopped, TooDamaged
from dist_resnet.tracking.run_directory import SUMMARY_FILE

logger = logging.getLogger(__name__)

T = TypeVar("T")


def supervise(plan: Plan, run_workers: Callable[[], None], observer: Observer = nobody) -> dict[str, Any]:
    """The summary of a planned run, whose workers it runs while it shows and delivers the journal; a run that has ended
    is not run again.

    `run_workers` returns once all workers have ended. `observer` receives every second the journal's new records and
    the number of points not yet delivered to MLflow. The summary is also written as `summary.json`. At the first Ctrl-C
    or SIGTERM the workers save a checkpoint and stop; that summary has the status `stopped` and is not written. The
    second raises KeyboardInterrupt.
    """
    finished = plan.summary()
    if finished is not None:
        release(plan.directory)
        logger.info("the run at %s is %s already: %s", plan.directory.uri, finished["status"], _result(finished))
        _deliver_the_rest(plan)
        return finished
    with keeping(plan.directory):
        return _supervise(plan, run_workers, observer)


def _supervise(plan: Plan, run_workers: Callable[[], None], observer: Observer) -> dict[str, Any]:
    plan.claim()
    stop.withdraw(plan.directory)
    uri = _tracking_uri(plan)
    follower = RunFollower(plan.directory)
    # Records of earlier drivers go only to MLflow, which may not have all of them.
    sink = MlflowSink(uri, plan.directory, run_description(plan), records=_look(plan, follower))
    for note in plan.notes:
        logger.info("%s", note)
    logger.info("the run is stored at %s and tracked at %s", plan.directory.uri, without_credentials(uri))
    status, wait_seconds = "FAILED", 60.0
    progress = TrainingProgress(plan.name, plan.num_steps, plan.recipe.global_batch)
    follower.report(sink.take, progress.show, with_waiting_points(observer, lambda: sink.waiting_points))
    lookout = Lookout(follower.look)
    try:
        with stopping_on_signals(plan.directory):
            run_workers()
        _look(plan, follower)
        summary = outcome(plan, follower.ending)
        status = {Finished.kind: "FINISHED", Stopped.kind: "KILLED"}.get(summary["status"], "FAILED")
    except KeyboardInterrupt:
        status, wait_seconds = "KILLED", 5.0
        raise
    finally:
        lookout.close(wait_seconds=wait_seconds)
        progress.close()
        sink.close(status, result_files(plan), wait_seconds=wait_seconds)
    if summary["status"] == Stopped.kind:
        logger.info("stopped after step %d of %d; the same command resumes there", summary["steps"], plan.num_steps)
        return summary
    if summary["status"] == TooDamaged.kind:
        logger.error("%s", summary["reason"])
        return summary
    summary["mlflow_run_id"] = sink.run_id
    _patiently(plan, lambda: plan.directory.write_json(SUMMARY_FILE, summary), "written")
    logger.info("%s: %s", summary["status"], _result(summary))
    logger.info("look at it: %s", commands.look_at(without_credentials(uri)))
    return summary


def _tracking_uri(plan: Plan) -> str:
    return store_of(plan.directory, plan.execution.tracking.uri, resolve=False)


def _deliver_the_rest(plan: Plan) -> None:
    """Delivers what MLflow has not received yet; if it is still down, logs a warning."""
    try:
        deliver(plan.directory, _tracking_uri(plan), wait_seconds=60.0)
    except (OSError, ValueError) as error:
        logger.warning("cannot deliver the rest of the run to MLflow: %s", error)


def _look(plan: Plan, follower: RunFollower) -> list[Record]:
    """The new records, read with retries while the storage fails. Raises RuntimeError if the journal is damaged."""

    def look() -> list[Record]:
        plan.directory.check_present()
        return follower.look()

    try:
        return _patiently(plan, look, "read")
    except ValueError as error:
        raise RuntimeError(str(error)) from error


def _patiently(plan: Plan, action: Callable[[], T], what: str) -> T:
    return patiently(
        action,
        what=f"the run's directory {plan.directory.uri} cannot be {what}",
        seconds=plan.execution.recovery.storage_seconds,
    )


def _result(summary: dict[str, Any]) -> str:
    if summary["status"] == Diverged.kind:
        return f"the training loss was no longer finite at step {summary['steps']}; lower --schedule.learning-rate"
    return (
        f"{summary['steps']} steps, top-1 error {summary['top1_error']:.2%}, top-5 error {summary['top5_error']:.2%}, "
        f"{summary['images_per_second']:.1f} images/s, weights in {summary.get('weights_uri') or summary['model_uri']}"
    )
