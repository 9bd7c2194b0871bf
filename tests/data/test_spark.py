"""Parquet as Spark, Hive, Hugging Face's converter and interrupted downloads leave it.

Oracle: the rows that pyarrow wrote, and pyarrow's own reading of hive partitions.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from oracle.images import jpeg, read_row_group, smooth
from oracle.sources import Silent, in_turn, prepare_here, prepared_rows, write_parquet

from dist_resnet.data.prepare.options import Options
from dist_resnet.data.prepare.prepare import prepare
from dist_resnet.data.shards.duplicates import describe_copies, describe_shared
from dist_resnet.data.shards.split import open_split

IMAGES = [jpeg(smooth(12 + n, 20 - n, n)) for n in range(6)]
NAMES = ["ant", "bee"]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
EMPTY: dict[str, Callable[[], pa.Table]] = {
    "the same columns": lambda: pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}),
    "columns of null type": lambda: pa.table({"image": pa.nulls(0), "label": pa.nulls(0)}),
    "other columns": lambda: pa.table({"x": pa.nulls(0)}),
    "no columns": lambda: pa.table({}),
}


def shard(file: Path, first: int = 0, count: int = 3, path: str | None = None) -> Path:
    """A shard of some of the images, every second one a bee."""
    rows = [(path or f"{number}.jpg", IMAGES[number], number % 2) for number in range(first, first + count)]
    write_parquet(file, rows, NAMES)
    return file


def rows_of(target: Path, split: str = "train") -> list[tuple[bytes, int]]:
    return sorted((encoded, label) for _, encoded, label in prepared_rows(target, split))


@pytest.mark.parametrize("kind", EMPTY)
@pytest.mark.parametrize("place", ["a", "z"])
def test_an_empty_shard_among_others_says_nothing(tmp_path: Path, kind: str, place: str) -> None:
    shard(tmp_path / "source" / "train-b.parquet")
    pq.write_table(EMPTY[kind](), tmp_path / "source" / f"train-{place}.parquet")
    split = open_split(f"{tmp_path}/source/train-*.parquet")
    assert (split.num_images, split.class_names, split.label_range) == (3, ("ant", "bee"), (0, 1))
    assert [Path(one).name for one in split.shards] == ["train-b.parquet"]
    assert [one.tobytes() for one in read_row_group(split, 0).images] == IMAGES[:3]
    assert split.mapped(pa.array([1, 0]).to_numpy()).find_outside(2) is None
    prepare_here(tmp_path / "source", tmp_path / "target")
    assert rows_of(tmp_path / "target") == sorted((IMAGES[n], n % 2) for n in range(3))


def test_the_digest_tells_of_empty_shards_too(tmp_path: Path) -> None:
    shard(tmp_path / "b.parquet")
    before = open_split(str(tmp_path)).digest
    pq.write_table(EMPTY["no columns"](), tmp_path / "a.parquet")
    assert open_split(str(tmp_path)).digest != before


@pytest.mark.parametrize("name", ["_SUCCESS", "_metadata", "_common_metadata", "_committed_81", ".part-0.parquet.crc"])
def test_a_wildcard_takes_nothing_that_spark_leaves_beside_the_shards(tmp_path: Path, name: str) -> None:
    shard(tmp_path / "part-0.parquet")
    (tmp_path / name).write_bytes(b"")
    shard(tmp_path / "_temporary" / "0" / "part-1.parquet")
    for pattern in ("*", "**", "**/*.parquet", "[!x]*"):
        assert open_split(f"{tmp_path}/{pattern}").shards == (f"{tmp_path}/part-0.parquet",)


def test_shards_that_begin_with_an_underscore_are_shards(tmp_path: Path) -> None:
    shard(tmp_path / "_train-0.parquet")
    assert open_split(f"{tmp_path}/*").num_images == open_split(str(tmp_path)).num_images == 3


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train-1.parquet", POINTER, r"train-1.parquet is a Git LFS pointer and not the file itself; run git lfs pull"),
        (
            "train-1.parquet",
            b"<!DOCTYPE html><html></html>",
            r"in its 28 bytes, which are HTML\); replace it with an int",
        ),
        ("train-1.parquet", b"Entry not found", r"in its 15 bytes, which are text\); replace it with an intact copy"),
        ("train-1.parquet", b"", r"no Parquet footer in its 0 bytes\); replace it with an intact copy"),
        ("train-1.parquet", b"PAR1" + bytes(90), r"it is cut short: no Parquet footer in its 94 bytes\); replace it"),
        (
            "train-1.crc",
            b"crc",
            r"train-1.crc cannot be .* if it is not a shard, give a glob without it, such as .*/\*.pa",
        ),
    ],
)
def test_a_file_in_a_shards_place_is_told_by_what_it_is(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    shard(tmp_path / "train-0.parquet")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        open_split(f"{tmp_path}/train-*")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ("train/0000.parquet", "validation/0000.parquet"),
        ("train/part-00000-a.snappy.parquet", "val/part-00000-b.snappy.parquet"),
        ("split=train/part-0.parquet", "split=validation/part-0.parquet"),
        ("Train/train-00000-of-00001.parquet", "Valid/valid-00000-of-00001.parquet"),
    ],
)
def test_shards_in_folders_of_splits_are_prepared(tmp_path: Path, train: str, validation: str) -> None:
    shard(tmp_path / "source" / train)
    shard(tmp_path / "source" / validation, first=3)
    (tmp_path / "source" / "README.md").write_text("a card")
    (tmp_path / "source" / train).with_name("_SUCCESS").write_bytes(b"")
    prepare_here(tmp_path / "source", tmp_path / "target")
    assert rows_of(tmp_path / "target") == sorted((IMAGES[n], n % 2) for n in range(3))
    assert rows_of(tmp_path / "target", "validation") == sorted((IMAGES[n], n % 2) for n in range(3, 6))


def test_a_split_without_shards_beside_one_with_them_is_refused(tmp_path: Path) -> None:
    shard(tmp_path / "source" / "train" / "0.parquet")
    (tmp_path / "source" / "val" / "ant").mkdir(parents=True)
    with pytest.raises(ValueError, match="val holds no Parquet shards, but the folders of other splits do"):
        prepare_here(tmp_path / "source", tmp_path / "target")
    with pytest.raises(ValueError, match="train is by its name the split train; leave out --split train"):
        prepare_here(tmp_path / "source", tmp_path / "target", split="train")


@pytest.mark.parametrize("where", ["s", "s/train"])
def test_labels_in_the_names_of_folders_are_refused_with_what_converts_them(tmp_path: Path, where: str) -> None:
    for number, name in enumerate(("cat", "dog")):
        file = tmp_path / where / f"label={name}" / "part-0.parquet"
        file.parent.mkdir(parents=True)
        pq.write_table(pa.table({"image": IMAGES[3 * number : 3 * number + 3]}), file)
    refusals = []
    for attempt in (
        lambda: prepare_here(tmp_path / "s", tmp_path / "t"),
        lambda: open_split(f"{tmp_path}/{where}/*/*.parquet"),
    ):
        with pytest.raises(ValueError, match="values in folder names, such as label=cat, are not") as one:
            attempt()
        refusals.append(str(one.value))
    with pytest.raises(FileNotFoundError, match=re.escape(f"give {tmp_path}/{where}/*/*.parquet")):
        open_split(f"{tmp_path}/{where}")
    commands = {re.search(r"python (-c \".*\"), for each", text)[1] for text in refusals}
    (command,) = commands
    subprocess.run([sys.executable, *shlex.split(command)], cwd=tmp_path, check=True)
    prepare_here(tmp_path / "TARGET", tmp_path / "t")
    assert rows_of(tmp_path / "t") == sorted((image, place // 3) for place, image in enumerate(IMAGES))
    assert json.loads((tmp_path / "t" / "manifest.json").read_text())["class_names"] == ["cat", "dog"]


def test_a_folder_of_folders_with_shards_tells_which_to_give(tmp_path: Path) -> None:
    shard(tmp_path / "set" / "train" / "0.parquet")
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"such as {tmp_path}/set/train/0.parquet; give {tmp_path}/set/t")
    ):
        open_split(str(tmp_path / "set"))


def test_shards_that_number_their_images_anew_are_prepared_under_names_of_their_own(tmp_path: Path) -> None:
    for number in range(2):
        shard(tmp_path / "source" / f"train-{number}.parquet", first=3 * number, path="image.jpg")
    prepare_here(tmp_path / "source", tmp_path / "target")
    assert rows_of(tmp_path / "target") == sorted((image, place % 2) for place, image in enumerate(IMAGES))
    names = [(label, name) for name, _, label in prepared_rows(tmp_path / "target", "train")]
    assert len(set(names)) == 6


@pytest.mark.parametrize("copy", [shutil.copy, lambda source, target: target.symlink_to(source)])
def test_a_copy_of_a_shard_is_refused_in_preparing_and_said_in_training(tmp_path: Path, copy: Callable) -> None:
    first = shard(tmp_path / "source" / "train-0.parquet")
    shard(tmp_path / "source" / "train-1.parquet", first=3)
    split = f"{tmp_path}/source/train-*.parquet"
    assert describe_copies(open_split(split), "training images") == []
    copy(first, first.with_name("train-0 (1).parquet"))
    (line,) = describe_copies(open_split(split), "training images")
    assert "1 of the 3 shards of the training images" in line
    assert f"{tmp_path}/source/train-0.parquet of {tmp_path}/source/train-0 (1).parquet" in line
    with pytest.raises(ValueError, match=r"train-0.parquet is a copy of .*/train-0 \(1\).parquet; remove one of them"):
        prepare_here(tmp_path / "source", tmp_path / "target")


def test_a_shard_of_training_among_those_of_validation_is_said(tmp_path: Path) -> None:
    first = shard(tmp_path / "train-0.parquet")
    shard(tmp_path / "validation-0.parquet", first=3)
    train = open_split(f"{tmp_path}/train-*.parquet")
    assert describe_shared(train, open_split(f"{tmp_path}/validation-*.parquet")) == []
    shutil.copy(first, tmp_path / "validation-1.parquet")
    (line,) = describe_shared(train, open_split(f"{tmp_path}/validation-*.parquet"))
    assert line.startswith("1 of the 2 shards of the validation images")
    said = Silent()
    prepare(Options(source=str(tmp_path), target=str(tmp_path / "target")), run=in_turn, progress=said)
    assert line.partition(" at ")[0] in said.said[0]
