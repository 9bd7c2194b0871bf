"""Latency and throughput of `mlflow models serve` with one of our packages, and what a registration costs.

    uv run benchmarks/serving.py
    uv run benchmarks/serving.py --depth 20 --size 32

Publishes a network of random weights to a store of its own, serves it, and asks with JPEGs: one image at a time,
sixteen in a request, and one at a time from four clients. The same work in this process, split into decoding and
network, says what dominates.
"""

import base64
import functools
import json
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import harness
import numpy as np
import subject
from clock import timed

from dist_resnet.data.image.pixels import decode
from dist_resnet.data.prepare.demo import write_demo
from dist_resnet.data.shards.reader import ShardReader
from dist_resnet.data.shards.split import open_split
from dist_resnet.recipe import Execution
from dist_resnet.registry import predictor, publish
from dist_resnet.tracking.journal import Journal
from dist_resnet.tracking.run_directory import RunDirectory
from dist_resnet.train import checkpoint
from dist_resnet.train.checkpoint import Snapshot
from dist_resnet.train.loop import create_state

Row = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    depth: int = harness.sized(200, quick=20)
    size: int = harness.sized(224, quick=32)  # Side of the center crop.
    requests: int = harness.sized(40, quick=4)


def measure(options: Options) -> Iterator[str]:
    """A row for each way to ask, and for each part of the work."""
    with tempfile.TemporaryDirectory() as folder:
        yield from harness.table({"": "", "median (range)": ""}, rows(options, Path(folder)))


def rows(options: Options, folder: Path) -> Iterator[Row]:
    """Registers, serves and asks."""
    store = f"sqlite:///{folder}/mlflow.db"
    run = write_run(options, folder)
    publish.publish_run(run, tracking_uri=store, name="warm-up")
    seconds = timed(lambda: publish.publish_run(run, tracking_uri=store, name="measured"))
    packages = folder / "mlartifacts" / "models"
    yield "registration, once torch.export is warm", f"{seconds:.1f} s"
    yield "package", f"{size_of(packages, '*') / 2 / 1e6:.1f} MB"
    yield "weights alone", f"{size_of(Path(run), 'model.safetensors') / 1e6:.1f} MB"
    jpegs = encoded_images(folder, options.size)
    yield from in_process(next(packages.glob("*/artifacts/data")), jpegs)
    programs = Path(sys.executable).parent
    serve = [str(programs / "mlflow"), "models", "serve", "--model-uri", "models:/measured/1", "--env-manager", "local"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": store, "PATH": f"{programs}:{os.environ['PATH']}"}
    start = time.perf_counter()
    with harness.server(
        lambda port: [*serve, "--host", "127.0.0.1", "--port", str(port)],
        health="ping",
        log=folder / "serve.log",
        environment=environment,
    ) as address:
        yield "the server is up after", f"{time.perf_counter() - start:.0f} s"
        yield from over_http(f"{address}/invocations", jpegs, options.requests)


def size_of(folder: Path, name: str) -> int:
    """The bytes of all files of a name below a folder."""
    return sum(file.stat().st_size for file in folder.rglob(name) if file.is_file())


def write_run(options: Options, folder: Path) -> str:
    """A run's directory with a recipe and a checkpoint of random weights."""
    recipe = subject.cifar_recipe(depth=options.depth, batch=64)
    if options.size > 32:
        recipe = subject.imagenet_recipe(depth=options.depth, size=options.size)
    state = create_state(recipe, Execution(), subject.worker(subject.CPU))
    directory = RunDirectory(str(folder / "run"))
    directory.write_json("recipe.json", {"fingerprint": recipe.fingerprint(), "recipe": recipe.to_dict()})
    Journal(directory).commit()
    checkpoint.save(directory, Snapshot.of(state))
    return directory.uri


def encoded_images(folder: Path, size: int) -> list[bytes]:
    """Sixteen JPEGs, twice as wide as the crop."""
    train, _ = write_demo(str(folder / "images"), size=2 * size, train_images=16, validation_images=10, seed=0)
    return [image.tobytes() for image in ShardReader(open_split(train)).read(0).images]


def in_process(data: Path, jpegs: list[bytes]) -> Iterator[Row]:
    """Where the time goes without HTTP."""
    model = predictor.Predictor(data)
    crops = np.stack([predictor.center(decode(jpeg), model.crop, model.shorter_side) for jpeg in jpegs])
    for name, act in (
        ("decoding and resizing one JPEG", lambda: predictor.center(decode(jpegs[0]), model.crop, model.shorter_side)),
        ("the network alone, one image", lambda: model.logits(crops[:1])),
        ("the network alone, 16 images", lambda: model.logits(crops)),
    ):
        yield name, milliseconds([timed(act) for _ in range(12)][2:])


def over_http(url: str, jpegs: list[bytes], requests: int) -> Iterator[Row]:
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
    one = [timed(functools.partial(ask, number)) for number in range(requests)]
    many = [timed(functools.partial(ask, number, 16)) for number in range(max(4, requests // 8))]
    yield "HTTP, one image a request", milliseconds(one)
    yield "HTTP, 16 images a request", milliseconds(many)
    with ThreadPoolExecutor(4) as clients:
        together = timed(lambda: list(clients.map(ask, range(requests))))
    rates = (1 / statistics.median(one), 16 / statistics.median(many), requests / together)
    yield "images/s: one at a time, 16 a request, four clients", ", ".join(f"{rate:.1f}" for rate in rates)


def milliseconds(seconds: list[float]) -> str:
    """The median and the range."""
    return f"{harness.spread([1000 * value for value in seconds], '.1f')} ms"


if __name__ == "__main__":
    harness.main(measure, Options, __doc__)
