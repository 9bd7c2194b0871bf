"""Turns what people have of an image set into shards that are read at the hardware's limit, once and for all.

The target holds `train-00007-of-00290.parquet` and so on, and at the end `manifest.json`. From the start to the end
`preparing.json` says what is being made, and `preparing/` keeps the index of the source and a record of each finished
shard. A job that starts over the same target with the same options goes on from there; whatever was being written when
it died is written again, to the same bytes, for a shard depends on nothing but the source and the options.

What runs where is the caller's: `run(function, tasks)` yields what the generator `function` yields for each task, in
any order. The driver holds the index, about 120 bytes an image.
"""

import contextlib
import errno
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow.fs as pafs

from dist_resnet.data.image.ingest import DamagedError, Shrink, difference, ingest
from dist_resnet.data.prepare import repeats
from dist_resnet.data.prepare.damaged_classes import DamagedClass, find_damaged_classes, refusal
from dist_resnet.data.prepare.index import Index, Source, check_index, read_index, write_index
from dist_resnet.data.prepare.index_source import WORK, PrepareProgress, TaskRunner, index_source
from dist_resnet.data.prepare.write_shard import ShardRecord, ShardTask, read_blocks, write_shard
from dist_resnet.data.shards.manifest import FORMAT, PREPARING, check_sizes, read_manifest, renamed, write_manifest
from dist_resnet.data.shards.spelling import said_of_alike
from dist_resnet.data.shards.split_names import split_of
from dist_resnet.storage.files import (
    PARTIAL,
    check_space,
    exists,
    is_partial_of_here,
    now_at,
    read_json,
    whole_file,
    write_json,
)
from dist_resnet.storage.lock import LockedError, lock
from dist_resnet.storage.uri import is_local, open_uri
from dist_resnet.wording import one_line

