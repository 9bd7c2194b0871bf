"""The loader on an object store a while away, beside the same shards on the local disk.

    uv run benchmarks/remote.py --data /data/prepared/train-*.parquet --latency 50

A server of this script speaks as much of S3 on loopback as reading takes, and answers each request after `--latency`
milliseconds. It takes some of the same cores, so the store without a wait is measured too. Pictures/s and CPU-ms per
picture of the loader's process, in interleaved rounds; `cached` reads from --execution.cache.folder, which an earlier
epoch has filled.
"""

import argparse
import asyncio
import functools
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import torch
from aiohttp import web

from dist_resnet.data.input.decoders import InputOptions
from dist_resnet.data.loader import TrainingImages
from dist_resnet.data.shards.split import open_split
from dist_resnet.recipe import Augment, Cache, Data, Execution, Model, Recipe
from dist_resnet.worker import Worker


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="glob or folder of local shards")
    parser.add_argument("--latency", type=float, default=50.0, help="milliseconds before each answer")
    parser.add_argument("--pictures", type=int, default=1024, help="per contender and round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    os.environ.update(AWS_ACCESS_KEY_ID="benchmark", AWS_SECRET_ACCESS_KEY="benchmark")
    split = open_split(options.data)
    files = {f"{copy:03d}-{Path(shard).name}": shard for copy in range(8) for shard in split.shards}
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, pyarrow {pyarrow.__version__}, "
        f"{os.cpu_count()} cores; {len(files)} shards, {split.num_images * 8} pictures, {vars(options)}"
    )
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, "shards")
        local.mkdir()
        for name, shard in files.items():
            (local / name).symlink_to(Path(shard).resolve())
        addresses = {
            "local disk": (str(local), None),
            "store, no wait": (_serve(files, 0.0), None),
            f"store, {options.latency:g} ms": (_serve(files, options.latency / 1000), None),
            f"store, {options.latency:g} ms, cached": (_serve(files, options.latency / 1000), f"{folder}/cache"),
        }
        compare({name: rounds(*where) for name, where in addresses.items()}, options)


def compare(contenders: dict[str, Iterator[torch.Tensor]], options: argparse.Namespace) -> None:
    """Prints each contender's median beside that of the local disk."""
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for turn in range(options.rounds + 1):
        for name, batches in contenders.items():
            speed, cost = measure(batches, options.pictures)
            if turn:  # the first fills caches and opens files
                figures[name].append((speed, cost))
                print(f"round {turn} {name}: {speed:.0f} pictures/s, {cost:.2f} CPU-ms", flush=True)
    for name, values in figures.items():
        speed, cost = (statistics.median(column) for column in zip(*values, strict=True))
        ratio = statistics.median(a / b for (a, _), (b, _) in zip(values, figures["local disk"], strict=True))
        print(f"{name:24s} {speed:8.0f} pictures/s  {cost:6.2f} CPU-ms  {ratio:.2f} of the local disk")


def rounds(uri: str, cache: str | None) -> Iterator[torch.Tensor]:
    """Endless batches of the loader on the shards at an address."""
    split = open_split(uri)
    recipe = Recipe(
        model=Model(depth=50, num_classes=1000),
        data=Data(train=uri, validation=uri),
        augment=Augment(kind="inception", size=224),
        global_batch=256,
        ghost_batch=32,
    )
    execution = Execution(cpus_per_worker=os.cpu_count(), cache=Cache(folder=cache))
    worker = Worker(rank=0, world_size=1, device=torch.device("cpu"))
    images = TrainingImages(recipe, split, worker, InputOptions.of(execution))
    for epoch in range(1_000_000):
        for step in images.epoch(epoch):
            for batch in step:
                yield batch.images


def measure(batches: Iterator[torch.Tensor], pictures: int) -> tuple[float, float]:
    """(pictures per second, CPU milliseconds per picture)."""
    for _ in range(4):
        next(batches)
    cpu, begin, seen = _cpu_seconds(), time.perf_counter(), 0
    while seen < pictures:
        seen += len(next(batches))
    return seen / (time.perf_counter() - begin), 1000 * (_cpu_seconds() - cpu) / seen


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _serve(files: dict[str, str], latency: float) -> str:
    """Starts a server process and returns the address of the shards on it."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_store, args=(there, files, latency), daemon=True)
    process.start()
    return f"s3://bucket/shards?endpoint_override=127.0.0.1:{here.recv()}&scheme=http&region=us-east-1"


def _store(port, files: dict[str, str], latency: float) -> None:
    """Answers HEAD, GET with a range and the listing of one folder."""

    async def respond(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(latency)
        name = request.path.rpartition("/")[2]
        if name in files:
            return web.FileResponse(files[name], chunk_size=1 << 20)
        if "list-type" in request.query or "prefix" in request.query:
            return web.Response(text=_listing(files, request.query.get("prefix", "")), content_type="application/xml")
        return web.Response(status=404)

    async def run() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", respond)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port.send(site._server.sockets[0].getsockname()[1])  # pyrefly: ignore
        await asyncio.Event().wait()

    asyncio.run(run())


@functools.lru_cache
def _stamp(path: str) -> tuple[int, str]:
    status = os.stat(path)
    return status.st_size, time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(status.st_mtime))


def _listing(files: dict[str, str], prefix: str) -> str:
    found = {name: path for name, path in files.items() if f"shards/{name}".startswith(prefix)}
    entries = "".join(
        f"<Contents><Key>shards/{name}</Key><LastModified>{_stamp(path)[1]}</LastModified><Size>{_stamp(path)[0]}</Size>"
        "<ETag>&quot;0&quot;</ETag><StorageClass>STANDARD</StorageClass></Contents>"
        for name, path in found.items()
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>bucket</Name><Prefix>{prefix}</Prefix><KeyCount>{len(found)}</KeyCount><MaxKeys>1000</MaxKeys>"
        f"<IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
    )


if __name__ == "__main__":
    main()
