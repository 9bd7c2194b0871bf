"""Latency and throughput of `mlflow models serve` with one of our packages, and what a registration costs.

    uv run benchmarks/serving.py
    uv run benchmarks/serving.py --depth 20 --size 32

Publishes a network of random weights to a store of its own, serves it, and asks with JPEGs: one picture at a time,
sixteen in a request, and one at a time from four clients. The same work in this process, split into decoding and
network, says what dominates.
"""

import argparse
import base64
import io
import json
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import numpy as np
import torch
from PIL import Image

from dist_resnet.data.image.pixels import decode
from dist_resnet.recipe import Augment, Data, Evaluation, Execution, Model, Recipe
from dist_resnet.registry import predictor, publish
from dist_resnet.tracking.journal import Journal
from dist_resnet.tracking.run_directory import RunDirectory
from dist_resnet.train import checkpoint
from dist_resnet.train.checkpoint import Snapshot
from dist_resnet.train.loop import create_state
from dist_resnet.worker import Worker


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=200)
    parser.add_argument("--size", type=int, default=224, help="side of the centre crop")
    parser.add_argument("--requests", type=int, default=40)
    options = parser.parse_args()
    print(
        f"torch {torch.__version__}, MLflow {mlflow.__version__}, Python {platform.python_version()}, {vars(options)}"
    )
    with tempfile.TemporaryDirectory() as name:
        folder, store = Path(name), f"sqlite:///{name}/mlflow.db"
        run = write_run(options, folder)
        plain = sum(file.stat().st_size for file in Path(run).rglob("model.safetensors"))
        publish.publish_run(run, tracking_uri=store, name="warm-up")
        start = time.perf_counter()
        published = publish.publish_run(run, tracking_uri=store, name="measured")
        seconds = time.perf_counter() - start
        packages = folder / "mlartifacts" / "models"
        size = sum(file.stat().st_size for file in packages.rglob("*") if file.is_file()) / 2
        print(f"registration {seconds:.1f} s; package {size / 1e6:.1f} MB, weights alone {plain / 1e6:.1f} MB")
        jpegs = pictures(options.size)
        in_process(next(packages.glob("*/artifacts/data")), jpegs)
        with Served(published.uri, store, folder / "serve.log") as url:
            over_http(url, jpegs, options.requests)


def write_run(options: argparse.Namespace, folder: Path) -> str:
    """A run's directory with a recipe and a checkpoint of random weights."""
    recipe = Recipe(
        model=Model(depth=options.depth, num_classes=1000 if options.size > 32 else 10),
        data=Data(train="none", validation="none", dataset="imagenet" if options.size > 32 else "cifar10"),
        augment=Augment(kind="pad", size=options.size),
        evaluation=Evaluation(crops=(options.size,), shorter_sides=(options.size * 8 // 7,)),
    )
    state = create_state(recipe, Execution(), Worker(rank=0, world_size=1, device=torch.device("cpu")))
    directory = RunDirectory(str(folder / "run"))
    directory.write_json("recipe.json", {"fingerprint": recipe.fingerprint(), "recipe": recipe.to_dict()})
    Journal(directory).commit()
    checkpoint.save(directory, Snapshot.of(state))
    return directory.uri


def pictures(size: int) -> list[bytes]:
    """Sixteen JPEGs, twice as wide as the crop."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(16):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((2 * size, 3 * size // 2), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def in_process(data: Path, jpegs: list[bytes]) -> None:
    """Where the time goes without HTTP."""
    model = predictor.Predictor(data)
    crops = np.stack([predictor.centre(decode(jpeg), model.crop, model.shorter_side) for jpeg in jpegs])
    for name, act in (
        ("decode one", lambda: predictor.centre(decode(jpegs[0]), model.crop, model.shorter_side)),
        ("network on one", lambda: model.logits(crops[:1])),
        ("network on 16", lambda: model.logits(crops)),
    ):
        tell(f"in process, {name}", [timed(act) for _ in range(12)][2:])


def over_http(url: str, jpegs: list[bytes], requests: int) -> None:
    """What a client waits, and what the server gets done."""
    encoded = [base64.b64encode(jpeg).decode() for jpeg in jpegs]

    def ask(number: int, count: int = 1) -> None:
        records = [{"image": encoded[(number + each) % len(encoded)]} for each in range(count)]
        body = json.dumps({"dataframe_records": records}).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            assert all(row["error"] is None for row in json.load(answer)["predictions"])

    for number in range(4):
        ask(number)
    one = [timed(lambda number=number: ask(number)) for number in range(requests)]
    many = [timed(lambda number=number: ask(number, 16)) for number in range(max(4, requests // 8))]
    tell("HTTP, one picture a request", one)
    tell("HTTP, 16 pictures a request", many)
    with ThreadPoolExecutor(4) as clients:
        start = time.perf_counter()
        list(clients.map(ask, range(requests)))
        together = time.perf_counter() - start
    print(
        f"pictures/s: one at a time {1 / statistics.median(one):.1f}, 16 a request {16 / statistics.median(many):.1f}, "
        f"four clients {requests / together:.1f}"
    )


def timed(act) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def tell(name: str, seconds: list[float]) -> None:
    """Prints the median and the range in milliseconds."""
    low, middle, high = (1e3 * figure for figure in (min(seconds), statistics.median(seconds), max(seconds)))
    print(f"{name:32s} {middle:8.1f} ms ({low:.1f} .. {high:.1f})", flush=True)


class Served:
    """The address of a server of that model within the block."""

    def __init__(self, uri: str, store: str, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        programs = Path(sys.executable).parent
        command = [str(programs / "mlflow"), "models", "serve", "--model-uri", uri, "--env-manager", "local"]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        environment = os.environ | {"MLFLOW_TRACKING_URI": store, "PATH": f"{programs}:{os.environ['PATH']}"}
        with log.open("wb") as file:
            self._process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)

    def __enter__(self) -> str:
        start = time.perf_counter()
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/ping", timeout=2):
                    break
            except OSError:
                if self._process.poll() is not None or time.perf_counter() - start > 300:
                    raise
                time.sleep(0.2)
        print(f"the server is up after {time.perf_counter() - start:.0f} s")
        return f"http://127.0.0.1:{self._port}/invocations"

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


if __name__ == "__main__":
    main()
