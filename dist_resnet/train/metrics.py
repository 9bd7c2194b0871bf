"""Every step's numbers, gathered on the device and recorded a block at a time."""

import math
import time

import torch

from dist_resnet.tracking.run import Run
from dist_resnet.train.distributed import Worker


class DivergedError(Exception):
    """The training loss is no longer a finite number."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"the training loss is {loss} after step {step}")
        self.step = step


class StepMeter:
    """Collects what each step gave, without making the device wait, until `flush` records it."""

    def __init__(self, worker: Worker, run: Run) -> None:
        self._worker, self._run = worker, run
        self._steps: list[tuple[int, dict[str, float]]] = []
        self._totals: list[torch.Tensor] = []
        self._images = 0
        self._seconds = 0.0
        self._since = time.perf_counter()

    def start(self) -> None:
        """The next step's time counts from here."""
        self._since = time.perf_counter()

    def add(self, step: int, totals: torch.Tensor, *, images: int, learning_rate: float, data_seconds: float) -> None:
        """Adds a finished step: its totals float64 [3] of this worker (losses, errors, pictures), the pictures of the
        global batch, its learning rate and the seconds spent waiting for data."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        self._totals.append(totals)
        self._images += images
        self._seconds += seconds
        values = {
            "schedule/learning_rate": learning_rate,
            "time/data_seconds": data_seconds,
            "time/step_seconds": seconds,
            "throughput/images_per_second": images / seconds,
        }
        self._steps.append((step, values))

    def flush(self) -> None:
        """Records the steps added since the last call; all workers call it together.

        Raises DivergedError, after recording, on the first loss that is not finite.
        """
        diverged = None
        if self._steps:
            totals = self._worker.sum(torch.stack(self._totals)).tolist()
            for (step, values), (loss, errors, images) in zip(self._steps, totals, strict=True):
                means = {"train/loss": loss / images, "train/top1_error": errors / images}
                self._run.metrics(step, means | values)
                if diverged is None and not math.isfinite(loss):
                    diverged = DivergedError(step, loss)
            self._steps.clear()
            self._totals.clear()
        if diverged is not None:
            raise diverged

    @property
    def images_per_second(self) -> float:
        """Pictures trained on over the seconds of the steps, since the meter was made."""
        return self._images / self._seconds if self._seconds else 0.0
