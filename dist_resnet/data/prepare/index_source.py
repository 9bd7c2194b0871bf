"""Detects the kind of a source, and indexes it."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow.fs as pafs

from dist_resnet.data.prepare import archives, folders, other_layouts, spool
from dist_resnet.data.prepare.index import Source, check_no_split, join, named_apart, read_index
from dist_resnet.data.shards import classes, duplicates
from dist_resnet.data.shards.columns import UnlabeledError
from dist_resnet.data.shards.footers import columns_of
from dist_resnet.data.shards.split import Split, open_split
from dist_resnet.storage.files import check_space, exists
from dist_resnet.storage.uri import open_uri

TaskRunner = Callable[[Callable[[Any], Iterator[Any]], Sequence[Any]], Iterator[Any]]
"""Runs a generator for each task somewhere, and yields what they yield, in any order."""
WORK = "preparing"
"""The folder under the target for files that are needed until the set is finished."""
_MOST_CLASSES = 1_000_000


class PrepareProgress(Protocol):
    """Receives the progress of preparing a set."""

    def begin(self, what: str, total: int | None) -> None:
        """Starts a phase of `total` images; None if their number is unknown."""
        ...

    def advance(self, images: int) -> None:
        """Counts images that are done."""
        ...

    def say(self, line: str) -> None:
        """Shows a line."""
        ...


@dataclass(frozen=True, kw_only=True)
class SourceRequest:
    """A folder to be indexed, and how."""

    uri: str
    """The folder's address."""
    filesystem: pafs.FileSystem
    root: str
    """The folder's path in the file system."""
    split: str | None
    """Its split, if the source does not name its splits."""
    target: str
    """Address of the folder for images that have to be unpacked first."""
    label_column: str | None
    """The column of labels, if Parquet shards have several."""
    run: TaskRunner
    progress: PrepareProgress


def index_source(
    uri: str,
    split: str | None,
    target: str,
    *,
    label_column: str | None = None,
    run: TaskRunner,
    progress: PrepareProgress,
) -> Source:
    """The index of the source at a local path or URI; `split` is its split if it does not name its splits.

    `label_column` chooses among several columns of labels in Parquet. Parquet shards that are not yet unpacked are
    unpacked under `target`. Raises FileNotFoundError if there is no such folder, ValueError if its kind is unknown or
    it cannot be read.
    """
    filesystem, root = open_uri(uri)
    if not exists(filesystem, root):
        raise FileNotFoundError(f"the source {uri} does not exist; give the folder that holds the images")
    other_layouts.refuse_file(filesystem, root)
    request = SourceRequest(
        uri=uri,
        filesystem=filesystem,
        root=root,
        split=split,
        target=target,
        label_column=label_column,
        run=run,
        progress=progress,
    )
    for kind in KINDS:
        if source := kind(request):
            return source
    raise ValueError(
        f"{uri} is not a known kind of source; give folders train and val of class folders (or class "
        "folders and --split), the archives ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, or Parquet shards"
    )


def _archives(request: SourceRequest) -> Source | None:
    """ImageNet's own tar archives."""
    found = archives.find_archives(request.filesystem, request.root)
    if not (named := found.keys() - {"devkit"}):
        return None
    check_no_split(request.split, found[min(named)], min(named))
    request.progress.begin("finding images", None)
    return archives.index_archives(request.filesystem, request.uri, found, request.progress.advance)


def _parquet(request: SourceRequest) -> Source | None:
    """Parquet shards in the Hugging Face layout."""
    globs = spool.find_globs(request.filesystem, request.root, request.uri, request.split)
    return _spool(globs, request) if globs else None


def _folders(request: SourceRequest) -> Source | None:
    """Folders of class folders."""
    splits = _find_folders(request.filesystem, request.root, request.split)
    if not splits:
        return None
    request.progress.begin("finding images", None)
    return folders.index_folders(request.filesystem, request.uri, splits, request.progress.advance)


KINDS: tuple[Callable[[SourceRequest], Source | None], ...] = (_archives, _parquet, _folders)
"""Each returns the index of a source of its kind, None for other kinds; the first index is used."""


def _find_folders(filesystem: pafs.FileSystem, root: str, split: str | None) -> dict[str, str]:
    """The folder of each split's class folders. Raises ValueError for layouts that are not supported."""
    other_layouts.refuse_kaggle(filesystem, root)
    splits = folders.find_splits(filesystem, root, split)
    other_layouts.refuse_archives(filesystem, root, list(splits.values()))
    other_layouts.refuse_tables(filesystem, root, list(splits.values()))
    other_layouts.refuse_partitions(filesystem, root, list(splits.values()))
    for name, folder in splits.items():
        check_no_split(split, folder, name)
    if not splits and split and folders.has_folders(filesystem, root):
        return {split: root}
    if not splits:
        other_layouts.refuse_deeper(filesystem, root)
    return splits