_PLAN = f"{WORK}/plan.json"
_SAMPLE = 200
_READERS = 16
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MAX_SEED = (1 << 64) - 1
# Another machine's preparation writes to its partial files much more often, whatever its file system holds back.
_ABANDONED_SECONDS = 3600


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to make of which source. Raises ValueError for impossible values."""

    source: str
    target: str
    split: str | None = None
    """The split that a source without split folders or names is."""
    label_column: str | None = None
    """The column of labels in Parquet that has several."""
    seed: int = 0
    shard_megabytes: float = 500
    on_damaged: Literal["skip", "error"] = "skip"
    on_damaged_class: Literal["refuse", "keep"] = "refuse"
    """What to make of a set in which every image of a class is damaged: nothing, or a set with that class empty."""
    shrink: Shrink | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= _MAX_SEED:
            raise ValueError(f"the seed must lie in 0 .. {_MAX_SEED}, got {self.seed}")
        if not self.shard_megabytes > 0:
            raise ValueError(f"shards must have more than 0 megabytes, got {self.shard_megabytes:g}")
        name = self.split_name
        if name is not None and not (name.isascii() and name.islower() and name.isalpha()):
            raise ValueError(f"the split's name must be of the letters a .. z, got {self.split!r}")
        if self.source.rstrip("/") == self.target.rstrip("/"):
            raise ValueError(f"source and target are both {self.source}; give another --target")

    @property
    def split_name(self) -> str | None:
        """The split's name in the set: train, validation or test for whatever form of these was given."""
        return None if self.split is None else split_of(self.split) or self.split

    def identity(self) -> dict[str, Any]:
        """What the shards depend on."""
        return {
            "source": self.source,
            "split": self.split,
            "label_column": self.label_column,
            "seed": self.seed,
            "shard_megabytes": self.shard_megabytes,
            "shrink": None if self.shrink is None else asdict(self.shrink),
        }


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is known before the first shard is written."""

    kind: str
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    shards: dict[str, int]
    """Number of shards of each split."""
    shrinking: dict[str, Any] | None
    """What shrinking did to a sample."""


def prepare(options: Options, *, run: TaskRunner, progress: PrepareProgress) -> dict[str, Any]:
    """Prepares a set, or goes on with it, and returns its manifest; a finished set's is returned as it is.

    Raises ValueError, FileNotFoundError or OSError with one line that says what was got, what is allowed and what to
    do; what is finished by then is kept.
    """
    filesystem, folder = open_uri(options.target)
    with _alone(filesystem, folder, options.target) as alone:
        if alone:
            _remove_partials(filesystem, folder, lambda entry: is_partial_of_here(entry.base_name))
        return _claim(filesystem, folder, options) or _prepare(filesystem, folder, options, run, progress)


def _prepare(
    filesystem: pafs.FileSystem, folder: str, options: Options, run: TaskRunner, progress: PrepareProgress
) -> dict[str, Any]:
    """Makes what is not made yet of a target that has been claimed, and returns its manifest."""
    try:
        plan, indexes = _plan(filesystem, folder, options, run, progress)
        records = _write(filesystem, folder, options, plan, indexes, run, progress)
    except (ValueError, OSError) as error:
        _release(filesystem, folder)
        if not isinstance(error, OSError) or error.errno not in _FULL:
            raise
        raise OSError(
            f"{options.target} is full ({one_line(error)}); free space and give the same command again"
        ) from error
    manifest = _manifest(options, plan, records) | {"repeated": _said_of_repeats(options, plan, indexes, records)}
    write_manifest(filesystem, folder, manifest)
    _clean_up(filesystem, folder)
    return manifest


@contextlib.contextmanager
def _alone(filesystem: pafs.FileSystem, folder: str, target: str) -> Iterator[bool]:
    """Keeps others from preparing a local target, and tells whether it can. Raises ValueError where one does."""
    if not is_local(filesystem):
        yield False
        return
    filesystem.create_dir(folder, recursive=True)
    try:
        unlock = lock(folder)
    except LockedError as error:
        raise ValueError(f"{target} is being prepared by {error.holder}; wait for it, or stop it first") from error
    except OSError:  # some network file systems have no such locks
        yield False
        return
    try:
        yield True
    finally:
        unlock()


def _claim(filesystem: pafs.FileSystem, folder: str, options: Options) -> dict[str, Any] | None:
    """Makes the target this preparation's, or returns the manifest of what is prepared already."""
    mine = options.identity()
    under_way, manifest = read_json(filesystem, f"{folder}/{PREPARING}"), read_manifest(filesystem, folder)
    if manifest is not None:
        _check_same(f"{options.target} holds a set that was prepared", manifest["options"], mine)
    if under_way is not None:
        _check_same(f"{options.target} is being prepared", under_way, mine)
    if manifest is not None:
        if under_way is not None:
            _clean_up(filesystem, folder)  # the process before was killed in the middle of that
        _check_finished(filesystem, folder, options, manifest)
        return manifest
    if under_way is not None:
        _remove_partials(filesystem, folder, _abandoned_at(filesystem, folder))
        return None
    entries = filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
    if others := sorted(one.base_name for one in entries if one.base_name.endswith(".parquet")):
        raise ValueError(f"{options.target} already holds {others[0]} of another origin; give an empty --target")
    write_json(filesystem, f"{folder}/{PREPARING}", mine)
    return None


def _clean_up(filesystem: pafs.FileSystem, folder: str) -> None:
    """Removes what only a preparation needs; the claim goes last, so that a kill in between leaves it to be done."""
    if exists(filesystem, f"{folder}/{WORK}"):
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_dir(f"{folder}/{WORK}")
    _remove_partials(filesystem, folder, lambda entry: True)
    with contextlib.suppress(FileNotFoundError):
        filesystem.delete_file(f"{folder}/{PREPARING}")


def _check_finished(filesystem: pafs.FileSystem, folder: str, options: Options, manifest: dict[str, Any]) -> None:
    check_sizes(filesystem, folder, manifest)
    if options.on_damaged == "error":
        for split in manifest["splits"].values():
            _check_undamaged(split["damaged"], options.target)


