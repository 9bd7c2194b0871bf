"""Where each worker's time goes: waiting for images, computing, waiting for the other workers' gradients."""

import itertools
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from dist_resnet.tracking.recorder import Recorder
from dist_resnet.tracking.records import WorkerSeconds
from dist_resnet.train.straggler import StragglerWatch
from dist_resnet.worker import Worker

T = TypeVar("T")

_IMAGES, _COMPUTE, _REDUCE = range(3)


class StepClock:
    """Splits the time of this worker's steps into parts, without making anything wait.

    On a GPU the parts are the device's: an image counts as late only if the GPU had nothing else to do. There a mark is
    a CUDA event, read in `take`; on a CPU it is the clock's time. Marks before the first wait for images are ignored.
    `now` returns seconds, on a CPU.
    """

    def __init__(self, device: torch.device, *, now: Callable[[], float] = time.perf_counter) -> None:
        self._device = device
        self._now = now if device.type == "cpu" else self._recorded_event
        self._marks: list[tuple[int | None, Any]] = []
        self._in_step = False
        self._steps = 0
        self._spare_events: list[torch.cuda.Event] = []

    def waiting(self, batches: Iterator[T]) -> Iterator[T]:
        """The same items; the time until each arrives is waiting for images. A step may take several."""
        while True:
            self._marks.append((_COMPUTE if self._in_step else None, self._now()))
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._mark(_IMAGES)
            self._in_step = True
            yield batch

    def gradients_done(self) -> None:
        """This worker has computed all its gradients of the step, and waits for the other workers' from now on."""
        self._mark(_COMPUTE)

    def gradients_summed(self) -> None:
        """The gradients of all workers have arrived."""
        self._mark(_REDUCE)

    def step_done(self) -> None:
        """The step is over."""
        self._mark(_COMPUTE)
        self._in_step = False
        self._steps += 1

    def take(self) -> tuple[int, list[float]]:
        """The steps since the last call and their seconds: waiting for images, computing, waiting for gradients.

        On a GPU the caller must have waited for the device.
        """
        seconds = [0.0, 0.0, 0.0]
        for (_, since), (part, at) in itertools.pairwise(self._marks):
            if part is not None:
                seconds[part] += at - since if isinstance(at, float) else since.elapsed_time(at) / 1000
        self._spare_events += [at for _, at in self._marks if not isinstance(at, float)]
        self._marks.clear()
        steps, self._steps = self._steps, 0
        return steps, seconds

    def _mark(self, part: int) -> None:
        """Books the time since the last mark to a part."""
        if self._marks:
            self._marks.append((part, self._now()))

    def _recorded_event(self) -> torch.cuda.Event:
        event = self._spare_events.pop() if self._spare_events else torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


class WorkerTimes:
    """Shares the seconds of every worker's steps with all of them, records them, and names a straggler.

    All workers create it together.
    """

    def __init__(
        self, worker: Worker, recorder: Recorder, clock: StepClock, *, ghost_batches: int, seconds_compared: float
    ) -> None:
        """`ghost_batches`: this worker's ghost batches of a step."""
        self._worker, self._recorder, self._clock = worker, recorder, clock
        workers = worker.gather([(socket.gethostname(), ghost_batches)])
        self.machines = [machine for machine, _ in workers]
        """The name of each rank's machine."""
        work = [number for _, number in workers]
        self._watch = StragglerWatch(self.machines, work, seconds=seconds_compared)

    def share(self, step: int) -> None:
        """Records the steps since the last call, the last of which is numbered `step`; all workers call it together.

        On a GPU the caller must have waited for the device.
        """
        steps, own = self._clock.take()
        if not steps:
            return
        table = torch.zeros(self._worker.world_size, len(own), dtype=torch.float64)
        table[self._worker.rank] = torch.tensor(own, dtype=torch.float64)
        by_part = self._worker.sum(table.to(self._worker.device)).T.tolist()
        data, compute, reduce = ([float(f"{seconds:.4g}") for seconds in part] for part in by_part)
        record = WorkerSeconds(
            step=step, steps=steps, data_seconds=data, compute_seconds=compute, reduce_seconds=reduce
        )
        self._recorder.record(record)
        finding = self._watch.add(record)
        if finding is not None:
            self._recorder.event(finding)
