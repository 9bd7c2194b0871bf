"""The sessions of a trial, counted from its journal: starts, stops, kills and time."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dist_resnet.tracking.records import ENDINGS, Metrics, Record, Session, Stopped


@dataclass(frozen=True, kw_only=True)
class Sessions:
    """How often a trial's training loop was started and interrupted."""

    starts: int
    stops: int
    """Sessions that stopped on request and saved a checkpoint."""
    kills: int
    """Sessions that ended without a final record and were resumed."""
    repeated_steps: int
    """Steps that were lost with a killed session and repeated."""
    wall_seconds: float
    """Sum of the times from each session's start to its last record, including evaluations, checkpoints and repeats."""

    @property
    def restarts(self) -> int:
        """Starts after the first."""
        return max(0, self.starts - 1)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An evaluation, which is a point of the curves."""

    step: int
    top1_error: float
    """On the test set, as a fraction."""
    training_loss: float | None
    """Mean cross-entropy of the steps since the previous evaluation."""
    training_seconds: float
    """Time of all steps so far, without evaluations and lost steps."""


def count_sessions(records: Sequence[Record]) -> Sessions:
    """The counts of a journal's sessions; the last may still be running and does not count as killed."""
    sessions = list(_split(records))
    newest = [(records or [session])[-1] for session, records in sessions]
    return Sessions(
        starts=len(sessions),
        stops=sum(isinstance(last, Stopped) for last in newest),
        kills=sum(not isinstance(last, ENDINGS) for last in newest[:-1]),
        repeated_steps=_repeated_steps(sessions),
        wall_seconds=sum(
            last.time - (session.time if session.begun is None else session.begun)
            for last, (session, _) in zip(newest, sessions, strict=True)
        ),
    )


def evaluations(points: dict[str, list[tuple[int, float, float]]]) -> list[Evaluation]:
    """The evaluations in the output of `tracking.journal.history`."""
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


def same_answer(answers: Iterable[str | None]) -> str | None:
    """All different answers in order, joined; None if there is none."""
    return ", then ".join(dict.fromkeys(answer for answer in answers if answer is not None)) or None


def _split(records: Iterable[Record]) -> list[tuple[Session, list[Record]]]:
    """Each session with the records that follow it."""
    sessions: list[tuple[Session, list[Record]]] = []
    for record in records:
        if isinstance(record, Session):
            sessions.append((record, []))
        elif sessions:
            sessions[-1][1].append(record)
    return sessions


def _repeated_steps(sessions: Iterable[tuple[Session, Sequence[Record]]]) -> int:
    reached = repeated = 0
    for session, records in sessions:
        start = session.start_step
        repeated += max(0, reached - start)
        steps = [record.step for record in records if isinstance(record, Metrics) and record.is_step]
        reached = max([start, *steps])
    return repeated