def _release(filesystem: pafs.FileSystem, folder: str) -> None:
    """Gives the target up where nothing has been made yet, so that another source or other options can be given."""
    if not exists(filesystem, f"{folder}/{WORK}"):
        # Nothing must hide the error that is being raised.
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_file(f"{folder}/{PREPARING}")


def _check_same(what: str, theirs: dict[str, Any], mine: dict[str, Any]) -> None:
    names = {"shrink": "--shorter-side and --quality"}
    others = [
        f"{names.get(key) or '--' + key.replace('_', '-')} (was {theirs.get(key)}, now {value})"
        for key, value in mine.items()
        if theirs.get(key) != value
    ]
    if others:
        raise ValueError(f"{what} with other options: {', '.join(others)}; give those, or another --target")


def _remove_partials(filesystem: pafs.FileSystem, folder: str, chosen: Callable[[pafs.FileInfo], bool]) -> None:
    """Removes what a killed process was writing: those files that are not whole and are chosen."""
    for place in (folder, f"{folder}/{WORK}"):
        for entry in filesystem.get_file_info(pafs.FileSelector(place, allow_not_found=True)):
            if entry.base_name.endswith(PARTIAL) and chosen(entry):
                with contextlib.suppress(FileNotFoundError):
                    filesystem.delete_file(entry.path)


def _abandoned_at(filesystem: pafs.FileSystem, folder: str) -> Callable[[pafs.FileInfo], bool]:
    """Tells what nothing has been written to for so long that no machine still writes it, by the files' own clock."""
    if not is_local(filesystem):
        return lambda entry: False  # an object store shows no such files
    try:
        # The clock of this machine may differ from the file server's by more than any such time.
        moment = now_at(filesystem, folder)
    except OSError:  # as on a full disk, of which what comes next tells
        return lambda entry: False
    return lambda entry: entry.mtime_ns <= moment - _ABANDONED_SECONDS * 10**9


def _plan(
    filesystem: pafs.FileSystem, folder: str, options: Options, run: TaskRunner, progress: PrepareProgress
) -> tuple[_Plan, dict[str, Index]]:
    """The plan and the index of each split, as kept by an earlier start or made now."""
    kept = renamed(read_json(filesystem, f"{folder}/{_PLAN}"))
    if kept is not None:
        plan = _Plan(**kept | {key: tuple(kept[key]) for key in ("class_names", "notes")})
        uri = options.target if plan.kind == "parquet" else options.source
        return plan, {split: read_index(filesystem, _index_path(folder, split), uri) for split in plan.shards}
    source = index_source(
        options.source,
        options.split_name,
        options.target,
        label_column=options.label_column,
        run=run,
        progress=progress,
    )
    for split, index in source.splits.items():
        # Class names of Parquet are only names; a folder or archive of a class that holds nothing is a mistake.
        check_index(index, split, source.class_names, every_class=source.kind != "parquet" and split != "test")
    for line in said_of_alike(source.class_names, "source"):
        progress.say(line)
    damaged = find_damaged_classes(source, progress)
    if damaged:
        _judge_damaged_classes(damaged, options, progress)
    shrinking = None if options.shrink is None else _measure(source, options, progress)
    scale = 1.0 if shrinking is None else shrinking["bytes_after"] / max(1, shrinking["bytes_before"])
    plan = _Plan(
        kind=source.kind,
        class_names=source.class_names,
        notes=source.notes + tuple(_empty_classes(source)),
        shards={
            split: min(len(index), max(1, round(index.num_bytes * scale / (options.shard_megabytes * 1e6))))
            for split, index in source.splits.items()
        },
        shrinking=shrinking,
    )
    check_space(filesystem, folder, round(scale * sum(index.num_bytes for index in source.splits.values())))
    for split, index in source.splits.items():
        with whole_file(filesystem, _index_path(folder, split)) as stream:
            write_index(stream, index)
    write_json(filesystem, f"{folder}/{_PLAN}", asdict(plan))
    return plan, source.splits


