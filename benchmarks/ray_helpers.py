"""What each of Ray's processes costs beside one training worker that does nothing: CPU and memory of its own.

    uv run benchmarks/ray_helpers.py
    uv run benchmarks/ray_helpers.py --lean

Plainly Ray Train runs as it comes; with --lean as on a Ray of our own, without the helpers that
`dist_resnet/launch/ray/internals.py` leaves out.
"""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import harness
import psutil

COLUMNS = {"process": "", "of a core": ".1%", "own memory, MB": ".0f", "CPU seconds so far": ".1f"}


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    lean: bool = False  # Leave out what the package leaves out.
    settle: float = harness.sized(30.0, quick=5.0)  # Seconds before the watch.
    watch: float = harness.sized(40.0, quick=5.0)  # Seconds of the watch.


def measure(options: Options) -> Iterator[str]:
    """Runs an idle worker; a row for each process."""
    from dist_resnet.launch.ray import internals

    if options.lean:
        internals.set_up_own_ray(workers=1)
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init(address="local", num_cpus=2, include_dashboard=not options.lean, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        trainer = TorchTrainer(
            _idle,
            train_loop_config={"seconds": options.settle + options.watch + 10},
            scaling_config=ScalingConfig(),
            run_config=RunConfig(storage_path=folder),
        )
        if options.lean:
            internals.leave_out_helpers(trainer, own_cluster=True)
        rows = pool.submit(watched, options)
        trainer.fit()
        yield from harness.table(COLUMNS, rows.result())


def _idle(config: dict[str, Any]) -> None:
    time.sleep(config["seconds"])


def watched(options: Options) -> list[tuple[object, ...]]:
    """A row for each process that was there all the while."""
    time.sleep(options.settle)
    before = _processes()
    time.sleep(options.watch)
    return [
        (name, (seconds - before[pid][1]) / options.watch, megabytes, seconds)
        for pid, (name, seconds, megabytes) in _processes().items()
        if pid in before
    ]


def _processes() -> dict[int, tuple[str, float, float]]:
    """(name, seconds of CPU, MB of its own) of this machine's Ray workers and helpers by process id."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            name, times = " ".join(process.cmdline()).strip(), process.cpu_times()
            if name.startswith("ray::"):
                found[process.pid] = (name, times.user + times.system, process.memory_full_info().uss / 1e6)
    return found


if __name__ == "__main__":
    harness.main(measure, Options, __doc__)
