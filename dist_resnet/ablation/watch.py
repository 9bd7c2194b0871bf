"""The driver's work while a sweep's trials run: shows their journals, delivers them to MLflow, writes summaries."""

import contextlib
import dataclasses
import logging
import queue
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from dist_resnet.ablation.board import Board
from dist_resnet.ablation.trial import Trial
from dist_resnet.launch.follow import Lookout, RunFollower, outcome, with_waiting_points
from dist_resnet.launch.mlflow_page import result_files, run_description
from dist_resnet.launch.ray import tune as ray_tune
from dist_resnet.launch.ray.telemetry import RunTelemetry
from dist_resnet.tracking import stop
from dist_resnet.tracking.mlflow.sink import MlflowSink
from dist_resnet.tracking.records import Record, Stopped
from dist_resnet.tracking.run_directory import SUMMARY_FILE, RunDirectory

logger = logging.getLogger(__name__)

_SECONDS_FOR_MLFLOW = 30.0
# MLflow gets about this many points of a run's training metrics; the journal has every step.
_POINTS_IN_MLFLOW = 2000


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
        """`directory` is the sweep's; `unfinished` are the trials that this driver will start."""
        self._directory, self._early_stop = directory, early_stop
        self._trials, self._board = trials, board
        self._ends = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trial-end")
        self._watched = {trial.name: _Watched(trial, parent, tracking_uri, board, self._ends) for trial in trials}
        for trial in unfinished:
            self._watched[trial.name].recall()
        self._pending: list[tuple[str, str]] = []
        self._events: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._lookout = Lookout(self._look)

    def report(self, name: str, what: str) -> None:
        """Takes the event that a trial has `started`, was `retried`, has `ended` or `died`, from any thread."""
        self._events.put((name, what))

    def close(self, status: str, *, wait_seconds: float = _SECONDS_FOR_MLFLOW) -> None:
        """Looks once more, and ends the MLflow run of every trial that has not ended with `status`."""
        self._lookout.close(wait_seconds=wait_seconds)
        for watched in self._watched.values():
            watched.close(status, wait_seconds=wait_seconds)
        self._ends.shutdown(wait=True)
        for name, watched in self._watched.items():
            if watched.ending and (error := watched.ending.exception()):
                logger.error("the end of %s could not be recorded: %s", name, error)
        self._board.close()

    def _look(self) -> None:
        """Reads the new records of every started trial."""
        with contextlib.suppress(queue.Empty):
            while True:
                name, what = self._events.get_nowait()
                self._watched[name].begin()
                self._pending.append((name, what))
        for watched in self._watched.values():
            watched.look()
        # Kept until the journals have been read, in case that fails this time.
        while self._pending:
            name, what = self._pending[0]
            self._note(self._watched[name], what)
            self._pending.pop(0)
        self._board.draw(self._trials)

    def _note(self, watched: "_Watched", what: str) -> None:
        """Handles an event of a trial after its journal has been read up to it."""
        trial = watched.trial
        if what == "retried":
            self._board.say(trial.name, "its process died; it resumes from its newest checkpoint")
        elif what == "died" and not trial.is_over:
            trial.status = "died"
            self._board.say(trial.name, "died too often; run the same command to try again")
        elif what == "ended" and trial.status == "running":
            self._settle_without_record(watched)
        if what in ("ended", "died"):
            watched.leave(has_ended=what == "ended")

    def _settle_without_record(self, watched: "_Watched") -> None:
        """Sets the status of a trial that has ended without a final record in its journal."""
        trial = watched.trial
        if self._directory.exists(stop.FILE):
            trial.status = "paused"  # it had died and was not started again
        elif self._early_stop:
            trial.status = "stopped"
            self._board.say(trial.name, "stopped early")
            watched.sum_up()
        else:
            trial.status = "died"
            self._board.say(trial.name, "ended without a result; run the same command to try again")


