"""Turns ImageNet, or any images in classes, into shards that are read at the hardware's limit.

    python jobs/prepare_imagenet.py --source ~/imagenet --target /data/imagenet
    python jobs/prepare_imagenet.py --source s3://bucket/raw --target s3://bucket/imagenet --seed 1
    python jobs/prepare_imagenet.py --source ~/imagenet --target /data/imagenet-small --shorter-side 400 --quality 90
    python jobs/prepare_imagenet.py --check /data/imagenet

The source, a local path or URI of an object store, is one of

- a folder with `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG`, as torchvision's ImageFolder reads them, of whatever image
  format and ending (`Train` and `Valid` will do); class folders alone are the split that --split names;
- a folder with the original archives, which are not unpacked: `ILSVRC2012_img_train.tar`, `ILSVRC2012_img_val.tar` and,
  for the classes of the latter, `ILSVRC2012_devkit_t12.tar.gz`;
- a folder with Parquet shards, such as those of Hugging Face's imagenet-1k as downloaded, which are unpacked under the
  target while the job runs; images that have a path and no bytes are read from the path.

The target gets `train-00000-of-00290.parquet` and so on, of about 500 MB and shuffled all through, and at the end
`manifest.json`, for `--data.train "/data/imagenet/train-*.parquet"` and `--data.validation
"/data/imagenet/validation-*.parquet"`. Every image is decoded once; damaged ones are left out and listed with the
reason. What else is left out is counted: hidden and tools' files, files that are no images, links to what is read
already. A class without an intact image is refused before the decoding, or kept as an empty one with
--on-damaged-class keep. What is made depends on the source and the options alone, whatever the number of workers.

Shards are Ray tasks, on the cluster at hand or else on this machine's cores, of about 150 MiB of memory each, plus the
pixels of one image. A job that was stopped or killed goes on when the same command is given again. The whole of
ImageNet takes about two CPU-hours and as much space as it has already; from Parquet, twice as much until the end.
docs/data-format.md describes what is written.
"""

import os
import sys
from dataclasses import dataclass
from typing import Literal

from dist_resnet import cli, logs


@dataclass(frozen=True, kw_only=True)
class Options:
    source: str | None = None
    """Local path or URI of the folder that holds the images."""
    target: str | None = None
    """Local path or URI of the folder to write."""
    split: str | None = None
    """The split that a source without split folders or names is, such as train."""
    label_column: str | None = None
    """The column of labels, if Parquet shards have several."""
    shorter_side: int | None = None
    """Shrink images whose shorter side is longer to so many pixels, as JPEG."""
    quality: int | None = None
    """JPEG quality of shrunk images, 1 to 100; 90 by default."""
    on_damaged: Literal["skip", "error"] = "skip"
    """Leave damaged images out, or stop."""
    on_damaged_class: Literal["refuse", "keep"] = "refuse"
    """If every image of a class is damaged: write no set, or one with that class empty."""
    seed: int = 0
    """Of the shuffle."""
    shard_megabytes: float = 500.0
    """Size of a shard, about."""
    workers: int | None = None
    """Tasks at once; by default the cluster's or machine's CPU cores."""
    check: str | None = None
    """In place of preparing: read the prepared set in this folder whole and compare it with its manifest."""

    def __post_init__(self) -> None:
        if self.check is None and (self.source is None or self.target is None):
            raise ValueError("give --source and --target, or --check")
        if self.check is not None and (self.source or self.target):
            raise ValueError("--check stands alone; the set is what follows it")
        if self.quality is not None and self.shorter_side is None:
            raise ValueError("--quality is that of shrunk images; give --shorter-side too")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers must be at least 1, got {self.workers}")


def main() -> None:
    """Prepares or checks; exits with 2 and one line where that cannot be done, with 1 where a check finds damage."""
    options = cli.parse_options(Options, doc=__doc__)
    logs.configure()
    with cli.bad_input_exits():
        if options.check is not None:
            sys.exit(_check(options.check))
        _prepare(options)


def _prepare(options: Options) -> None:
    # Imported late, so that --help need not wait for Ray.
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
    progress.begin("reading shards", None)
    try:
        manifest, complaints = verify(*open_uri(folder), threads=os.cpu_count() or 1, advance=progress.advance)
    finally:
        progress.close()
    print("\n".join(describe(manifest)))
    if complaints:
        print("\n".join(complaints))
        sys.stderr.write(
            f"prepare_imagenet: {len(complaints)} shards are not as they were written; restore them, or prepare the "
            "set again into an empty folder\n"
        )
        return 1
    print("every shard is as it was written")
    return 0


def describe(manifest: dict) -> list[str]:
    """What a manifest tells, in lines."""
    from dist_resnet.storage.files import size_text

    lines = [f"from {manifest['source']} ({manifest['source_kind']}), seed {manifest['seed']}"]
    for name, split in manifest["splits"].items():
        lines.append(
            f"{name}: {split['images']} images of {sum(map(bool, split['class_counts']))} classes in "
            f"{len(split['shards'])} shards, {size_text(split['bytes'])}"
        )
        if split["shrunk"]:
            share = split["image_bytes"] / split["source_image_bytes"]
            lines.append(f"{name}: {split['shrunk']} shrunk; {share:.0%} of the bytes are left")
        lines += [f"{name}: made a PNG: {one['image']} ({one['reason']})" for one in split["converted"]]
        lines += [f"{name}: left out: {one['image']} ({one['reason']})" for one in split["damaged"]]
    if sample := manifest["shrinking_of_a_sample"]:
        lines.append(
            f"shrinking changed what an evaluation sees of {sample['shrunk']} of {sample['images']} sampled images "
            f"by {sample['mean_difference']:.2f} of 255 levels on average, {sample['largest_difference']:.2f} at most"
        )
    lines += [f"twice: {line}" for line in manifest.get("repeated", [])]
    lines += [f"left out: {note}" for note in manifest["left_out"]]
    # Names of files may have line feeds, and what moves a terminal's cursor.
    return ["".join(one if one.isprintable() else repr(one)[1:-1] for one in line) for line in lines]


if __name__ == "__main__":
    cli.run(main, advice="the same command goes on with the shards that are left")
