"""Prepares ImageNet, or any images sorted into classes, as Parquet shards for training.

    python jobs/prepare_imagenet.py --source ~/imagenet --target /data/imagenet
    python jobs/prepare_imagenet.py --source s3://bucket/raw --target s3://bucket/imagenet --seed 1
    python jobs/prepare_imagenet.py --source ~/imagenet --target /data/imagenet-small --shorter-side 400 --quality 90
    python jobs/prepare_imagenet.py --source ~/birds --labels ~/birds/labels.csv --target /data/birds --split train
    python jobs/prepare_imagenet.py --source ~/scenes --target /data/scenes --validation-split test
    python jobs/prepare_imagenet.py --check /data/imagenet

--source and --target are local paths or URIs of an object store. The source is one of

- a folder with `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG`, as torchvision's ImageFolder reads it, with images of any
  format and file ending (`Train` and `Valid` work too); class folders alone need --split; if validation has another
  name, such as `test`, give --validation-split test;
- Kaggle's ImageNet, unpacked: `ILSVRC/` and, above its images, `LOC_val_solution.csv`;
- images without class folders and a table of their classes: `labels.csv` with a line of column names and one image
  per line, such as `file_name,label` or `id,label,split`. Files may be named with or without folder and ending. A
  column `split`, one table for each split (`train.csv`, `val.csv`), folders `train/` and `val/`, or --split state the
  split. If several tables list the images, choose one with --labels;
- a folder with WebDataset archives, which are not unpacked: `train-0000.tar` and so on, with `KEY.jpg` beside `KEY.cls`
  (a class or a number) or `KEY.json` (its field `label`, or --label-column). If classes are numbers, their names are
  taken from `classes.txt` or `classnames.txt` beside the archives, or from --class-map;
- a folder with the original archives, which are not unpacked: `ILSVRC2012_img_train.tar`, `ILSVRC2012_img_val.tar` and,
  for the classes of the latter, `ILSVRC2012_devkit_t12.tar.gz`;
- a folder with Parquet shards, such as Hugging Face's imagenet-1k as downloaded. They are unpacked under the target
  while the job runs; images without bytes are read from their paths.

The labels number the classes by sorted name, in ImageNet by synset id; --class-map gives another order, and keeps
classes that have no image.

The job writes globally shuffled shards of about 500 MB, `train-00000-of-00290.parquet` and so on, and at the end
`manifest.json`. Train on them with `--data.train "/data/imagenet/train-*.parquet"` and `--data.validation
"/data/imagenet/validation-*.parquet"`. Every image is decoded once; damaged images are left out and listed with the
reason. Other files are left out and counted: hidden files, tools' files, files that are not images. A class without an
intact image is refused before the other images are decoded, or kept empty with --on-damaged-class keep. The shards
depend on the source and the options only, not on the number of workers.

Each shard is a Ray task, on the cluster if there is one, otherwise on this machine's cores; it needs about 150 MiB of
memory plus the pixels of one image. To continue a job that was stopped or killed, run the same command again. ImageNet
takes about two CPU-hours and as much disk space as the source; from Parquet, twice as much until the job ends.
docs/data-format.md describes the result.
"""

import os
import sys
from dataclasses import dataclass
from typing import Literal

from dist_resnet import cli, logs


@dataclass(frozen=True, kw_only=True)
class Options:
    source: str | None = None
    """Local path or URI of the folder that holds the images. Unset: allowed only with --check."""
    target: str | None = None
    """Local path or URI of the folder to write. Unset: allowed only with --check."""
    split: str | None = None
    """Split of a source that does not name its splits, such as train. Unset: the source must name them."""
    label_column: str | None = None
    """Column of classes in Parquet shards or in a table of classes, or field of WebDataset's JSON. Unset: `label`, or
    the only one with a usual name; in WebDataset the .cls files first."""
    labels: str | None = None
    """Local path or URI of a table of images and classes, CSV or tab-separated. Unset: the table in the source that
    lists its images, if they are not in class folders."""
    file_column: str | None = None
    """Column of files in this table. Unset: `file_name`, or the only one with a usual name (`image_id`, `path`)."""
    split_column: str | None = None
    """Column of splits in this table. Unset: `split`, or another usual name; none is needed if the names of tables or
    folders, or --split, state the split."""
    class_map: str | None = None
    """Local path or URI of a text file with one class per line, whose order is the order of the labels. A line may go
    on with words after a synset id, as in LOC_synset_mapping.txt. Unset: classes are sorted by name; numbers are the
    labels themselves."""
    train_split: str | None = None
    """What the source calls the training images: a folder, the beginning of shards' names, or a table's split, such
    as seg_train. Unset: train, Train, training and so on."""
    validation_split: str | None = None
    """What the source calls the validation images, such as test. Unset: val, Valid, validation, dev and so on."""
    test_split: str | None = None
    """What the source calls the labeled test images, such as test; if given, they must have classes. Unset: test,
    testing and so on, left out if they have no classes."""
    shorter_side: int | None = None
    """Shrink images with a longer shorter side to this many pixels, as JPEG. Unset: every size is kept."""
    quality: int | None = None
    """JPEG quality of shrunk images, 1 to 100. Unset: 90."""
    on_damaged: Literal["skip", "error"] = "skip"
    """Skip damaged images, or stop at the first one."""
    on_damaged_class: Literal["refuse", "keep"] = "refuse"
    """If every image of a class is damaged: refuse the set, or keep the class empty."""
    seed: int = 0
    """Seed of the shuffle."""
    shard_megabytes: float = 500.0
    """Approximate size of a shard in MB."""
    workers: int | None = None
    """Tasks that run at once. Unset: one per CPU core of the cluster or machine."""
    check: str | None = None
    """Prepare nothing; read every byte of the prepared set in this folder and compare it with its manifest. Unset:
    prepare."""

    def __post_init__(self) -> None:
        if self.check is None and (self.source is None or self.target is None):
            raise ValueError("give --source and --target, or --check")
        if self.check is not None and (self.source or self.target):
            raise ValueError("--check takes no --source and no --target; give it the folder of the prepared set")
        if self.quality is not None and self.shorter_side is None:
            raise ValueError("--quality applies to shrunk images only; give --shorter-side too")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers must be at least 1, got {self.workers}")


