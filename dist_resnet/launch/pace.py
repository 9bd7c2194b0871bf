"""A run's step, speed and time remaining, from its journal's records as they arrive."""

from collections import deque

from dist_resnet.tracking.records import Metrics, Record, Session

# Speed and time remaining are averages over this many of the newest steps.
_STEPS_AVERAGED = 50


class Pace:
    """A run's step, speed and time remaining."""

    def __init__(self, total_steps: int, global_batch: int) -> None:
        self.step = 0
        self.values: dict[str, float] = {}
        """The newest step's metrics; none before the first step."""
        self._total, self._batch = total_steps, global_batch
        self._recent: deque[float] = deque(maxlen=_STEPS_AVERAGED)

    def add(self, record: Record) -> None:
        """Takes a record of any kind."""
        if isinstance(record, Session):
            self.step = record.start_step
        elif isinstance(record, Metrics) and record.is_step:
            self.step, self.values = record.step, record.values
            self._recent.append(self.values["time/step_seconds"])

    def pause(self) -> None:
        """Forgets the speed so far."""
        self._recent.clear()

    @property
    def images_per_second(self) -> float | None:
        """The speed of the newest steps; None before the first."""
        return self._batch / self._seconds if self._recent else None

    @property
    def seconds_left(self) -> float | None:
        """The time remaining at that speed, without evaluations; None before the first step."""
        return (self._total - self.step) * self._seconds if self._recent else None

    @property
    def _seconds(self) -> float:
        return sum(self._recent) / len(self._recent)
