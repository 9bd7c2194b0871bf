"""The results of a sweep's trials so far, read from their journals at any time."""

import math
import statistics
from dataclasses import dataclass, field
from typing import Any, Literal

from dist_resnet import paper
from dist_resnet.ablation.sessions import Evaluation, Sessions, count_sessions, evaluations, same_answer
from dist_resnet.tracking.journal import history, read_journal
from dist_resnet.tracking.records import Diverged, Finished, Record, Session, Stopped
from dist_resnet.tracking.run_directory import SWEEP_FILE, RunDirectory

# A panel cannot show more, and means over longer spans are smoother.
_POINTS = 200

Curve = list[tuple[int, float]]
State = Literal["not started", "unfinished", "finished", "diverged", "stopped early"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One cell trained with one seed. Errors are percentages."""

    seed: int
    name: str
    """The trial's folder in the sweep's directory."""
    state: State
    steps: int
    """Optimizer steps taken."""
    total_steps: int | None
    """Optimizer steps of the whole run, once it has started."""
    newest_error: float | None
    """Test error of the newest evaluation; of a finished trial, the result."""
    fingerprint: str
    data: tuple[str | None, str | None]
    """Digests of the training and of the test shards, once the trial has started."""
    device: str | None
    precision: str | None
    """Precision of the steps; None if the journal does not have it."""
    commit: str | None
    """Commit of the code; None if the journal does not have it."""
    outcome: Finished
    """The journal's last record; an empty one before the end and if the trial diverged."""
    sessions: Sessions
    evaluations: list[Evaluation]
    training_loss: Curve
    """(step, mean cross-entropy of the steps since the previous point)."""
    test_error: Curve
    """(step, test error)."""

    @property
    def images_per_second(self) -> float | None:
        """Speed of the last session's steps; None before the trial has finished."""
        return self.outcome.images_per_second

    @property
    def final_loss(self) -> float | None:
        """Mean training loss of the steps since the last evaluation but one, about an epoch."""
        return self.evaluations[-1].training_loss if self.evaluations else None

    @property
    def is_over(self) -> bool:
        """Whether the trial has a result: an error, or divergence."""
        return self.state in ("finished", "diverged")

    @property
    def result(self) -> float:
        """The test error of a trial that is over; infinite if it diverged."""
        assert self.is_over
        return math.inf if self.state == "diverged" or self.newest_error is None else self.newest_error


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table with its trials, one for each seed."""

    key: str
    table: str
    row: str
    depth: int
    dataset: str
    paper_error: float | None
    """The published error; infinite for the paper's "fail", None if nothing was published."""
    model: dict[str, Any]
    """Fields of `recipe.Model`."""
    trials: list[Trial] = field(default_factory=list)

    @property
    def is_baseline(self) -> bool:
        """Whether this is the original residual unit, with which every figure of the paper compares."""
        return (self.model.get("shortcut"), self.model.get("placement")) == ("identity", "original")

    @property
    def fail_above(self) -> float:
        """The error above which the paper prints "fail"; none for CIFAR-100, whose published errors are above 20 %."""
        return paper.FAIL_ABOVE if self.dataset == "cifar10" else math.inf

    @property
    def results(self) -> list[float]:
        """The results of the trials that are over."""
        return [trial.result for trial in self.trials if trial.is_over]

    @property
    def median(self) -> float | None:
        """The median result, infinite if most trials diverged; None before the first result."""
        return statistics.median(self.results) if self.results else None

    @property
    def finite(self) -> list[float]:
        """The results of the trials that did not diverge."""
        return [result for result in self.results if math.isfinite(result)]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep's current state."""

    facts: dict[str, Any]
    """`sweep.json` without its cells."""
    cells: list[Cell]

    @property
    def iterations(self) -> int:
        """Optimizer steps of each trial."""
        return self.facts["iterations"]

    @property
    def is_short(self) -> bool:
        """Whether trials are shorter than the paper's."""
        return self.iterations < paper.CIFAR_ITERATIONS

    @property
    def trials(self) -> list[Trial]:
        """Every trial once, even if several cells share it."""
        return list({trial.name: trial for cell in self.cells for trial in cell.trials}.values())

    def fails(self, cell: Cell) -> bool:
        """Whether a cell's median is a "fail" in the paper's sense.

        Of shortened runs only diverged ones are, because all errors are above 20 % early on.
        """
        if cell.median is None:
            return False
        return math.isinf(cell.median) or (cell.median > cell.fail_above and not self.is_short)


def read_sweep(directory: RunDirectory) -> Sweep:
    """The sweep in a directory: `sweep.json` and the trials' folders. Raises FileNotFoundError if it is not there."""
    facts = directory.read_json(SWEEP_FILE)
    if facts is None:
        raise FileNotFoundError(f"no {SWEEP_FILE} under {directory.uri}; run jobs/cifar_ablation.py first")
    trials: dict[str, Trial] = {}
    cells: dict[str, Cell] = {}
    for entry in facts["cells"]:
        name = entry["trial"]
        if name not in trials:
            trials[name] = _read_trial(RunDirectory(directory.child(name)), entry)
        if entry["key"] not in cells:
            cells[entry["key"]] = Cell(
                key=entry["key"],
                table=str(entry["table"]),
                row=entry["row"],
                depth=entry["depth"],
                dataset=entry["dataset"],
                paper_error=math.inf if entry["paper_fail"] else entry["paper_error"],
                model=entry["model"],
            )
        cells[entry["key"]].trials.append(trials[name])
    return Sweep(facts={key: value for key, value in facts.items() if key != "cells"}, cells=list(cells.values()))


def _read_trial(directory: RunDirectory, entry: dict[str, Any]) -> Trial:
    records = read_journal(directory)
    known = directory.read_json("recipe.json") or {}
    data = known.get("recipe", {}).get("data", {})
    points = history(records)
    losses = [(step, value) for step, _, value in points.get("train/loss", [])]
    errors = [(step, 100 * value) for step, _, value in points.get("val/top1_error", [])]
    sessions = [record for record in records if isinstance(record, Session)]
    state = _state(records[-1] if records else None)
    # Only its summary says that a trial was stopped early; its journal just ends, or had ended before.
    if (directory.read_json("summary.json") or {}).get("status") == Stopped.kind:
        state = "stopped early"
    outcome = records[-1] if state == "finished" else None
    outcome = outcome if isinstance(outcome, Finished) else Finished()
    newest_error = errors[-1][1] if errors else None
    return Trial(
        seed=entry["seed"],
        name=entry["trial"],
        state=state,
        steps=outcome.steps or max((step for step, _ in losses), default=0),
        total_steps=sessions[-1].total_steps if sessions else None,
        newest_error=newest_error if outcome.top1_error is None else 100 * outcome.top1_error,
        fingerprint=known.get("fingerprint", entry["fingerprint"]),
        data=(data.get("train_digest"), data.get("validation_digest")),
        device=same_answer(session.device for session in sessions),
        precision=same_answer(session.precision for session in sessions),
        commit=same_answer(session.commit for session in sessions),
        outcome=outcome,
        sessions=count_sessions(records),
        evaluations=evaluations(points),
        training_loss=_means(losses, _POINTS),
        test_error=errors,
    )


def _state(last: Record | None) -> State:
    match last:
        case Finished():
            return "finished"
        case Diverged():
            return "diverged"
    return "unfinished" if last else "not started"


def _means(curve: Curve, num_points: int) -> Curve:
    """The curve in at most `num_points` points, each the mean of a span at the span's last step."""
    width = -(-len(curve) // num_points) or 1
    spans = (curve[first : first + width] for first in range(0, len(curve), width))
    return [(span[-1][0], statistics.fmean(value for _, value in span)) for span in spans]