def _judge_damaged_classes(damaged: list[DamagedClass], options: Options, progress: PrepareProgress) -> None:
    """Raises ValueError for classes without an intact image, unless such are to be kept; then it is said."""
    if options.on_damaged_class == "refuse":
        raise ValueError(
            f"{refusal(damaged)}; repair the source, or have a set without them with --on-damaged-class keep"
        )
    progress.say(f"{refusal(damaged)}; the set will be without them")


def _index_path(folder: str, split: str) -> str:
    return f"{folder}/{WORK}/index-{split}"


def _empty_classes(source: Source) -> Iterator[str]:
    for split, index in source.splits.items():
        empty = len(source.class_names) - len(np.unique(index.label))
        if empty:
            yield f"{empty} of {len(source.class_names)} classes have no {split} image"


def _measure(source: Source, options: Options, progress: PrepareProgress) -> dict[str, Any]:
    """What shrinking does to a sample of the first split, which depends on the seed alone."""
    assert options.shrink is not None
    split, index = next(iter(source.splits.items()))
    sample = index.take(_order(len(index), options.seed, split)[:_SAMPLE])
    progress.begin("measuring a sample", len(sample))
    before = after = 0
    differences = []
    for rows, images in read_blocks(sample):
        for encoded in images:
            try:
                ingested = ingest(encoded, options.shrink)
            except DamagedError:
                continue
            before, after = before + len(encoded), after + len(ingested.encoded)
            if ingested.shrunk:
                differences.append(difference(encoded, ingested.encoded, options.shrink.shorter_side))
        progress.advance(len(rows))
    return {
        "images": len(sample),
        "shrunk": len(differences),
        "bytes_before": before,
        "bytes_after": after,
        # Of 255 levels, over the center that an evaluation crops.
        "mean_difference": round(float(np.mean(differences or [0])), 3),
        "largest_difference": round(float(np.max(differences or [0])), 3),
    }


def _write(
    filesystem: pafs.FileSystem,
    folder: str,
    options: Options,
    plan: _Plan,
    indexes: dict[str, Index],
    run: TaskRunner,
    progress: PrepareProgress,
) -> dict[str, list[ShardRecord]]:
    """Writes every shard that has no record yet and returns the records of all, by split and in order."""
    finished = _finished(filesystem, folder)
    if options.on_damaged == "error":
        for record in finished.values():
            _check_undamaged(record.damaged, record.file)
    tasks = [
        task
        for split, index in indexes.items()
        for task in _tasks(folder, options, plan, split, index)
        if task.path.rpartition("/")[2] not in finished
    ]
    progress.begin("writing shards", sum(len(task.index) for task in tasks))
    if finished:
        progress.say(f"{len(finished)} shards are finished from before")
    for item in run(write_shard, tasks):
        if isinstance(item, ShardRecord):
            finished[item.file] = item
        else:
            progress.advance(item)
    return {split: [finished[_name(split, k, n)] for k in range(n)] for split, n in plan.shards.items()}


def _name(split: str, number: int, total: int) -> str:
    return f"{split}-{number:05d}-of-{total:05d}.parquet"


def _finished(filesystem: pafs.FileSystem, folder: str) -> dict[str, ShardRecord]:
    """The records of the shards that are there as recorded, by file name."""
    entries = filesystem.get_file_info(pafs.FileSelector(folder, recursive=True))
    sizes = {one.path: one.size for one in entries}
    paths = [path for path in sizes if path.startswith(f"{folder}/{WORK}/") and path.endswith(".parquet.json")]
    with ThreadPoolExecutor(_READERS) as pool:
        stored = pool.map(lambda path: renamed(read_json(filesystem, path)), paths)
        records = [ShardRecord(**values) for values in stored]
    return {record.file: record for record in records if sizes.get(f"{folder}/{record.file}") == record.bytes}


