"""Detects the kind of a source, and indexes it."""

import dataclasses
from collections.abc import Callable

from dist_resnet.data.prepare import archives, class_map, folders, other_layouts, spool, tables, webdataset
from dist_resnet.data.prepare.class_numbers import MOST_CLASSES
from dist_resnet.data.prepare.files_below import FilesBelow
from dist_resnet.data.prepare.index import Source, check_no_split, join, named_apart, read_index
from dist_resnet.data.prepare.label_table import Table, TableColumns, read_table
from dist_resnet.data.prepare.options import Options
from dist_resnet.data.prepare.request import WORK, PrepareProgress, SourceRequest, TaskRunner
from dist_resnet.data.shards import classes, duplicates
from dist_resnet.data.shards.columns import UnlabeledError
from dist_resnet.data.shards.footers import columns_of
from dist_resnet.data.shards.split import Split, open_split
from dist_resnet.storage.files import check_space, exists
from dist_resnet.storage.uri import child_uri, open_uri


def index_source(options: Options, *, run: TaskRunner, progress: PrepareProgress) -> Source:
    """The index of a source.

    Parquet shards that are not yet unpacked are unpacked under the target. Raises FileNotFoundError if there is no
    such folder, table or class map, ValueError if the source's kind is unknown or it cannot be read.
    """
    filesystem, root = open_uri(options.source)
    if not exists(filesystem, root):
        raise FileNotFoundError(f"the source {options.source} does not exist; give the folder that holds the images")
    other_layouts.refuse_file(filesystem, root)
    names = None if options.class_map is None else class_map.read_class_map(options.class_map)
    columns = TableColumns(file=options.file_column, label=options.label_column, split=options.split_column)
    request = SourceRequest(
        uri=options.source,
        filesystem=filesystem,
        root=root,
        split=options.split_name,
        target=options.target,
        columns=columns,
        choice=options.split_choice,
        labels=None if options.labels is None else tables.open_given(options.labels, columns),
        has_class_map=names is not None,
        run=run,
        progress=progress,
    )
    source = _first_source(request)
    options.split_choice.check_found(source.splits, options.source)
    return source if names is None else class_map.apply(source, names, str(options.class_map))


def _first_source(request: SourceRequest) -> Source:
    """The index of the first kind that the source is of. Raises ValueError if it is of none."""
    if given := request.table_options:
        if source := _tables(request) or _folders(request):
            return source
        raise ValueError(
            f"{request.uri} has no table of images and classes, which {given} needs; give its address as --labels"
        )
    for kind in KINDS:
        if source := kind(request):
            return source
    raise ValueError(
        f"{request.uri} is not a known kind of source; give folders train and val of class folders (or class "
        "folders and --split), images with a table of their classes (--labels), WebDataset archives, the archives "
        "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, or Parquet shards"
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
    globs = spool.find_globs(request.filesystem, request.root, request.uri, request.split, request.choice)
    return _spool(globs, request) if globs else None


def _webdataset(request: SourceRequest) -> Source | None:
    """WebDataset archives."""
    tars = webdataset.find_tars(request)
    if not tars:
        return None
    request.progress.begin("finding images", None)
    return webdataset.index_tars(request, tars)


def _tables(request: SourceRequest) -> Source | None:
    """Images without class folders, and a table of their classes."""
    request = _inside_kaggle(request)
    splits = folders.find_splits(request)
    flat = folders.find_flat(request, splits)
    if len(flat) < len(splits) and next(iter(splits)) not in flat and (flat or request.labels is None):
        return None
    places = [request.root, *flat.values()]
    if request.labels is None and (
        not tables.list_tables(request, places) or (not flat and folders.may_be_classes(request))
    ):
        return None
    others = [folder for split, folder in splits.items() if split not in flat and split != "test"]
    if others and request.labels is None:
        raise ValueError(
            f"{others[0]} has class folders, {next(iter(flat.values()))} has none; give all splits of one kind, or a "
            "table of all images as --labels"
        )
    request.progress.begin("finding images", None)
    files = FilesBelow(request.filesystem, request.root)
    found = _labels(request, files, places)
    return tables.index_tables(request, files, found) if found else None


def _folders(request: SourceRequest) -> Source | None:
    """Folders of class folders; a split's folder may have a table of its images' classes instead."""
    request = _inside_kaggle(request)
    if request.table_options and not folders.find_flat(request, folders.find_splits(request)):
        return None
    splits = _find_folders(request)
    if not splits:
        return None
    request.progress.begin("finding images", None)
    flat = {}
    for split, folder in folders.find_flat(request, splits).items():
        files = FilesBelow(request.filesystem, folder)
        if found := _labels(request, files, [folder, request.root]):
            flat[split] = (files, found[0])
    return folders.index_folders(request, splits, flat)


KINDS: tuple[Callable[[SourceRequest], Source | None], ...] = (_archives, _parquet, _webdataset, _tables, _folders)
"""Each returns the index of a source of its kind, None for other kinds; the first index is used."""


def _inside_kaggle(request: SourceRequest) -> SourceRequest:
    """The request for the folder of images in Kaggle's ImageNet, whichever of its folders is given."""
    inner = other_layouts.find_kaggle(request.filesystem, request.root)
    if inner is None:
        return request
    return dataclasses.replace(request, uri=child_uri(request.uri, inner), root=f"{request.root}/{inner}")


def _labels(request: SourceRequest, files: FilesBelow, places: list[str]) -> list[Table]:
    """The table of --labels, or those that list some of the files; none if there are none."""
    if request.labels is not None:
        return [request.labels]
    chosen = tables.choose_tables(request, tables.list_tables(request, places), files)
    return [read_table(request.filesystem, path, request.columns) for path in chosen]


def _find_folders(request: SourceRequest) -> dict[str, str]:
    """The folder of each split's class folders. Raises ValueError for layouts that are not supported."""
    filesystem, root, split = request.filesystem, request.root, request.split
    splits = folders.find_splits(request)
    other_layouts.refuse_archives(filesystem, root, list(splits.values()))
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
    opened, notes = _open(globs, request.columns.label)
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
    return Source("parquet", class_names, indexes, tuple(notes), listed=True)


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
    if split.label_range[1] >= MOST_CLASSES and (found := split.find_outside(MOST_CLASSES)):
        shard, row, label = found
        raise ValueError(
            f"label {label} in {shard} row {row} is not a class number, 0 .. {MOST_CLASSES - 1}; "
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
