"""Where a run or a sweep stands, read from its directory alone, whoever trains it and wherever."""

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
    TooDamaged,
)
from dist_resnet.tracking.run_directory import RECIPE_FILE, SUMMARY_FILE, SWEEP_FILE, RunDirectory
from dist_resnet.wording import clock


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What the recipe and the journal of a run say; None for what they do not say yet."""

    name: str
    directory: str
    status: str
    """How it ended: finished, diverged, too_damaged or stopped; else `open`: it trains, or whoever trained it died."""
    told_at: float | None = None
    """When the newest record was made, in seconds since 1970."""
    world_size: int | None = None
    device: str | None = None
    step: int = 0
    total_steps: int | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None
    """At the pace of the newest steps; None where nothing is left or nobody is at it."""
    loss: float | None = None
    top1_error: float | None = None
    validated_step: int | None = None
    validation_top1_error: float | None = None
    checkpoint_step: int | None = None
    checkpoint_at: float | None = None
    """When the newest checkpoint was committed, in seconds since 1970."""
    restarts: int = 0
    """Starts of the workers that followed no stop: failures, and with MIN:MAX workers machines that came."""
    damaged_images: int = 0
    reason: str | None = None
    """Why it ended, where that is no finish and no stop."""
    mlflow_runs: dict[str, str]
    """Tracking server -> the run's id there."""

    def line(self) -> str:
        """The run in one line: name, how it stands, workers, steps, pace, time left, checkpoint, restarts."""
        parts = [f"{self.name}: {self.status}", self._workers(), self._steps(), self._pace(), self._checkpoint()]
        if self.restarts:
            parts.append(f"{self.restarts} restart{'s' * (self.restarts > 1)}")
        return ", ".join(part for part in parts if part)

    def page(self) -> str:
        """The same and the rest, a line for each."""
        errors = "" if self.loss is None else f"loss {self.loss:.3f}, error {self.top1_error:.1%}"
        validated = ""
        if self.validation_top1_error is not None:
            validated = f"top-1 error {self.validation_top1_error:.2%} after step {self.validated_step}"
        lines = {
            "run": f"{self.name}, {self.directory}",
            "status": f"{self.status}{'' if self.told_at is None else f', last heard of {_ago(self.told_at)}'}",
            "workers": self._workers() and f"{self._workers()} ({self.device})",
            "steps": self._steps(),
            "pace": self._pace(),
            "training": errors,
            "validation": validated,
            "checkpoint": self._checkpoint(),
            "restarts": str(self.restarts),
            "damaged": f"{self.damaged_images} images" if self.damaged_images else "",
            "reason": self.reason or "",
        } | {"mlflow": ", ".join(f"{run} at {server}" for server, run in self.mlflow_runs.items())}
        return "\n".join(f"{key:<11} {value}" for key, value in lines.items() if value)

    def _workers(self) -> str:
        return f"{self.world_size} worker{'s' * (self.world_size > 1)}" if self.world_size else ""

    def _steps(self) -> str:
        return f"step {self.step}/{self.total_steps} ({self.step / self.total_steps:.0%})" if self.total_steps else ""

    def _pace(self) -> str:
        rate = "" if self.images_per_second is None else f"{self.images_per_second:.1f} images/s"
        return rate if self.seconds_left is None else f"{rate}, {clock(self.seconds_left)} left"

    def _checkpoint(self) -> str:
        if self.checkpoint_step is None or self.checkpoint_at is None:
            return "no checkpoint" if self.total_steps else ""
        return f"checkpoint of step {self.checkpoint_step} {_ago(self.checkpoint_at)}"