def _spool(globs: dict[str, str], request: SourceRequest) -> Source:
    """Unpacks the images of Parquet shards as plain bytes and indexes those."""
    uri, target, progress = request.uri, request.target, request.progress
    opened, notes = _open(globs, request.label_column)
    if not opened:
        raise ValueError(f"{uri} holds no labeled images; give the train and validation shards")
    for one in opened.values():
        for line in spool.check_paths(one):
            progress.say(line)
    _judge_copies(opened, progress)
    class_names, opened = _match(opened, progress)
    (source, _), (filesystem, folder) = open_uri(uri), open_uri(target)
    found = {split: source.get_file_info(list(one.shards)) for split, one in opened.items()}
    check_space(filesystem, folder, 2 * sum(shard.size for of_split in found.values() for shard in of_split))
    tasks = {
        split: [
            spool.SpoolTask(
                source=uri,
                shard=shard.path,
                columns=columns_of(footer, one.label_column),
                target=target,
                path=f"{folder}/{WORK}/{spool.file_name(split, one.class_names or class_names, shard, footer)}",
                class_names=one.class_names or class_names,
            )
            for shard, footer in zip(found[split], one.footers, strict=True)
        ]
        for split, one in opened.items()
    }
    wanted = {task.path.rpartition("/")[2] for of_split in tasks.values() for task in of_split}
    spool.remove_others(filesystem, f"{folder}/{WORK}", wanted)
    progress.begin("unpacking Parquet", sum(one.num_images for one in opened.values()))
    for done in request.run(spool.spool_shard, [task for of_split in tasks.values() for task in of_split]):
        progress.advance(done)
    indexes = {}
    for split, of_split in tasks.items():
        index = named_apart(join([read_index(filesystem, f"{task.path}.index", target) for task in of_split]))
        indexes[split] = dataclasses.replace(index, label=opened[split].classes(index.label))
    return Source("parquet", class_names, indexes, tuple(notes))


def _open(globs: dict[str, str], label_column: str | None) -> tuple[dict[str, Split], list[str]]:
    """The splits that have labels, and a line about a test split without labels. Raises as `open_split` does."""
    opened, notes = {}, []
    for split, glob in globs.items():
        try:
            one = open_split(glob, label_column=label_column, allow_paths=True)
        except UnlabeledError:
            if split != "test":
                raise
            notes.append("the images of test, which have no labels")
            continue
        if split == "test" and one.label_range[0] < 0:
            notes.append(f"the {one.num_images} images of test, which have no labels")
        else:
            opened[split] = one
    return opened, notes


def _judge_copies(opened: dict[str, Split], progress: PrepareProgress) -> None:
    """Raises ValueError for two copies of a shard in one split; reports training shards that validation has too."""
    for one in opened.values():
        if copy := duplicates.find_copy(one):
            raise ValueError(f"{copy[0]} is a copy of {copy[1]}; remove one of them")
    if "train" in opened and "validation" in opened:
        for line in duplicates.describe_shared(opened["train"], opened["validation"]):
            progress.say(line)


def _check_numbers(split: Split) -> None:
    """Raises ValueError for a label that is too large for a class number."""
    if split.label_range[1] >= _MOST_CLASSES and (found := split.find_outside(_MOST_CLASSES)):
        shard, row, label = found
        raise ValueError(
            f"label {label} in {shard} row {row} is not a class number, 0 .. {_MOST_CLASSES - 1}; "
            "number the classes from 0, or store the labels as text"
        )


def _match(opened: dict[str, Split], progress: PrepareProgress) -> tuple[tuple[str, ...], dict[str, Split]]:
    """The set's class names, and the splits with their labels mapped to these classes.

    The names are those of train, or numbers if no split has names. Raises ValueError for a split with other names, and
    if only one of two splits has names.
    """
    first = "train" if "train" in opened else next(iter(opened))
    names = opened[first].class_names
    for one in opened.values() if names is None else ():
        _check_numbers(one)
    count = 1 + max(one.label_range[1] for one in opened.values()) if names is None else len(names)
    matched = {}
    for split, one in opened.items():
        if one.class_names == names:
            matched[split] = one  # unpacking checks its labels
            continue
        if (one.class_names is None) != (names is None):
            bare, named = (split, first) if one.class_names is None else (first, split)
            raise ValueError(
                f"the shards of {named} have class names, those of {bare} have none; give shards of one set"
            )
        found = classes.match(one, names, count, option=None, what=f"{split} images")
        for note in found.notes:
            progress.say(note)
        matched[split] = found.split
    return tuple(classes.numbers(count)) if names is None else names, matched
