"""What each of Ray's processes costs beside one training worker that does nothing: CPU and memory of its own.

    uv run benchmarks/ray_helpers.py
    uv run benchmarks/ray_helpers.py --lean

Plainly Ray Train runs as it comes; with --lean as on a Ray of our own, without the helpers that
`dist_resnet/launch/ray/internals.py` leaves out.
"""

import argparse
import sys
import tempfile
import threading
import time

import psutil

_SECONDS_TO_SETTLE, _SECONDS_WATCHED = 30, 40


def main() -> None:
    """Runs an idle worker and prints a line for each process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lean", action="store_true")
    is_lean = parser.parse_args().lean
    from dist_resnet.launch.ray import internals

    if is_lean:
        internals.set_up_own_ray(workers=1)
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init(address="local", num_cpus=2, include_dashboard=not is_lean, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        trainer = TorchTrainer(_idle, scaling_config=ScalingConfig(), run_config=RunConfig(storage_path=folder))
        if is_lean:
            internals.leave_out_helpers(trainer, own_cluster=True)
        watcher = threading.Thread(target=_watch)
        watcher.start()
        trainer.fit()
        watcher.join()


def _idle() -> None:
    time.sleep(_SECONDS_TO_SETTLE + _SECONDS_WATCHED + 10)


def _watch() -> None:
    time.sleep(_SECONDS_TO_SETTLE)
    before = _processes()
    time.sleep(_SECONDS_WATCHED)
    for pid, (name, seconds, megabytes) in _processes().items():
        if pid in before:
            share = (seconds - before[pid][1]) / _SECONDS_WATCHED
            sys.stdout.write(f"{name}: {share:.1%} of a core, {megabytes:.0f} MB, {seconds:.1f} s of CPU so far\n")


def _processes() -> dict[int, tuple[str, float, float]]:
    """(name, seconds of CPU, MB of its own) of this machine's Ray workers and helpers by process id."""
    found = {}
    for process in psutil.process_iter():
        try:
            name = " ".join(process.cmdline()).strip()
            if name.startswith("ray::"):
                times = process.cpu_times()
                found[process.pid] = (name, times.user + times.system, process.memory_full_info().uss / 1e6)
        except psutil.Error:
            continue
    return found


if __name__ == "__main__":
    main()