@dataclass(frozen=True, kw_only=True)
class SweepStanding:
    """What the folders of a sweep's trials say."""

    name: str
    directory: str
    status: str
    """`finished`, `stopped`, or else `open`: it runs, or whoever ran it died."""
    trials: dict[str, str]
    """Trial -> `waiting`, `begun`, or how its summary says that it ended."""
    begun: dict[str, Standing]
    """Of the trials that have begun and have no summary."""
    mlflow_runs: dict[str, str]
    """Tracking server -> the run of the whole sweep there."""

    def line(self) -> str:
        """The sweep in one line: name, how it stands, how many trials stand how."""
        counts = ", ".join(f"{number} {status}" for status, number in Counter(self.trials.values()).items())
        return f"{self.name}: {self.status}, {len(self.trials)} trials: {counts}"

    def page(self) -> str:
        """The same, and a line for each trial that has begun and not ended."""
        lines = [f"{'sweep':<11} {self.directory}", f"{'status':<11} {self.line().partition(': ')[2]}"]
        lines += [f"{'trial':<11} {standing.line()}" for standing in self.begun.values()]
        if self.mlflow_runs:
            lines.append(
                f"{'mlflow':<11} {', '.join(f'{run} at {server}' for server, run in self.mlflow_runs.items())}"
            )
        return "\n".join(lines)


def read_standing(directory: RunDirectory) -> Standing | SweepStanding:
    """Reads where a run or a sweep stands. Raises FileNotFoundError where the directory is that of neither."""
    known = directory.read_json(RECIPE_FILE)
    if known is not None and "probe" not in known:
        return _run_standing(directory, known)
    content = directory.read_json(SWEEP_FILE)
    if content is not None:
        return _sweep_standing(directory, content)
    raise FileNotFoundError(
        f"{directory.uri} is not a run: it has no {RECIPE_FILE} of a run and no {SWEEP_FILE}; give --storage and the "
        "name of a run there"
    )


def _sweep_standing(directory: RunDirectory, content: dict[str, Any]) -> SweepStanding:
    trials, begun = {}, {}
    for name in dict.fromkeys(entry["trial"] for entry in content["cells"]):
        trial = RunDirectory(directory.child(name))
        summary = trial.read_json(SUMMARY_FILE)
        if summary is not None:
            trials[name] = summary["status"]
        elif trial.list(journal.FOLDER):
            trials[name], begun[name] = "begun", _run_standing(trial, trial.read_json(RECIPE_FILE) or {})
        else:
            trials[name] = "waiting"
    return SweepStanding(
        name=directory.name,
        directory=directory.uri,
        status=status_of_sweep(directory),
        trials=trials,
        begun=begun,
        mlflow_runs=runs_on_servers(directory),
    )


def status_of_sweep(directory: RunDirectory) -> str:
    """How a sweep stands, as in `SweepStanding`, without a look at its trials."""
    if directory.exists(SUMMARY_FILE):
        return Finished.kind
    return Stopped.kind if stop.is_confirmed(directory) else "open"


def _run_standing(directory: RunDirectory, known: dict[str, Any]) -> Standing:
    records = read_journal(directory)
    session = next((record for record in reversed(records) if isinstance(record, Session)), Session(start_step=0))
    checkpoint = next((record for record in reversed(records) if isinstance(record, Checkpoint)), None)
    last = records[-1] if records else None
    pace = Pace(session.total_steps or 0, known["recipe"]["global_batch"])
    for record in records:
        pace.add(record)
    status = last.kind if isinstance(last, ENDINGS) else "open"
    errors = history(records).get("val/top1_error", [(None, None, None)])
    return Standing(
        name=directory.name,
        directory=directory.uri,
        status=status,
        told_at=last.time if last else None,
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
        reason=_reason(last),
        mlflow_runs=runs_on_servers(directory),
    )


def names_of_runs(storage: RunDirectory) -> list[str]:
    """The names of the runs and sweeps under a storage, damaged ones too; a probe's results are neither."""
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
    """Sessions but the first, and but those that went on after a stop."""
    pairs = itertools.pairwise([None, *records])
    return sum(isinstance(record, Session) and not isinstance(before, Stopped | None) for before, record in pairs)


def _reason(last: Record | None) -> str | None:
    match last:
        case Diverged():
            return f"the training loss was no longer finite at step {last.step}; lower --schedule.learning-rate"
        case TooDamaged():
            return last.reason
    return None
