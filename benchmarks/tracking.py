"""What a log call costs the training loop, with MLflow's server up, hung and dead; beside MLflow's own calls.

    uv run benchmarks/tracking.py

Ours is `Run.metrics` with six values, once every 20 ms, while a sink delivers to that server. MLflow's own are
`log_metrics` and `log_metrics(synchronous=False)` of the same six values. The hung server takes connections and never
answers; for MLflow's own calls it and the dead one are tried a few times only, with a time limit of 1 s and no retries.
"""

import argparse
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

os.environ |= {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from dist_resnet.launch.follow import Lookout, RunFollower
from dist_resnet.tracking.mlflow.run_description import RunDescription
from dist_resnet.tracking.mlflow.sink import MlflowSink
from dist_resnet.tracking.recorder import Run
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
PAUSE_SECONDS = 0.02


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as hung:
        server, up = start_server(Path(folder))
        addresses = {"up": up, "hung": f"http://127.0.0.1:{hung.getsockname()[1]}", "dead": "http://127.0.0.1:9"}
        try:
            for state, uri in addresses.items():
                rows.append((f"ours, server {state}", ours(uri, Path(folder, state), options.calls)))
            client = MlflowClient(up)
            run_id = client.create_run("0").info.run_id
            mlflow.set_tracking_uri(up)
            rows.append(("mlflow.log_metrics, server up", theirs(run_id, options.calls // 10, synchronous=True)))
            rows.append(
                ("mlflow.log_metrics asynchronous, server up", theirs(run_id, options.calls // 10, synchronous=False))
            )
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        for state in ("hung", "dead"):
            mlflow.set_tracking_uri(addresses[state])
            rows.append((f"mlflow.log_metrics, server {state}", theirs(run_id, 3, synchronous=True)))
    print(f"Python {platform.python_version()}, MLflow {mlflow.__version__}, {os.cpu_count()} cores")
    print("| call | calls | median | 99 % | worst |\n|---|---|---|---|---|")
    for name, seconds in rows:
        ordered = sorted(seconds)
        figures = (statistics.median(ordered), ordered[int(0.99 * (len(ordered) - 1))], ordered[-1])
        print(f"| {name} | {len(ordered)} | " + " | ".join(f"{1e6 * figure:,.0f} us" for figure in figures) + " |")


def ours(uri: str, folder: Path, calls: int) -> list[float]:
    """Seconds of each call of ours while a sink delivers to `uri`."""
    directory = RunDirectory(str(folder))
    directory.write_json("recipe.json", {})
    card = RunDescription(experiment="benchmark", name="run", params={}, tags={})
    sink = MlflowSink(uri, directory, card)
    follower = RunFollower(directory)
    follower.tell(sink.take)
    lookout = Lookout(follower.look)
    run = Run.of_rank(0, directory)
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
        start = time.perf_counter()
        call(step)
        seconds.append(time.perf_counter() - start)
        time.sleep(PAUSE_SECONDS)
    return seconds


def start_server(folder: Path) -> tuple[subprocess.Popen, str]:
    """An MLflow server over sqlite, once it answers, and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        f"{folder}/artifacts",
    ]
    # Its own children end with it only as a group.
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    uri = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=1):
                return server, uri
        except OSError:
            time.sleep(0.2)
    raise TimeoutError("the MLflow server did not come up")


if __name__ == "__main__":
    main()
