"""A set's manifest and the shards beside it; oracle: what the test changed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from oracle.sources import expected_rows, prepare_here, small_images, write_folders

from dist_resnet.data.shards import byte_offsets
from dist_resnet.data.shards.manifest import read_manifest, verify
from dist_resnet.data.shards.split import open_split

LOCAL = pafs.LocalFileSystem()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared set of four or more training shards."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare_here(write_folders(folder / "source", small_images()), folder / "target")
    return folder / "target"


@pytest.fixture
def target(prepared: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(prepared, tmp_path / "set")
    return tmp_path / "set"


def check(target: Path) -> list[str]:
    total: list[int] = []
    counted: list[int] = []
    _, complaints = verify(LOCAL, str(target), threads=2, begin=total.append, advance=counted.append)
    assert total == [50]
    assert sum(counted) == 50
    return complaints


def train_shards(target: Path) -> list[Path]:
    return sorted(target.glob("train-*.parquet"))


def test_a_set_as_it_was_written_opens_and_passes_the_check(target: Path) -> None:
    assert open_split(f"{target}/train-*.parquet").num_images == len(expected_rows(small_images(), "train"))
    assert check(target) == []


def test_a_part_of_a_split_can_be_opened_by_its_name(target: Path) -> None:
    shards = train_shards(target)
    first = pq.read_metadata(shards[0]).num_rows
    assert open_split(f"{target}/train-00000-*.parquet").num_images == first
    assert open_split(str(shards[0])).num_images == first


def test_a_moved_set_still_opens(target: Path, tmp_path: Path) -> None:
    target.rename(tmp_path / "moved")
    assert open_split(f"{tmp_path}/moved/validation-*.parquet").num_images == 10


def test_a_missing_shard_of_the_split_is_named(target: Path) -> None:
    train_shards(target)[1].unlink()
    with pytest.raises(ValueError, match=r"set lacks train-00001-of-\d+.parquet of its manifest.json; restore"):
        open_split(f"{target}/train-*.parquet")
    assert open_split(f"{target}/validation-*.parquet").num_images == 10
    assert len(complaints := check(target)) == 1
    assert complaints[0].startswith("train-00001-of-")
    assert complaints[0].endswith("is missing")


def test_a_shard_of_another_set_under_the_same_name_is_named(target: Path, tmp_path: Path) -> None:
    prepare_here(write_folders(tmp_path / "source", small_images()), tmp_path / "other", seed=1)
    name = train_shards(target)[0].name
    shutil.copy(tmp_path / "other" / name, target / name)
    with pytest.raises(ValueError, match=rf"{name} differs from its manifest.json: \w+ .* instead of"):
        open_split(f"{target}/train-*.parquet")


def test_a_shard_written_by_another_program_is_named(target: Path) -> None:
    shard = train_shards(target)[0]
    pq.write_table(pq.read_table(shard), shard)
    with pytest.raises(ValueError, match="differs from its manifest.json: (bytes|footer_sha256)"):
        open_split(f"{target}/train-*.parquet")


def test_a_shard_that_the_manifest_does_not_know_is_named(target: Path) -> None:
    shutil.copy(train_shards(target)[0], target / "train-extra.parquet")
    with pytest.raises(ValueError, match=r"train-extra.parquet is not in .*manifest.json; remove it"):
        open_split(f"{target}/train-*.parquet")


def test_training_and_validation_shards_are_not_opened_as_one_split(target: Path) -> None:
    with pytest.raises(ValueError, match=r"holds the splits train and validation; give one of them, as in .*/train-\*"):
        open_split(str(target))


def test_a_manifest_that_cannot_be_read_is_named(target: Path) -> None:
    manifest = target / "manifest.json"
    whole = manifest.read_text()
    for content, words in (
        (whole[:500], "not JSON"),
        ("[]", "is not the manifest of a prepared set"),
        ('{"format": 1}', "is not the manifest of a prepared set"),
        (whole.replace('"format": 1', '"format": 99'), "has format 99, this version reads format 1"),
    ):
        manifest.write_text(content)
        with pytest.raises(ValueError, match=words) as caught:
            open_split(f"{target}/train-*.parquet")
        assert "\n" not in str(caught.value)


def test_a_set_under_preparation_is_not_opened(target: Path) -> None:
    (target / "preparing.json").write_text("{}")
    for act in (lambda: open_split(f"{target}/train-*.parquet"), lambda: check(target)):
        with pytest.raises(ValueError, match=r"set is not fully prepared, it still has preparing.json; run jobs/prep"):
            act()


def test_a_flipped_bit_in_an_image_is_found_by_the_check(target: Path) -> None:
    shard = train_shards(target)[2]
    content = bytearray(shard.read_bytes())
    located = byte_offsets.decode(pq.read_metadata(shard).metadata)
    assert located is not None
    content[int(located[0, 3]) + 200] ^= 1
    shard.write_bytes(content)
    assert open_split(f"{target}/train-*.parquet").num_images == 40
    assert len(complaints := check(target)) == 1
    assert complaints[0].startswith(f"{shard.name} has sha256 ")


def test_a_shard_cut_short_is_found_by_the_check(target: Path) -> None:
    shard = train_shards(target)[0]
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-7])
    assert check(target) == [f"{shard.name} has {size - 7} bytes instead of {size}"]


def test_a_set_that_an_earlier_version_prepared_is_read_and_checked(target: Path) -> None:
    """Its manifest and the footers of its shards call images pictures."""
    path = target / "manifest.json"
    today = path.read_text()
    earlier = today.replace('"images"', '"pictures"').replace("image_bytes", "picture_bytes")
    assert earlier.count("picture") > 10
    path.write_text(earlier)
    assert read_manifest(LOCAL, str(target)) == json.loads(today)
    assert check(target) == []
    assert open_split(f"{target}/train-*.parquet").num_images == 40
    footer = pq.read_metadata(train_shards(target)[0]).metadata
    located = byte_offsets.decode(footer)
    assert located is not None
    renamed = {b"dist_resnet.pictures": footer[byte_offsets.KEY]}
    assert np.array_equal(byte_offsets.decode(renamed), located)


def test_a_folder_without_a_manifest_cannot_be_checked(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no manifest.json; only sets of jobs/prepare_imagenet.py"):
        verify(LOCAL, str(tmp_path), threads=1, begin=lambda count: None, advance=lambda count: None)
    assert read_manifest(LOCAL, str(tmp_path)) is None


def test_a_manifest_holds_a_line_for_each_shard(target: Path) -> None:
    lines = (target / "manifest.json").read_text().splitlines()
    shards = [json.loads(line.strip().rstrip(",")) for line in lines if line.strip().startswith('{"file"')]
    assert [one["file"] for one in shards] == [
        *(shard.name for shard in train_shards(target)),
        *(shard.name for shard in sorted(target.glob("validation-*.parquet"))),
    ]


def test_places_that_cannot_be_read_are_refused() -> None:
    assert byte_offsets.decode(None) is byte_offsets.decode({}) is None
    good = byte_offsets.encode(np.arange(6).reshape(3, 2))
    for value in (b"???", good[:-8], good[8:]):
        with pytest.raises(ValueError, match=r"the footer's dist_resnet.images cannot be read"):
            byte_offsets.decode({byte_offsets.KEY: value})