def _check_undamaged(damaged: list[dict[str, Any]], place: str) -> None:
    for one in damaged:
        raise ValueError(
            f"{one['image']} of class {one['class']} is damaged ({one['reason']}) and was left out of {place} by "
            "--on-damaged skip; go on with that, or prepare into another --target"
        )


def _tasks(folder: str, options: Options, plan: _Plan, split: str, index: Index) -> Iterator[ShardTask]:
    """A split's shards: the shuffled images, cut where the bytes reach each shard's share."""
    order = _order(len(index), options.seed, split)
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


def _order(length: int, seed: int, split: str) -> np.ndarray:
    """The global shuffle: int64 [length]. It sorts raw 64-bit words, which NumPy keeps the same in all versions."""
    key = np.array([seed, zlib.crc32(split.encode())], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(length), kind="stable")


def _manifest(options: Options, plan: _Plan, records: dict[str, list[ShardRecord]]) -> dict[str, Any]:
    """What the set says of itself. Raises ValueError where damaged images leave a split or class with none."""
    splits = {split: _split_entry(of_split) for split, of_split in records.items()}
    empty = [one for split, entry in splits.items() for one in _damaged_classes(split, entry)]
    if empty and options.on_damaged_class == "refuse":
        raise ValueError(
            f"{refusal(empty)}; the finished shards are kept: give the same command with --on-damaged-class keep to "
            "have the set without them, or repair the source and prepare it into another --target"
        )
    return {
        "format": FORMAT,
        "source": options.source,
        "source_kind": plan.kind,
        "seed": options.seed,
        "options": options.identity(),
        "on_damaged": options.on_damaged,
        "left_out": [*plan.notes, *(f"every {one.split} image of class {one.name}, damaged" for one in empty)],
        "shrinking_of_a_sample": plan.shrinking,
        "class_names": list(plan.class_names),
        "splits": splits,
    }


def _said_of_repeats(
    options: Options, plan: _Plan, indexes: dict[str, Index], records: dict[str, list[ShardRecord]]
) -> list[str]:
    """A line for each kind of images that are there twice; none if an earlier version wrote some of the shards."""
    splits = {}
    for split, of_split in records.items():
        order = _order(len(indexes[split]), options.seed, split)
        found = np.concatenate([repeats.unpack(record.hashes) for record in of_split])
        if len(found) != len(order):
            return []
        hashes = np.empty_like(found)
        hashes[order] = found
        splits[split] = indexes[split], hashes
    return repeats.said_of_repeats(splits, plan.class_names)


def _damaged_classes(split: str, entry: dict[str, Any]) -> Iterator[DamagedClass]:
    """The classes of a split that damaged images leave with none. Raises ValueError where that is the whole split."""
    if not entry["images"]:
        one = entry["damaged"][0]
        raise ValueError(
            f"every {split} image is damaged, one of them {one['image']} ({one['reason']}); repair the source and "
            "prepare it into another --target"
        )
    found: dict[int, DamagedClass] = {}
    for one in entry["damaged"]:
        if not entry["class_counts"][one["label"]]:
            found.setdefault(
                one["label"],
                DamagedClass(split=split, name=one["class"], image=one["image"], reason=one["reason"]),
            )
    yield from found.values()


def _split_entry(records: list[ShardRecord]) -> dict[str, Any]:
    counts = np.sum([record.class_counts for record in records], axis=0)
    damaged = [one for record in records for one in record.damaged]
    keys = ("file", "images", "bytes", "sha256", "footer_sha256", "class_counts")
    return {
        "images": sum(record.images for record in records),
        "bytes": sum(record.bytes for record in records),
        "image_bytes": sum(record.image_bytes for record in records),
        "source_image_bytes": sum(record.source_bytes for record in records),
        "shrunk": sum(record.shrunk for record in records),
        "class_counts": counts.tolist(),
        "shards": [{key: getattr(record, key) for key in keys} for record in records],
        "damaged": damaged,
        "converted": [one for record in records for one in record.converted],
    }
