"""What a GPU gives: tests, CIFAR, accuracy, compiled steps, memory, input, in the order of what they tell.

    python benchmarks/gpu_evidence.py --folder evidence --minutes 9 --cifar cifar10 --imagenet "imagenet/*.parquet"
    python benchmarks/gpu_evidence.py --folder /tmp/evidence --rehearse

The same command continues: rows that are done are not measured again, the others and the accuracy runs continue. The
folder has the result as JSON and as Markdown. A row that fails, or needs a package that is not installed, is noted and
the next one begins. docs/gpu.md says how to bring packages to a machine without a network.
"""

import contextlib
import fnmatch
import multiprocessing
import os
import signal
import time
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import gpu_accuracy
import gpu_rows
from gpu_result import Result
from gpu_setting import REPLICATION, Setting

from dist_resnet import cli
from dist_resnet.ablation.grid import Choice

# What a row that is cut off and this program's end take.
_SECONDS_TO_END = 5.0


@dataclass(frozen=True, kw_only=True)
class Options:
    folder: Path
    """Folder for the result and the accuracy runs; another call with it continues."""
    minutes: float = 9.0
    """Minutes that this call may take."""
    rows: tuple[str, ...] = ("*",)
    """Rows to measure, such as "step-*" accuracy. Unset: all."""
    cifar: str | None = None
    """Folder with CIFAR-10 as train-*.parquet and test-*.parquet."""
    imagenet: str | None = None
    """Glob or folder of shards of full-size images, for the rows of the input."""
    accuracy: Choice = REPLICATION
    """The cells that the row accuracy trains; those with a published error first."""
    at_once: int = 1
    """Cells that are trained at once. One alone fills a GPU if its steps are CUDA graphs, and is finished first."""
    rehearse: Annotated[bool, cli.FLAG] = False
    """Walk every row at toy size, also on the CPU, to see that it works."""


def measure(options: Options) -> None:
    """Measures the rows that are not done and fit into the time, each written as it ends."""
    names = [name for name in gpu_rows.ROWS if any(fnmatch.fnmatch(name, one) for one in options.rows)]
    if not names:
        raise ValueError(f"--rows {' '.join(options.rows)} are no rows; there are {', '.join(gpu_rows.ROWS)}")
    if options.at_once < 1:
        raise ValueError(f"at_once must be at least 1, got {options.at_once}")
    gpu_accuracy.check(options.accuracy)
    options.folder.mkdir(parents=True, exist_ok=True)
    setting = Setting(
        folder=str(options.folder.resolve()),
        deadline=time.time() + 60 * options.minutes - _SECONDS_TO_END,
        toy=options.rehearse,
        cifar=options.cifar,
        imagenet=options.imagenet,
        accuracy=options.accuracy,
        at_once=options.at_once,
    )
    result, process = Result(options.folder, toy=options.rehearse), RowProcess()
    try:
        for number, name in enumerate(names):
            row = gpu_rows.ROWS[name]
            # One that continues may have other cells in this call.
            done = result.is_done(name) and not row.continues
            if done or setting.seconds_left < setting.sized(row.seconds, 1):
                continue
            begin = time.monotonic()
            later = sum(gpu_rows.ROWS[other].seconds for other in names[number + 1 :] if not result.is_done(other))
            found = process.run(name, gpu_rows.share(name, setting, later))
            result.add(name, found, time.monotonic() - begin)
            print(f"{name}: {found.get('lines') or found}", flush=True)
    finally:
        process.end()
    print(f"written: {result.markdown}")


class RowProcess:
    """Measures rows in a process of its own: a row that fails or takes too long ends it, for CUDA's errors stay."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def run(self, name: str, setting: Setting) -> dict[str, Any]:
        """What `gpu_rows.measured` gives, or an `error` if the process dies or the row's time is over."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=os.setsid)
            self._group = self._pool.submit(os.getpid).result()
        future: Future[dict[str, Any]] = self._pool.submit(gpu_rows.measured, name, setting)
        try:
            found = future.result(max(1.0, gpu_rows.limit(name, setting)))
        except TimeoutError:
            found = {"error": "cut off, for its time was over"}
        except BrokenProcessPool:
            found = {"error": "its process died"}
        if "error" in found:
            self.end()
        return found

    def end(self) -> None:
        """Kills the process and those that it started."""
        if self._pool is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._group, signal.SIGKILL)
        self._pool.shutdown(cancel_futures=True)
        self._pool = None


def main() -> None:
    """Reads the command line and measures."""
    options = cli.parse_options(Options, doc=__doc__)
    with cli.bad_input_exits():
        measure(options)


if __name__ == "__main__":
    cli.run(main)
