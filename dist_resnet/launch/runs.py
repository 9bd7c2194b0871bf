"""The status and progress of a run or a sweep, read from its directory only, from any machine."""

import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dist_resnet.launch.pace import Pace
from dist_resnet.tracking import journal, stop
from dist_resnet.tracking.journal import history, read_journal
from dist_resnet.tracking.mlflow.ledger import runs_on_servers
from dist_resnet.tracking.records import (
    ENDINGS,
    Checkpoint,
    Damaged,
    Diverged,
    Finished,
    Record,
    Session,
    Stopped,
    Straggler,
    TooDamaged,
)
from dist_resnet.tracking.run_directory import RECIPE_FILE, SUMMARY_FILE, SWEEP_FILE, RunDirectory
from dist_resnet.wording import clock


@dataclass(frozen=True, kw_only=True)
class RunOverview:
    """A run's status and progress, from its recipe and journal; None if they do not say yet."""

    name: str
    directory: str
    status: str
    """How it ended: finished, diverged, too_damaged or stopped; else `open`: it trains, or its driver died."""
    last_record_at: float | None = None
    """When the newest record was written, in seconds since 1970."""
    world_size: int | None = None
    device: str | None = None
    step: int = 0
    total_steps: int | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None
    """At the speed of the newest steps; None if nothing is left or the run is not open."""
    loss: float | None = None
    top1_error: float | None = None
    validated_step: int | None = None
    validation_top1_error: float | None = None
    checkpoint_step: int | None = None
    checkpoint_at: float | None = None
    """When the newest checkpoint was committed, in seconds since 1970."""
    restarts: int = 0
    """Restarts of the workers other than after a stop: after failures and, with MIN:MAX, after machines joined."""
    damaged_images: int = 0
    held_back: str | None = None
    """Which worker the others wait for, if the run is open and one costs more than a tenth of its time."""
    reason: str | None = None
    """Why it ended, if it neither finished nor was stopped."""
    mlflow_runs: dict[str, str]
    """Tracking server -> the run's id there."""

    def line(self) -> str:
        """The run in one line: name, status, workers, steps, speed, time left, checkpoint, restarts."""
        checkpoint = self._checkpoint()
        if self.total_steps:
            checkpoint = f"checkpoint {checkpoint}" if checkpoint else "no checkpoint yet"
        parts = [f"{self.name}: {self.status}", self._workers(), self._steps(), self._speed(), checkpoint]
        if self.restarts:
            parts.append(f"{self.restarts} restart{'s' * (self.restarts > 1)}")
        return ", ".join(part for part in parts if part)

    def details(self) -> str:
        """All that is known of the run, a line each."""
        errors = "" if self.loss is None else f"loss {self.loss:.3f}, error {self.top1_error:.1%}"
        validated = ""
        if self.validation_top1_error is not None:
            validated = f"top-1 error {self.validation_top1_error:.2%} after step {self.validated_step}"
        age = "" if self.last_record_at is None else f", last record {_ago(self.last_record_at)}"
        lines = {
            "run": f"{self.name}, {self.directory}",
            "status": f"{self.status}{age}",
            "workers": self._workers() and f"{self._workers()} ({self.device})",
            "steps": self._steps(),
            "speed": self._speed(),
            "held back": self.held_back or "",
            "training": errors,
            "validation": validated,
            "checkpoint": self._checkpoint() or ("none yet" if self.total_steps else ""),
            "restarts": str(self.restarts),
            "damaged": f"{self.damaged_images} images" if self.damaged_images else "",
            "reason": self.reason or "",
        } | {"mlflow": ", ".join(f"{run} at {server}" for server, run in self.mlflow_runs.items())}
        return "\n".join(f"{key:<11} {value}" for key, value in lines.items() if value)

    def _workers(self) -> str:
        return f"{self.world_size} worker{'s' * (self.world_size > 1)}" if self.world_size else ""

    def _steps(self) -> str:
        return f"step {self.step}/{self.total_steps} ({self.step / self.total_steps:.0%})" if self.total_steps else ""

    def _speed(self) -> str:
        rate = "" if self.images_per_second is None else f"{self.images_per_second:.1f} images/s"
        return rate if self.seconds_left is None else f"{rate}, {clock(self.seconds_left)} left"

    def _checkpoint(self) -> str:
        if self.checkpoint_step is None or self.checkpoint_at is None:
            return ""
        return f"of step {self.checkpoint_step}, {_ago(self.checkpoint_at)}"


@dataclass(frozen=True, kw_only=True)
class SweepOverview:
    """A sweep's status and progress, from its trials' directories."""

    name: str
    directory: str
    status: str
    """`finished`, `stopped`, or else `open`: it runs, or its driver died."""
    trials: dict[str, str]
    """Trial -> `waiting`, `started`, or the status of its summary."""
    started: dict[str, RunOverview]
    """The trials that have started and have no summary."""
    mlflow_runs: dict[str, str]
    """Tracking server -> the run of the whole sweep there."""

    def line(self) -> str:
        """The sweep in one line: name, status, number of trials of each status."""
        counts = ", ".join(f"{number} {status}" for status, number in Counter(self.trials.values()).items())
        return f"{self.name}: {self.status}, {len(self.trials)} trials: {counts}"

    def details(self) -> str:
        """The same, and a line for each trial that has started and not ended."""
        lines = [f"{'sweep':<11} {self.directory}", f"{'status':<11} {self.line().partition(': ')[2]}"]
        lines += [f"{'trial':<11} {trial.line()}" for trial in self.started.values()]
        if self.mlflow_runs:
            lines.append(
                f"{'mlflow':<11} {', '.join(f'{run} at {server}' for server, run in self.mlflow_runs.items())}"
            )
        return "\n".join(lines)


