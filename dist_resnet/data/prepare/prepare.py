"""Prepares an image set: reads a source once and writes it as shards that training reads at the hardware's limit.

The target holds `train-00007-of-00290.parquet` and so on, and at the end `manifest.json`. Until then
`preparing.json` says what is being made, and `preparing/` keeps the index of the source and a record of each finished
shard. The same command on the same target continues from there. A shard that was being written at a kill is written
again, to the same bytes: a shard depends only on the source and the options.

The caller decides where tasks run: `run(function, tasks)` yields what the generator `function` yields for each task,
in any order. The driver holds the index, about 120 bytes an image.
"""

import errno
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow.fs as pafs

from dist_resnet.data.prepare.claim import check_undamaged, claim, clean_up, locked, release
from dist_resnet.data.prepare.index import Index
from dist_resnet.data.prepare.make_manifest import describe_repeats, make_manifest
from dist_resnet.data.prepare.options import Options
from dist_resnet.data.prepare.plan import Plan, make_plan, shuffled
from dist_resnet.data.prepare.request import WORK, PrepareProgress, TaskRunner
from dist_resnet.data.prepare.write_shard import ShardRecord, ShardTask, write_shard
from dist_resnet.data.shards.manifest import renamed, write_manifest
from dist_resnet.storage.files import read_json
from dist_resnet.storage.uri import open_uri
from dist_resnet.wording import one_line

_READERS = 16
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def prepare(options: Options, *, run: TaskRunner, progress: PrepareProgress) -> dict[str, Any]:
    """Prepares a set, or continues an earlier start, and returns its manifest; a finished set's is returned as it is.

    Raises ValueError, FileNotFoundError or OSError with one line: what was found, what is allowed and what to do.
    Finished shards are kept.
    """
    filesystem, folder = open_uri(options.target)
    with locked(filesystem, folder, options.target):
        return claim(filesystem, folder, options) or _prepare(filesystem, folder, options, run, progress)


def _prepare(
    filesystem: pafs.FileSystem, folder: str, options: Options, run: TaskRunner, progress: PrepareProgress
) -> dict[str, Any]:
    """Writes what a claimed target still lacks, and returns the manifest."""
    try:
        plan, indexes = make_plan(filesystem, folder, options, run, progress)
        records = _write(filesystem, folder, options, plan, indexes, run, progress)
    except (ValueError, OSError) as error:
        release(filesystem, folder)
        if not isinstance(error, OSError) or error.errno not in _FULL:
            raise
        raise OSError(
            f"{options.target} is full ({one_line(error)}); free space and run the same command again"
        ) from error
    manifest = make_manifest(options, plan, records) | {"repeated": describe_repeats(options, plan, indexes, records)}
    write_manifest(filesystem, folder, manifest)
    clean_up(filesystem, folder)
    return manifest


def _write(
    filesystem: pafs.FileSystem,
    folder: str,
    options: Options,
    plan: Plan,
    indexes: dict[str, Index],
    run: TaskRunner,
    progress: PrepareProgress,
) -> dict[str, list[ShardRecord]]:
    """Writes every shard that has no record yet; returns the records of all shards by split, in order."""
    finished = _finished(filesystem, folder)
    if options.on_damaged == "error":
        for record in finished.values():
            check_undamaged(record.damaged, record.file)
    tasks = [
        task
        for split, index in indexes.items()
        for task in _tasks(folder, options, plan, split, index)
        if task.path.rpartition("/")[2] not in finished
    ]
    progress.begin("writing shards", sum(len(task.index) for task in tasks))
    if finished:
        progress.say(f"{len(finished)} shards were finished by an earlier start")
    for item in run(write_shard, tasks):
        if isinstance(item, ShardRecord):
            finished[item.file] = item
        else:
            progress.advance(item)
    return {split: [finished[_name(split, k, n)] for k in range(n)] for split, n in plan.shards.items()}


def _name(split: str, number: int, total: int) -> str:
    return f"{split}-{number:05d}-of-{total:05d}.parquet"


def _finished(filesystem: pafs.FileSystem, folder: str) -> dict[str, ShardRecord]:
    """The records of the shards whose files have the recorded size, by file name."""
    entries = filesystem.get_file_info(pafs.FileSelector(folder, recursive=True))
    sizes = {one.path: one.size for one in entries}
    paths = [path for path in sizes if path.startswith(f"{folder}/{WORK}/") and path.endswith(".parquet.json")]
    with ThreadPoolExecutor(_READERS) as pool:
        stored = pool.map(lambda path: renamed(read_json(filesystem, path)), paths)
        records = [ShardRecord(**values) for values in stored]
    return {record.file: record for record in records if sizes.get(f"{folder}/{record.file}") == record.bytes}


def _tasks(folder: str, options: Options, plan: Plan, split: str, index: Index) -> Iterator[ShardTask]:
    """A split's shards: the shuffled images, cut into shards of about equal bytes."""
    order = shuffled(len(index), options.seed, split)
    total = plan.shards[split]
    sums = np.cumsum(index.size[order])
    cuts = np.searchsorted(sums, sums[-1] * np.arange(1, total) / total, side="right")
    for number, rows in enumerate(np.split(order, cuts)):
        name = _name(split, number, total)
        yield ShardTask(
            index=index.take(rows),
            class_names=plan.class_names,
            target=options.target,
            path=f"{folder}/{name}",
            record=f"{folder}/{WORK}/{name}.json",
            shrink=options.shrink,
            stop_on_damaged=options.on_damaged == "error",
        )
