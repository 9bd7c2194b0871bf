"""Every step's numbers, gathered on the device and recorded a block at a time."""

import logging
import math
import time

import torch

from dist_resnet.tracking.recorder import Recorder
from dist_resnet.worker import Worker

logger = logging.getLogger(__name__)

_TOO_LARGE_A_SHARE = 0.2


class DivergedError(Exception):
    """The training loss is no longer a finite number."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"the training loss is {loss} after step {step}")
        self.step = step


class StepMeter:
    """Collects what each step gave, without making the device wait, until `flush` records it."""

    def __init__(self, worker: Worker, run: Recorder, *, input_watch_seconds: float = 60.0) -> None:
        self._worker, self._run = worker, run
        self._steps: list[tuple[int, dict[str, float]]] = []
        self._totals: list[torch.Tensor] = []
        self._images, self._expected = 0, 0
        self._seconds = 0.0
        self._input = _InputWatch(input_watch_seconds)
        self._since = time.perf_counter()

    def start(self) -> None:
        """The next step's time counts from here."""
        self._since = time.perf_counter()

    def add(self, step: int, totals: torch.Tensor, *, images: int, learning_rate: float, data_seconds: float) -> None:
        """Adds a finished step: its totals float64 [3] of this worker (losses, errors, images), the images of the
        global batch, its learning rate and the seconds spent waiting for data."""
        now = time.perf_counter()
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

        Returns how many images of theirs, on all workers, were damaged. Raises DivergedError, after recording, on
        the first loss that is not finite.
        """
        diverged, counted = None, 0.0
        if self._steps:
            totals = self._worker.sum(torch.stack(self._totals)).tolist()
            for (step, values), (loss, errors, images) in zip(self._steps, totals, strict=True):
                counted += images
                means = {"train/loss": loss / max(images, 1), "train/top1_error": errors / max(images, 1)}
                self._run.metrics(step, means | values)
                if diverged is None and not math.isfinite(loss):
                    diverged = DivergedError(step, loss)
        expected, self._expected = self._expected, 0
        self._steps.clear()
        self._totals.clear()
        if diverged is not None:
            raise diverged
        return round(expected - counted)

    @property
    def images_per_second(self) -> float:
        """Images trained on over the seconds of the steps, since the meter was made."""
        return self._images / self._seconds if self._seconds else 0.0


class _InputWatch:
    """Says once, in the log, when steps wait for images."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waited, self._spent = 0.0, 0.0
        self._has_told = False

    def add(self, data_seconds: float, step_seconds: float) -> None:
        """Adds a step of which so much was spent waiting for data."""
        self._waited += data_seconds
        self._spent += step_seconds
        if self._spent < self._seconds:
            return
        share, self._waited, self._spent = self._waited / self._spent, 0.0, 0.0
        if share > _TOO_LARGE_A_SHARE and not self._has_told:
            self._has_told = True
            logger.warning(
                "the input limits this run: %.0f %% of the last minute went into waiting for images; give "
                "each worker more cores (--execution.cpus-per-worker), decode on the GPU (--execution.decode-on gpu), "
                "or shrink the images (jobs/prepare_imagenet.py --shorter-side)",
                100 * share,
            )
