"""What a log call costs the training loop, with MLflow's server up, hung and dead; beside MLflow's own calls.

    uv run benchmarks/tracking.py

Ours is `Recorder.metrics` with six values, once every 20 ms, while a sink delivers to that server. MLflow's own are
`log_metrics` and `log_metrics(synchronous=False)` of the same six values. The hung server takes connections and never
answers; for MLflow's own calls it and the dead one are tried a few times only, with a time limit of 1 s and no retries.
"""

import functools
import itertools
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ |= {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}

import clock
import harness
import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from dist_resnet.launch.follow import Lookout, RunFollower
from dist_resnet.tracking.mlflow.run_description import RunDescription
from dist_resnet.tracking.mlflow.sink import MlflowSink
from dist_resnet.tracking.recorder import Recorder
from dist_resnet.tracking.records import Session
from dist_resnet.tracking.run_directory import RunDirectory

VALUES = {
    "train/loss": 1.234567,
    "train/top1_error": 0.4375,
    "schedule/learning_rate": 0.1,
    "time/data_seconds": 0.0123,
    "time/step_seconds": 0.3456,
    "throughput/images_per_second": 740.12,
}
COLUMNS = {"call": "", "calls": "", "median, us": ",.0f", "99 %": ",.0f", "worst": ",.0f"}
PAUSE_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    calls: int = harness.sized(1000, quick=20)
    """Calls of ours to each server; of MLflow's own a tenth, and three to servers that do not answer."""


def measure(options: Options) -> Iterator[str]:
    """A row for each call and server."""
    yield from harness.table(COLUMNS, itertools.starmap(row, timings(options)))


def row(name: str, seconds: list[float]) -> tuple[object, ...]:
    """The figures of a call, in microseconds."""
    ordered = sorted(1e6 * each for each in seconds)
    return name, len(ordered), statistics.median(ordered), ordered[int(0.99 * (len(ordered) - 1))], ordered[-1]


def timings(options: Options) -> Iterator[tuple[str, list[float]]]:
    """The seconds of each call, by what is called and what the server does."""
    with tempfile.TemporaryDirectory() as name, socket.create_server(("127.0.0.1", 0)) as hung:
        folder = Path(name)
        with harness.server(lambda port: _server(folder, port), health="health", log=folder / "log") as up:
            addresses = {"up": up, "hung": f"http://127.0.0.1:{hung.getsockname()[1]}", "dead": "http://127.0.0.1:9"}
            for state, uri in addresses.items():
                yield f"ours, server {state}", ours(uri, folder / state, options.calls)
            run_id = MlflowClient(up).create_run("0").info.run_id
            mlflow.set_tracking_uri(up)
            for way, synchronous in (("", True), (" asynchronous", False)):
                calls = theirs(run_id, options.calls // 10, synchronous=synchronous)
                yield f"mlflow.log_metrics{way}, server up", calls
        for state in ("hung", "dead"):
            mlflow.set_tracking_uri(addresses[state])
            yield f"mlflow.log_metrics, server {state}", theirs(run_id, 3, synchronous=True)


def ours(uri: str, folder: Path, calls: int) -> list[float]:
    """Seconds of each call of ours while a sink delivers to `uri`."""
    directory = RunDirectory(str(folder))
    directory.write_json("recipe.json", {})
    card = RunDescription(experiment="benchmark", name="run", params={}, tags={})
    sink = MlflowSink(uri, directory, card)
    follower = RunFollower(directory)
    follower.report(sink.take)
    lookout = Lookout(follower.look)
    run = Recorder.of_rank(0, directory)
    run.event(Session(start_step=0))
    try:
        return timed(lambda step: run.metrics(step, VALUES), calls)
    finally:
        run.close()
        lookout.close(wait_seconds=5)
        sink.close("FINISHED", {}, wait_seconds=5)


def theirs(run_id: str, calls: int, *, synchronous: bool) -> list[float]:
    """Seconds of each call of MLflow's own; one that fails counts with the time it took."""

    def call(step: int) -> None:
        try:
            mlflow.log_metrics(VALUES, step=step, synchronous=synchronous, run_id=run_id)
        except MlflowException:
            return

    return timed(call, calls)


def timed(call: Callable[[int], object], calls: int) -> list[float]:
    """Seconds that each of so many calls takes, some time apart."""
    seconds = []
    for step in range(1, calls + 1):
        seconds.append(clock.timed(functools.partial(call, step)))
        time.sleep(PAUSE_SECONDS)
    return seconds


def _server(folder: Path, port: int) -> list[str]:
    """The command of an MLflow server over sqlite."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/artifacts"]
    return command + stores


if __name__ == "__main__":
    harness.main(measure, Options, __doc__)