def read_overview(directory: RunDirectory) -> RunOverview | SweepOverview:
    """The status and progress of a run or a sweep. Raises FileNotFoundError if the directory is that of neither."""
    known = directory.read_json(RECIPE_FILE)
    if known is not None and "probe" not in known:
        return _run_overview(directory, known)
    content = directory.read_json(SWEEP_FILE)
    if content is not None:
        return _sweep_overview(directory, content)
    raise FileNotFoundError(
        f"{directory.uri} is not a run: it has neither a {RECIPE_FILE} of a run nor a {SWEEP_FILE}; give --storage and "
        "the name of a run there"
    )


def _sweep_overview(directory: RunDirectory, content: dict[str, Any]) -> SweepOverview:
    trials, started = {}, {}
    for name in dict.fromkeys(entry["trial"] for entry in content["cells"]):
        trial = RunDirectory(directory.child(name))
        summary = trial.read_json(SUMMARY_FILE)
        if summary is not None:
            trials[name] = summary["status"]
        elif trial.list(journal.FOLDER):
            trials[name], started[name] = "started", _run_overview(trial, trial.read_json(RECIPE_FILE) or {})
        else:
            trials[name] = "waiting"
    return SweepOverview(
        name=directory.name,
        directory=directory.uri,
        status=status_of_sweep(directory),
        trials=trials,
        started=started,
        mlflow_runs=runs_on_servers(directory),
    )


def status_of_sweep(directory: RunDirectory) -> str:
    """A sweep's status as in `SweepOverview`, without reading its trials."""
    if directory.exists(SUMMARY_FILE):
        return Finished.kind
    return Stopped.kind if stop.is_confirmed(directory) else "open"


def _run_overview(directory: RunDirectory, known: dict[str, Any]) -> RunOverview:
    records = read_journal(directory)
    session = next((record for record in reversed(records) if isinstance(record, Session)), Session(start_step=0))
    checkpoint = next((record for record in reversed(records) if isinstance(record, Checkpoint)), None)
    last = records[-1] if records else None
    pace = Pace(session.total_steps or 0, known["recipe"]["global_batch"])
    for record in records:
        pace.add(record)
    status = last.kind if isinstance(last, ENDINGS) else "open"
    errors = history(records).get("val/top1_error", [(None, None, None)])
    return RunOverview(
        name=directory.name,
        directory=directory.uri,
        status=status,
        last_record_at=last.time if last else None,
        world_size=session.world_size,
        device=session.device,
        step=pace.step,
        total_steps=session.total_steps,
        images_per_second=pace.images_per_second,
        seconds_left=pace.seconds_left if status == "open" else None,
        loss=pace.values.get("train/loss"),
        top1_error=pace.values.get("train/top1_error"),
        validated_step=errors[-1][0],
        validation_top1_error=errors[-1][2],
        checkpoint_step=checkpoint.step if checkpoint else None,
        checkpoint_at=checkpoint.time if checkpoint else None,
        restarts=_restarts(records),
        damaged_images=sum(isinstance(record, Damaged) for record in records),
        held_back=_held_back(records) if status == "open" else None,
        reason=_reason(last),
        mlflow_runs=runs_on_servers(directory),
    )


def names_of_runs(storage: RunDirectory) -> list[str]:
    """The names of the runs and sweeps under a storage, including damaged ones but not a probe's results."""
    names = []
    for name in (name for name, size in storage.list("") if size < 0):
        try:
            known = storage.read_json(f"{name}/{RECIPE_FILE}")
        except ValueError:
            known = {}
        if (known is not None and "probe" not in known) or storage.exists(f"{name}/{SWEEP_FILE}"):
            names.append(name)
    return names


def _ago(moment: float) -> str:
    return f"{clock(max(0.0, time.time() - moment))} ago"


def _restarts(records: Sequence[Record]) -> int:
    """The number of sessions except the first and those after a stop."""
    pairs = itertools.pairwise([None, *records])
    return sum(isinstance(record, Session) and not isinstance(before, Stopped | None) for before, record in pairs)


def _held_back(records: Sequence[Record]) -> str | None:
    """The newest finding of a straggler that holds, in words; a restart of the workers forgets it."""
    newest = next((record for record in reversed(records) if isinstance(record, Session | Straggler)), None)
    return str(newest) if isinstance(newest, Straggler) and newest.fraction is not None else None


def _reason(last: Record | None) -> str | None:
    match last:
        case Diverged():
            return f"the training loss was no longer finite at step {last.step}; lower --schedule.learning-rate"
        case TooDamaged():
            return last.reason
    return None
