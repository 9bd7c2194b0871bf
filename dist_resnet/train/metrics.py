"""Every step's metrics, collected on the device and recorded in blocks."""

import logging
import math
import time
from collections.abc import Callable, Iterator

import torch

from dist_resnet.data.input.batch import Batch
from dist_resnet.tracking.recorder import Recorder
from dist_resnet.worker import Worker

logger = logging.getLogger(__name__)

_INPUT_BOUND_FRACTION = 0.2


class DivergedError(Exception):
    """The training loss is no longer finite."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"the training loss is {loss} after step {step}")
        self.step = step


class WatchedBatches(Iterator[Batch]):
    """Batches of an iterator, with the seconds spent waiting for them; `note` is called with each."""

    def __init__(self, batches: Iterator[Batch], note: Callable[[Batch], None]) -> None:
        self._batches, self._note = batches, note
        self._seconds = 0.0

    def __next__(self) -> Batch:
        start = time.perf_counter()
        batch = next(self._batches)
        self._seconds += time.perf_counter() - start
        self._note(batch)
        return batch

    def seconds(self) -> float:
        """The seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class StepMeter:
    """Collects each step's metrics, without making the device wait, until `flush` records them.

    Logs once if training is input-bound over `input_watch_seconds`. `clock` returns seconds.
    """

    def __init__(
        self,
        worker: Worker,
        recorder: Recorder,
        *,
        input_watch_seconds: float = 60.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._worker, self._recorder, self._clock = worker, recorder, clock
        self._steps: list[tuple[int, dict[str, float]]] = []
        self._totals: list[torch.Tensor] = []
        self._images, self._expected = 0, 0
        self._seconds = 0.0
        self._input = _InputWatch(input_watch_seconds)
        self._since = clock()

    def start(self) -> None:
        """Starts the next step's time now."""
        self._since = self._clock()

    def add(self, step: int, totals: torch.Tensor, *, images: int, learning_rate: float, data_seconds: float) -> None:
        """Adds a finished step: this worker's totals float64 [3] (losses, errors, images), the images of the global
        batch, the learning rate and the seconds spent waiting for data."""
        now = self._clock()
        seconds, self._since = now - self._since, now
        self._totals.append(totals)
        self._images += images
        self._expected += images
        self._seconds += seconds
        self._input.add(data_seconds, seconds)
        values = {
            "schedule/learning_rate": learning_rate,
            "time/data_seconds": data_seconds,
            "time/step_seconds": seconds,
            "throughput/images_per_second": images / seconds,
        }
        self._steps.append((step, values))

    def flush(self) -> int:
        """Records the steps added since the last call; all workers call it together.

        Returns the number of damaged images in these steps, on all workers. Raises DivergedError, after recording, for
        the first loss that is not finite.
        """
        diverged, counted = None, 0.0
        if self._steps:
            totals = self._worker.sum(torch.stack(self._totals)).tolist()
            if self._worker.device.type == "cuda":
                self._spread_seconds()
            for (step, values), (loss, errors, images) in zip(self._steps, totals, strict=True):
                counted += images
                means = {"train/loss": loss / max(images, 1), "train/top1_error": errors / max(images, 1)}
                self._recorder.metrics(step, means | values)
                if diverged is None and not math.isfinite(loss):
                    diverged = DivergedError(step, loss)
        expected, self._expected = self._expected, 0
        self._steps.clear()
        self._totals.clear()
        if diverged is not None:
            raise diverged
        return round(expected - counted)

    def _spread_seconds(self) -> None:
        """Gives each step an equal share of their time: the host launched them ahead of the GPU and waited just now."""
        now = self._clock()
        waited, self._since = now - self._since, now
        self._seconds += waited
        seconds = (sum(values["time/step_seconds"] for _, values in self._steps) + waited) / len(self._steps)
        for _, values in self._steps:
            images = values["throughput/images_per_second"] * values["time/step_seconds"]
            values |= {"time/step_seconds": seconds, "throughput/images_per_second": images / seconds}

    @property
    def images_per_second(self) -> float:
        """Images per second of step time, since the meter was created."""
        return self._images / self._seconds if self._seconds else 0.0


class _InputWatch:
    """Logs once if training is input-bound."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waited, self._spent = 0.0, 0.0
        self._has_warned = False

    def add(self, data_seconds: float, step_seconds: float) -> None:
        """Adds a step's time and its part spent waiting for data."""
        self._waited += data_seconds
        self._spent += step_seconds
        if self._spent < self._seconds:
            return
        fraction, self._waited, self._spent = self._waited / self._spent, 0.0, 0.0
        if fraction > _INPUT_BOUND_FRACTION and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "training is input-bound: %.0f %% of the last minute was spent waiting for images; give each worker "
                "more cores (--execution.cpus-per-worker), decode on the GPU (--execution.decode-on gpu), or shrink "
                "the images (jobs/prepare_imagenet.py --shorter-side)",
                100 * fraction,
            )