class _Watched:
    """A trial that is followed once this driver has started it, with its followers."""

    def __init__(
        self, trial: Trial, parent: MlflowSink, tracking_uri: str, board: Board, ends: ThreadPoolExecutor
    ) -> None:
        self.trial, self.ending = trial, None
        self._parent, self._uri, self._board, self._ends = parent, tracking_uri, board, ends
        self._follower = RunFollower(trial.plan.directory)
        self._is_to_start = self._is_followed = self._has_records = False
        self._sink: MlflowSink | None = None
        self._telemetry: RunTelemetry | None = None

    ending: Future | None
    """Ends its MLflow run and writes its summary."""

    def recall(self) -> None:
        """Reads the records of earlier drivers, for a trial that this driver will start."""
        self.trial.recall(self._follower.look())
        self._is_to_start = True

    def begin(self) -> None:
        """Follows the trial from now on, with telemetry for Prometheus if this driver starts it."""
        if self._is_followed:
            return
        self._is_followed = True
        if self._is_to_start:
            self._telemetry = RunTelemetry(ray_tune.label(self.trial.plan), workers_wanted=1).start()
            self._follower.report(with_waiting_points(self._observe, self._waiting_points))
        self._follower.report(self._show)

    def look(self) -> None:
        """Reads the new records of a followed trial; the first ones create its MLflow run."""
        if not self._is_followed:
            return
        self._has_records = bool(self._follower.look()) or self._has_records
        if self._has_records and self._sink is None:
            self._sink = self._open_sink()
            self._follower.report(self._sink.take)
        if self.trial.status in ("finished", "fail") and self.ending is None:
            self.sum_up()

    def leave(self, *, has_ended: bool) -> None:
        """Ends the telemetry."""
        if self._telemetry is None:
            return
        telemetry, self._telemetry = self._telemetry, None
        if has_ended:
            telemetry([Stopped(step=self.trial.step)])
        telemetry.close()

    def sum_up(self) -> None:
        """Ends its MLflow run with the result and writes its summary, in another thread."""
        assert self._sink is not None
        self.ending = self._ends.submit(self._end, self._sink)

    def close(self, status: str, *, wait_seconds: float) -> None:
        """Ends its MLflow run with `status`, or with that of the trial, unless it has ended."""
        self.leave(has_ended=False)
        if self._sink and self.ending is None:
            end = {"died": "FAILED", "paused": "KILLED"}.get(self.trial.status, status)
            self.ending = self._ends.submit(self._sink.close, end, {}, wait_seconds=wait_seconds)

    def _show(self, records: Sequence[Record]) -> None:
        for line in self.trial.take(records):
            self._board.say(self.trial.name, line)

    def _observe(self, records: Sequence[Record]) -> None:
        if self._telemetry:
            self._telemetry(records)

    def _waiting_points(self) -> int:
        return self._sink.waiting_points if self._sink else 0

    def _open_sink(self) -> MlflowSink:
        card = run_description(self.trial.plan)
        card = dataclasses.replace(card, tags=card.tags | tags_of(self.trial))
        return MlflowSink(
            self._uri,
            self.trial.plan.directory,
            card,
            records=self._follower.look_back(),
            parent=self._parent,
            every=max(1, self.trial.total // _POINTS_IN_MLFLOW),
        )

    def _end(self, sink: MlflowSink) -> None:
        """Writes a trial's summary. Its MLflow run is FINISHED even for a "fail", which is a result of the table."""
        trial, plan = self.trial, self.trial.plan
        stopped = trial.status == "stopped"
        result = "fail" if trial.status == "fail" else "stopped" if stopped else f"{100 * (trial.error or 0):.2f}"
        sink.close("FINISHED", result_files(plan), tags={"result": result}, wait_seconds=_SECONDS_FOR_MLFLOW)
        ending = Stopped(step=trial.step) if stopped else self._follower.ending
        summary = outcome(plan, ending) | {"mlflow_run_id": sink.run_id}
        if stopped:
            summary["top1_error"] = trial.error
        plan.directory.write_json(SUMMARY_FILE, summary)


def tags_of(trial: Trial) -> dict[str, str]:
    """The tags by which MLflow finds a trial; a trial of several cells has all of their keys."""
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
