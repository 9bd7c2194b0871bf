"""The loader on an object store a while away, beside the same shards on the local disk.

    uv run benchmarks/remote.py --data /data/prepared/train-*.parquet --latency 50

A server of this script speaks as much of S3 on loopback as reading takes, and answers each request after `--latency`
milliseconds. It takes some of the same cores, so the store without a wait is measured too. Images/s and CPU-ms per
image of the loader's process, in interleaved rounds; `cached` reads from --execution.cache.folder, which an earlier
epoch has filled.
"""

import asyncio
import functools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import clock
import harness
import subject
from aiohttp import web

from dist_resnet.data.shards.split import open_split
from dist_resnet.recipe import Cache, Execution

BATCH, GHOST_BATCHES, COPIES = 256, 8, 8


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    data: str  # Glob or folder of local shards.
    latency: float = 50.0  # Milliseconds before each answer.
    images: int = harness.sized(1024, quick=256)  # Images per contestant and round.
    rounds: int = harness.sized(5, quick=1)


def measure(options: Options) -> Iterator[str]:
    """Each contestant's median beside that of the local disk."""
    os.environ.update(AWS_ACCESS_KEY_ID="benchmark", AWS_SECRET_ACCESS_KEY="benchmark")
    split = open_split(options.data)
    files = {f"{copy:03d}-{Path(shard).name}": shard for copy in range(COPIES) for shard in split.shards}
    yield f"{len(files)} shards, {split.num_images * COPIES} images.\n"
    with tempfile.TemporaryDirectory() as folder:
        loaders = {name: steps(*where) for name, where in addresses(files, options.latency, folder).items()}
        # The loader's own CPU time, for the store is a child of this process.
        turns = {
            name: functools.partial(
                clock.rate, sizes, warm_up=2, count=-(-options.images // BATCH), cpu=time.process_time
            )
            for name, sizes in loaders.items()
        }
        # The first round fills caches and opens files.
        found = harness.interleaved(turns, options.rounds, warm_up=1)
    yield from harness.comparison(found, clock.RATE, "local disk")


def addresses(files: dict[str, str], latency: float, folder: str) -> dict[str, tuple[str, str | None]]:
    """(address of the shards, folder of the cache) by where the shards are."""
    local = Path(folder, "shards")
    local.mkdir()
    for name, shard in files.items():
        (local / name).symlink_to(Path(shard).resolve())
    return {
        "local disk": (str(local), None),
        "store, no wait": (_serve(files, 0.0), None),
        f"store, {latency:g} ms": (_serve(files, latency / 1000), None),
        f"store, {latency:g} ms, cached": (_serve(files, latency / 1000), f"{folder}/cache"),
    }


def steps(uri: str, cache: str | None) -> Iterator[int]:
    """The number of images of each of the loader's endless steps, whose ghost batches are taken one after another."""
    recipe = subject.imagenet_recipe(uri, batch=BATCH // GHOST_BATCHES, ghost_batches=GHOST_BATCHES)
    execution = Execution(cpus_per_worker=os.cpu_count(), cache=Cache(folder=cache))
    return subject.step_sizes(subject.training_images(recipe, execution, subject.CPU))


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
    harness.main(measure, Options, __doc__)
