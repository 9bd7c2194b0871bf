"""How a trial came to its end, counted in its journal: its starts, what ended each, and the time that it took."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_ENDS = ("finished", "diverged", "too_damaged", "stopped")


@dataclass(frozen=True, kw_only=True)
class Sessions:
    """The starts of a trial's training loop."""

    starts: int
    stops: int
    """Sessions that were asked to stop and saved a checkpoint."""
    kills: int
    """Sessions that ended without a word, and that a later one continued."""
    repeated_steps: int
    """Steps that were lost with a killed session, and taken again."""
    wall_seconds: float
    """From each session's begin to its last record, summed: with evaluations, checkpoints and repeated steps."""

    @property
    def restarts(self) -> int:
        """Starts after the first."""
        return max(0, self.starts - 1)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A point of the curves."""

    step: int
    top1_error: float
    """Of the test set, a fraction."""
    training_loss: float | None
    """Mean cross-entropy of the steps since the evaluation before."""
    training_seconds: float
    """Of all steps so far, without evaluations and without steps that were lost."""


def count_sessions(records: Sequence[dict[str, Any]]) -> Sessions:
    """Counts a journal's sessions; the last one may still be running and is no kill."""
    sessions = list(_split(records))
    ends = [session[-1]["kind"] for session in sessions]
    return Sessions(
        starts=len(sessions),
        stops=ends.count("stopped"),
        kills=sum(end not in _ENDS for end in ends[:-1]),
        repeated_steps=_repeated_steps(sessions),
        wall_seconds=sum(session[-1]["time"] - session[0].get("begun", session[0]["time"]) for session in sessions),
    )


def evaluations(points: dict[str, list[tuple[int, float, float]]]) -> list[Evaluation]:
    """The evaluations that count, from what `tracking.outbox.history` gives."""
    found = []
    losses, seconds = iter(points.get("train/loss", [])), iter(points.get("time/step_seconds", []))
    pending, spent, total = next(losses, None), next(seconds, None), 0.0
    for step, _, error in points.get("val/top1_error", []):
        since = []
        while pending is not None and pending[0] <= step:
            since.append(pending[2])
            pending = next(losses, None)
        while spent is not None and spent[0] <= step:
            total += spent[2]
            spent = next(seconds, None)
        loss = sum(since) / len(since) if since else None
        found.append(Evaluation(step=step, top1_error=error, training_loss=loss, training_seconds=total))
    return found


def told(records: Iterable[dict[str, Any]], key: str) -> str | None:
    """What the sessions say of `key`, all different answers in their order; None where none says anything."""
    answers = [record[key] for record in records if record["kind"] == "session" and record.get(key) is not None]
    return ", then ".join(dict.fromkeys(answers)) or None


def _split(records: Iterable[dict[str, Any]]) -> Iterable[list[dict[str, Any]]]:
    session: list[dict[str, Any]] = []
    for record in records:
        if record["kind"] == "session":
            if session:
                yield session
            session = [record]
        elif session:
            session.append(record)
    if session:
        yield session


def _repeated_steps(sessions: Iterable[Sequence[dict[str, Any]]]) -> int:
    reached = repeated = 0
    for session in sessions:
        start = session[0]["start_step"]
        repeated += max(0, reached - start)
        reached = max([start, *(record["step"] for record in session if "train/loss" in record.get("values", {}))])
    return repeated
