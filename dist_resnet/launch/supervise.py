"""The driver's part while workers train: progress in the terminal, delivery to MLflow, the summary at the end."""

import logging
import threading
from collections.abc import Callable
from typing import Any

from dist_resnet.launch.mlflow_page import pictures, run_card
from dist_resnet.launch.plan import Plan
from dist_resnet.launch.progress import Progress
from dist_resnet.launch.stopping import stopping_on_signals
from dist_resnet.storage.patience import patiently
from dist_resnet.storage.uri import without_credentials
from dist_resnet.tracking import commands, stop
from dist_resnet.tracking.holding import keeping, release
from dist_resnet.tracking.journal import Tail, read_journal
from dist_resnet.tracking.mlflow.address import store_of
from dist_resnet.tracking.mlflow.delivery import deliver
from dist_resnet.tracking.mlflow.sink import MlflowSink
from dist_resnet.tracking.observer import Observer, Tolerated, nobody
from dist_resnet.tracking.run_directory import SUMMARY_FILE

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 1.0


def supervise(plan: Plan, run_workers: Callable[[], None], observer: Observer = nobody) -> dict[str, Any]:
    """Runs the workers of a planned run, shows and delivers its journal meanwhile, and writes `summary.json`.

    `run_workers` returns once all workers have. `observer` is told of the journal's new records and, as `tracking`,
    every second how many of its points MLflow has yet to take. Returns the summary; a run that was finished before is
    not run again. The first Ctrl-C or SIGTERM has the workers save a checkpoint and stop, which makes a summary of
    status `stopped` that is not written down; the second one raises KeyboardInterrupt.
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
    sink = MlflowSink(uri, plan.directory, run_card(plan))
    for note in plan.notes:
        logger.info("%s", note)
    logger.info("the run is kept at %s and tracked at %s", plan.directory.uri, without_credentials(uri))
    status, wait_seconds = "FAILED", 60.0
    over = threading.Event()
    follower = threading.Thread(
        target=_follow, args=(plan, sink, over, Tolerated(observer)), name="progress", daemon=True
    )
    follower.start()
    try:
        with stopping_on_signals(plan.directory):
            run_workers()
        summary = patiently(
            lambda: read_outcome(plan),
            what=f"the run's directory {plan.directory.uri} cannot be read",
            seconds=60 * plan.execution.storage_minutes,
        )
        status = {"finished": "FINISHED", "stopped": "KILLED"}.get(summary["status"], "FAILED")
    except KeyboardInterrupt:
        status, wait_seconds = "KILLED", 5.0
        raise
    finally:
        over.set()
        follower.join()
        sink.close(status, pictures(plan), wait_seconds=wait_seconds)
    if summary["status"] == "stopped":
        logger.info("stopped after step %d of %d; the same command goes on there", summary["steps"], plan.num_steps)
        return summary
    if summary["status"] == "too_damaged":
        logger.error("%s", summary["reason"])
        return summary
    summary["mlflow_run_id"] = sink.run_id
    patiently(
        lambda: plan.directory.write_json(SUMMARY_FILE, summary),
        what=f"{SUMMARY_FILE} cannot be written to {plan.directory.uri}",
        seconds=60 * plan.execution.storage_minutes,
    )
    logger.info("%s: %s", summary["status"], _result(summary))
    logger.info("look at it: %s", commands.look_at(without_credentials(uri)))
    return summary


def _tracking_uri(plan: Plan) -> str:
    return store_of(plan.directory, plan.execution.tracking_uri, resolve=False)


def _deliver_the_rest(plan: Plan) -> None:
    """Brings MLflow what it did not take while the run went on; where it is still down, that is all."""
    try:
        deliver(plan.directory, _tracking_uri(plan), wait_seconds=60.0)
    except (OSError, ValueError) as error:
        logger.warning("the run's tracking cannot be delivered: %s", error)


def _follow(plan: Plan, sink: MlflowSink, over: threading.Event, observe: Observer) -> None:
    """Draws and tells the journal's records from now on until `over`, but not again what an earlier driver saw."""
    progress = Progress(plan.name, plan.num_steps, plan.recipe.global_batch)
    tail = Tail(plan.directory)
    pause, seen, last = 0.0, False, False
    while not last:
        last = over.wait(pause)
        pause = _SECONDS_BETWEEN_LOOKS
        records: list[dict[str, Any]] = []
        try:
            new = tail.poll()
            records, seen = new if seen else [], True
        except OSError as error:
            logger.debug("the journal could not be read just now: %s", error)
        progress.show(records)
        for record in records:
            observe(record["kind"], record)
        observe("tracking", {"waiting_points": sink.waiting_points})
    progress.close()


def read_outcome(plan: Plan) -> dict[str, Any]:
    """The summary, from the journal's last record. Raises RuntimeError where that ends no run."""
    plan.directory.check_present()
    last = (read_journal(plan.directory) or [{"kind": "none"}])[-1]
    if last["kind"] not in ("finished", "diverged", "too_damaged", "stopped"):
        raise RuntimeError(f"the workers returned, but the journal of {plan.directory.uri} has no end")
    outcome = {"status": last["kind"], "steps": last.get("steps", last.get("step"))}
    outcome |= {
        key: last.get(key) for key in ("epochs", "top1_error", "top5_error", "images_per_second", "weights_sha256")
    }
    if "reason" in last:
        outcome["reason"] = last["reason"]
    model = last.get("model")
    return outcome | {
        "fingerprint": plan.recipe.fingerprint(),
        "mlflow_run_id": None,
        # What MLflow's loaders take, once the model is registered.
        "model_uri": plan.directory.child(model) if model else None,
        "weights_uri": plan.directory.child(model) if model else None,
    }


def _result(summary: dict[str, Any]) -> str:
    if summary["status"] == "diverged":
        return f"the training loss was no longer finite at step {summary['steps']}; lower --schedule.learning-rate"
    return (
        f"{summary['steps']} steps, top-1 error {summary['top1_error']:.2%}, top-5 error {summary['top5_error']:.2%}, "
        f"{summary['images_per_second']:.1f} images/s, weights in {summary.get('weights_uri') or summary['model_uri']}"
    )
