"""The driver's part while a sweep's trials run: their journals shown, delivered to MLflow, and summed up at the end."""

import contextlib
import dataclasses
import logging
import queue
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

from dist_resnet import paper
from dist_resnet.ablation.board import Board
from dist_resnet.ablation.grid import Cell
from dist_resnet.launch.mlflow_page import pictures, run_card
from dist_resnet.launch.plan import Plan
from dist_resnet.launch.ray import tune as ray_tune
from dist_resnet.launch.ray.telemetry import RunTelemetry
from dist_resnet.launch.supervise import read_outcome
from dist_resnet.tracking import stop
from dist_resnet.tracking.journal import Tail
from dist_resnet.tracking.mlflow.sink import MlflowSink
from dist_resnet.tracking.run_directory import SUMMARY_FILE, RunDirectory

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_FOR_MLFLOW = 30.0
# A run's training metrics make about this many points in MLflow; its journal has every step.
_POINTS_IN_MLFLOW = 2000
# Throughput and time left are those of the newest steps.
_STEPS_AVERAGED = 50

# `stopped`: early, for it trailed behind. `paused`: with a checkpoint, because it was asked to.
Status = Literal["waiting", "running", "finished", "fail", "stopped", "paused", "died"]


class Trial:
    """One run of a sweep, as its journal tells it."""

    def __init__(self, plan: Plan, cells: Sequence[Cell]) -> None:
        self.plan, self.cells = plan, tuple(cells)
        self.status: Status = "waiting"
        self.step, self.error = 0, None
        self.total = plan.num_steps
        self._recent: deque[float] = deque(maxlen=_STEPS_AVERAGED)

    error: float | None
    """The newest validation error, as a fraction."""

    @property
    def name(self) -> str:
        """The run's folder within the sweep's."""
        return self.plan.name

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at the speed of the newest steps."""
        if not self._recent:
            return None
        return (self.total - self.step) * sum(self._recent) / len(self._recent)

    @property
    def is_over(self) -> bool:
        """Whether the trial will not be run again by this driver."""
        return self.status not in ("waiting", "running")

    def take(self, records: list[dict[str, Any]]) -> list[str]:
        """Takes in journal records; returns what a reader of lines should be told."""
        told = []
        for record in records:
            if record["kind"] == "session":
                self.status, self.step = "running", record["start_step"]
                told.append(f"going on after step {self.step}" if self.step else f"starting on {record['device']}")
            elif record["kind"] == "metrics" and "val/loss" in record["values"]:
                self.error = record["values"]["val/top1_error"]
                told.append(f"step {record['step']}/{self.total}: validation error {self.error:.2%}")
            elif record["kind"] == "metrics" and "train/loss" in record["values"]:
                self.step = record["step"]
                self._recent.append(record["values"]["time/step_seconds"])
            elif record["kind"] in ("finished", "diverged"):
                self.status = "fail" if self.is_fail(record["kind"], self.error) else "finished"
                told.append("fail: the loss is no longer finite" if record["kind"] == "diverged" else self.status)
            elif record["kind"] == "stopped":
                self.status = "paused"
                told.append(f"stopped after step {record['step']}; the same command goes on there")
            elif record["kind"] == "too_damaged":
                self.status = "died"
                told.append(record["reason"])
        return told

    def recall(self, records: list[dict[str, Any]]) -> None:
        """Takes in what was recorded under earlier drivers; it waits for this one to start it."""
        self.take(records)
        self.status = "waiting"
        self._recent.clear()

    def sum_up(self, summary: dict[str, Any]) -> None:
        """Takes over the result of a run that was summed up before."""
        self.step, self.error = summary["steps"], summary["top1_error"]
        stopped = summary["status"] == "stopped"
        self.status = "stopped" if stopped else "fail" if self.is_fail(summary["status"], self.error) else "finished"

    def is_fail(self, status: str, error: float | None) -> bool:
        """Whether a run that ended so is a "fail" of Table 1: diverged, or on CIFAR-10 above 20 % error.

        CIFAR-100's published errors lie above 20 % themselves, and those of shortened runs say nothing.
        """
        counts = self.plan.recipe.data.dataset == "cifar10" and self.total >= paper.CIFAR_ITERATIONS
        return status == "diverged" or (counts and error is not None and 100 * error > paper.FAIL_ABOVE)


class Watcher:
    """A background thread that follows the trials of a sweep until it is closed."""

    def __init__(
        self,
        directory: RunDirectory,
        trials: Sequence[Trial],
        unfinished: Sequence[Trial],
        parent: MlflowSink,
        tracking_uri: str,
        board: Board,
        *,
        early_stop: bool = False,
    ) -> None:
        """`directory`: the sweep's. `unfinished`: the trials that have yet to be started under this driver."""
        self._directory, self._early_stop = directory, early_stop
        self._trials = {trial.name: trial for trial in trials}
        self._parent, self._uri, self._board = parent, tracking_uri, board
        self._tails: dict[str, Tail] = {}
        # Read up to what earlier drivers saw.
        self._waiting = {trial.name: Tail(trial.plan.directory) for trial in unfinished}
        for trial in unfinished:
            trial.recall(self._waiting[trial.name].poll())
        self._sinks: dict[str, MlflowSink] = {}
        self._telemetry: dict[str, RunTelemetry] = {}
        self._told: list[tuple[str, str]] = []
        self._heard: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._over = threading.Event()
        self._ends = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trial-end")
        self._ending: dict[str, Future] = {}
        self._thread = threading.Thread(target=self._follow, name="watcher", daemon=True)
        self._thread.start()

    def tell(self, name: str, what: str) -> None:
        """Hears that a trial has `started`, was `retried`, has `ended` or `died`; from any thread."""
        self._heard.put((name, what))

    def close(self, status: str, *, wait_seconds: float = _SECONDS_FOR_MLFLOW) -> None:
        """Looks once more and ends the MLflow run of every trial without an end of its own with `status`."""
        self._over.set()
        self._thread.join()
        for name in list(self._telemetry):
            self._telemetry.pop(name).close()
        for name, sink in self._sinks.items():
            if name not in self._ending:
                end = {"died": "FAILED", "paused": "KILLED"}.get(self._trials[name].status, status)
                self._ending[name] = self._ends.submit(sink.close, end, {}, wait_seconds=wait_seconds)
        self._ends.shutdown(wait=True)
        for name, future in self._ending.items():
            if error := future.exception():
                logger.error("the end of %s could not be recorded: %s", name, error)
        self._board.close()

    def _follow(self) -> None:
        last = False
        while not last:
            last = self._over.wait(_SECONDS_BETWEEN_LOOKS)
            try:
                self._look()
            except OSError as error:
                logger.debug("a journal could not be read just now: %s", error)

    def _look(self) -> None:
        """Reads what is new of every trial that has started."""
        with contextlib.suppress(queue.Empty):
            while True:
                name, what = self._heard.get_nowait()
                if name in self._waiting:
                    self._tails[name] = self._waiting.pop(name)
                    run = ray_tune.label(self._trials[name].plan)
                    self._telemetry[name] = RunTelemetry(run, workers_wanted=1).start()
                self._tails.setdefault(name, Tail(self._trials[name].plan.directory))
                self._told.append((name, what))
        for name, tail in self._tails.items():
            trial = self._trials[name]
            records = tail.poll()
            self._observe(trial, records)
            for line in trial.take(records):
                self._board.say(name, line)
            if records and name not in self._sinks:
                self._sinks[name] = self._open_sink(trial)
            if trial.status in ("finished", "fail") and name not in self._ending:
                self._ending[name] = self._ends.submit(self._end, trial, self._sinks[name])
        # Kept until the journals have been read, should that fail this time.
        while self._told:
            name, what = self._told[0]
            self._note(self._trials[name], what)
            self._told.pop(0)
        self._board.draw(list(self._trials.values()))

    def _observe(self, trial: Trial, records: list[dict[str, Any]]) -> None:
        """Tells Prometheus what is new of a trial, from its start under this driver to its end."""
        if trial.name not in self._telemetry:
            return
        telemetry = self._telemetry[trial.name]
        for record in records:
            telemetry(record["kind"], record)
        if sink := self._sinks.get(trial.name):
            telemetry("tracking", {"waiting_points": sink.waiting_points})

    def _note(self, trial: Trial, what: str) -> None:
        """What Tune says of a trial whose journal has been read up to then."""
        if what == "retried":
            self._board.say(trial.name, "its process died; it starts again from its newest checkpoint")
        elif what == "died" and not trial.is_over:
            trial.status = "died"
            self._board.say(trial.name, "died too often; the same command tries again")
        elif what == "ended" and trial.status == "running":
            self._end_without_a_word(trial)
        if what in ("ended", "died") and trial.name in self._telemetry:
            telemetry = self._telemetry.pop(trial.name)
            if what == "ended":
                telemetry("stopped", {})
            telemetry.close()

    def _end_without_a_word(self, trial: Trial) -> None:
        """Settles how a trial stands that has ended and whose journal does not say how."""
        if self._directory.exists(stop.FILE):
            trial.status = "paused"  # it had died, and was not begun again
        elif self._early_stop:
            trial.status = "stopped"
            self._board.say(trial.name, "stopped early")
            self._ending[trial.name] = self._ends.submit(self._end, trial, self._sinks[trial.name])
        else:
            trial.status = "died"
            self._board.say(trial.name, "ended without a result; the same command tries again")

    def _open_sink(self, trial: Trial) -> MlflowSink:
        card = run_card(trial.plan)
        card = dataclasses.replace(card, tags=card.tags | tags_of(trial))
        every = max(1, trial.total // _POINTS_IN_MLFLOW)
        return MlflowSink(self._uri, trial.plan.directory, card, parent=self._parent, every=every)

    def _end(self, trial: Trial, sink: MlflowSink) -> None:
        """Sums a trial up. Its MLflow run has FINISHED also where the result is "fail", which is one of the table's."""
        plan = trial.plan
        stopped = trial.status == "stopped"
        result = "fail" if trial.status == "fail" else "stopped" if stopped else f"{100 * (trial.error or 0):.2f}"
        sink.close("FINISHED", pictures(plan), tags={"result": result}, wait_seconds=_SECONDS_FOR_MLFLOW)
        summary = _stopped_outcome(trial) if stopped else read_outcome(plan)
        summary["mlflow_run_id"] = sink.run_id
        plan.directory.write_json(SUMMARY_FILE, summary)


def tags_of(trial: Trial) -> dict[str, str]:
    """What a trial is found by in MLflow; one that serves cells of several tables has all of their keys."""
    model = trial.plan.recipe.model
    return {
        "cell": " ".join(cell.key for cell in trial.cells),
        "table": " ".join(dict.fromkeys(cell.table for cell in trial.cells)),
        "depth": str(model.depth),
        "shortcut": model.shortcut,
        "placement": model.placement,
        "dataset": trial.plan.recipe.data.dataset,
        "seed": str(trial.plan.recipe.seed),
    }


def _stopped_outcome(trial: Trial) -> dict[str, Any]:
    return {
        "status": "stopped",
        "steps": trial.step,
        "epochs": None,
        "top1_error": trial.error,
        "top5_error": None,
        "images_per_second": None,
        "weights_sha256": None,
        "fingerprint": trial.plan.recipe.fingerprint(),
        "mlflow_run_id": None,
        "model_uri": None,
        "weights_uri": None,
    }