def main() -> None:
    """Prepares or checks a set; exits with 2 and one line if it cannot, with 1 if a check finds damage."""
    options = cli.parse_options(Options, doc=__doc__)
    logs.configure()
    with cli.bad_input_exits():
        if options.check is not None:
            sys.exit(_check(options.check))
        _prepare(options)


def _prepare(options: Options) -> None:
    # Imported late, so that --help does not wait for Ray.
    from dist_resnet.data.image.ingest import Shrink
    from dist_resnet.data.prepare import options as preparation
    from dist_resnet.launch.ray import prepare as ray_prepare

    assert options.source is not None
    assert options.target is not None

    shrink = None
    if options.shorter_side is not None:
        quality = 90 if options.quality is None else options.quality
        shrink = Shrink(shorter_side=options.shorter_side, quality=quality)
    manifest = ray_prepare.prepare(
        preparation.Options(
            source=options.source,
            target=options.target,
            split=options.split,
            label_column=options.label_column,
            labels=options.labels,
            file_column=options.file_column,
            split_column=options.split_column,
            class_map=options.class_map,
            train_split=options.train_split,
            validation_split=options.validation_split,
            test_split=options.test_split,
            seed=options.seed,
            shard_megabytes=options.shard_megabytes,
            on_damaged=options.on_damaged,
            on_damaged_class=options.on_damaged_class,
            shrink=shrink,
        ),
        workers=options.workers,
    )
    print("\n".join(describe(manifest)))


def _check(folder: str) -> int:
    from dist_resnet.data.shards.manifest import verify
    from dist_resnet.launch.progress import ImageProgress
    from dist_resnet.storage.uri import open_uri

    progress = ImageProgress()
    try:
        manifest, complaints = verify(
            *open_uri(folder),
            threads=os.cpu_count() or 1,
            begin=lambda images: progress.begin("reading shards", images),
            advance=progress.advance,
        )
    finally:
        progress.close()
    print("\n".join(describe(manifest)))
    if complaints:
        print("\n".join(complaints))
        sys.stderr.write(
            f"prepare_imagenet: {len(complaints)} shards differ from the manifest; restore them, or prepare the "
            "set again into an empty folder\n"
        )
        return 1
    print("every shard matches the manifest")
    return 0


def describe(manifest: dict) -> list[str]:
    """A manifest's content for people, in lines."""
    from dist_resnet.storage.files import size_text

    lines = [f"from {manifest['source']} ({manifest['source_kind']}), seed {manifest['seed']}"]
    for name, split in manifest["splits"].items():
        lines.append(
            f"{name}: {split['images']} images of {sum(map(bool, split['class_counts']))} classes in "
            f"{len(split['shards'])} shards, {size_text(split['bytes'])}"
        )
        counts = [count for count in split["class_counts"] if count]
        if name == "train" and max(counts) > 2 * min(counts):
            lines.append(f"{name}: {min(counts)} to {max(counts)} images in a class; --data.balance can even them out")
        if split.get("mean") is not None:
            mean, std = (" ".join(f"{value:.4f}" for value in split[key]) for key in ("mean", "std"))
            lines.append(f"{name}: mean {mean}, standard deviation {std} of red, green, blue in [0, 1]")
        if split["shrunk"]:
            share = split["image_bytes"] / split["source_image_bytes"]
            lines.append(f"{name}: {split['shrunk']} shrunk; {share:.0%} of the bytes remain")
        lines += [f"{name}: converted to PNG: {one['image']} ({one['reason']})" for one in split["converted"]]
        lines += [f"{name}: left out: {one['image']} ({one['reason']})" for one in split["damaged"]]
    if sample := manifest["shrinking_of_a_sample"]:
        lines.append(
            f"shrinking changed the evaluation crop of {sample['shrunk']} of {sample['images']} sampled images "
            f"by {sample['mean_difference']:.2f} of 255 levels on average, {sample['largest_difference']:.2f} at most"
        )
    lines += [f"duplicates: {line}" for line in manifest.get("repeated", [])]
    lines += [f"left out: {note}" for note in manifest["left_out"]]
    # File names may contain line feeds and terminal control characters.
    return ["".join(one if one.isprintable() else repr(one)[1:-1] for one in line) for line in lines]


if __name__ == "__main__":
    cli.run(main, advice="run the same command again to write the remaining shards")
