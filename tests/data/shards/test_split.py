"""Splits of Parquet shards; oracle: what pyarrow and the test itself wrote."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from oracle.images import jpeg, read_row_group, real, smooth, write_rows, write_split

from dist_resnet.data.shards import byte_offsets
from dist_resnet.data.shards.split import open_split

LAYOUT = pa.schema({"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()})


def table(labels: list[int], **columns: pa.Array) -> pa.Table:
    images = [{"bytes": f"image {n}".encode(), "path": None} for n in range(len(labels))]
    return pa.table(
        {"image": pa.array(images, LAYOUT.field("image").type), "label": pa.array(labels, pa.int64())} | columns
    )


def test_a_split_counts_its_images_in_listing_order(tmp_path: Path) -> None:
    split = write_split(tmp_path, [25, 10, 7])
    assert split.num_images == 42
    assert split.group_rows.tolist() == [10, 10, 5, 10, 7]
    assert split.group_first.tolist() == [0, 10, 20, 25, 35]
    assert split.label_range == (0, 9)
    assert split.class_names == tuple(f"class {n}" for n in range(10))
    labels = np.concatenate([read_row_group(split, number).labels for number in range(split.num_row_groups)])
    assert labels.tolist() == [index % 10 for index in range(42)]


def test_labels_are_read_as_the_classes_they_are_mapped_to(tmp_path: Path) -> None:
    pq.write_table(table([0, 2, 1, 0]), tmp_path / "x.parquet")
    split = open_split(str(tmp_path)).mapped(np.array([4, 0, 9]))
    assert read_row_group(pickle.loads(pickle.dumps(split)), 0).labels.tolist() == [4, 9, 0, 4]  # noqa: S301
    assert read_row_group(split, 0).labels.dtype == np.int64
    split.check_labels(10)
    with pytest.raises(ValueError, match=r"label 2 in .*x.parquet row 1 is not in"):
        split.check_labels(9)


def test_places_in_the_footer_are_mapped_as_pages_are(tmp_path: Path) -> None:
    split = write_split(tmp_path, [10])
    turned = split.mapped(np.arange(10)[::-1].copy())
    assert read_row_group(turned, 0).labels.tolist() == list(range(9, -1, -1))


@pytest.mark.parametrize("label_map", [[4, -1, 9], [4], [4, 0]])
def test_a_label_without_a_class_is_refused_and_never_read(tmp_path: Path, label_map: list[int]) -> None:
    pq.write_table(table([0, 2, 1, 0]), tmp_path / "x.parquet")
    split = open_split(str(tmp_path)).mapped(np.array(label_map))
    with pytest.raises(ValueError, match=r"label \d in .*x.parquet row 1 is not in|row 2 is not in"):
        split.check_labels(10)
    with pytest.raises(ValueError, match=r"row group 0 of .*label \d is not one of the model's classes"):
        read_row_group(split, 0)


def test_a_class_that_no_image_has_needs_no_place_in_the_map(tmp_path: Path) -> None:
    pq.write_table(table([0, 2, 0]), tmp_path / "x.parquet")
    split = open_split(str(tmp_path)).mapped(np.array([1, -1, 0]))
    split.check_labels(2)
    assert read_row_group(split, 0).labels.tolist() == [1, 0, 1]


def test_a_negative_label_is_not_taken_from_the_end_of_the_map(tmp_path: Path) -> None:
    pq.write_table(table([0, -1]), tmp_path / "x.parquet")
    split = open_split(str(tmp_path)).mapped(np.array([1, 0]))
    with pytest.raises(ValueError, match=r"label -1 in .*x.parquet row 1"):
        split.check_labels(2)
    with pytest.raises(ValueError, match="label -1 is not one"):
        read_row_group(split, 0)


def test_locate_inverts_the_numbering(tmp_path: Path) -> None:
    split = write_split(tmp_path, [25, 10, 7])
    assert [split.locate(index) for index in (0, 24, 25, 41)] == [
        (str(tmp_path / "part-000.parquet"), 0),
        (str(tmp_path / "part-000.parquet"), 24),
        (str(tmp_path / "part-001.parquet"), 0),
        (str(tmp_path / "part-002.parquet"), 6),
    ]
    with pytest.raises(IndexError, match="42"):
        split.locate(42)


def test_a_glob_a_folder_a_file_and_a_uri_are_the_same_split(tmp_path: Path) -> None:
    split = write_split(tmp_path, [25])
    for uri in (f"{tmp_path}/part-*.parquet", f"{tmp_path}/", f"{tmp_path}/part-000.parquet", tmp_path.as_uri()):
        assert open_split(uri).digest == split.digest
    assert open_split(tmp_path.as_uri() + "/part-*.parquet").num_images == 25


def test_a_relative_glob_finds_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_split(tmp_path / "here", [5])
    monkeypatch.chdir(tmp_path)
    assert open_split("here/*.parquet").num_images == open_split("here").num_images == 5
    monkeypatch.chdir(tmp_path / "here")
    assert open_split("*.parquet").num_images == open_split(".").num_images == 5


def test_a_moved_copy_has_the_same_digest_and_another_split_has_not(tmp_path: Path) -> None:
    split = write_split(tmp_path / "a", [10, 5])
    (tmp_path / "b").mkdir()
    for number, shard in enumerate(split.shards):
        shutil.copy(shard, tmp_path / "b" / f"moved-{number}.parquet")
    assert open_split(str(tmp_path / "b")).digest == split.digest
    os.remove(tmp_path / "b" / "moved-1.parquet")
    assert open_split(str(tmp_path / "b")).digest != split.digest


def test_a_split_travels_by_pickle(tmp_path: Path) -> None:
    split = write_split(tmp_path, [12])
    again = pickle.loads(pickle.dumps(split))  # noqa: S301
    assert again.digest == split.digest
    assert read_row_group(again, 1).labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zstd"},
        {"compression": "snappy", "use_dictionary": True},
        {"compression": "none", "use_dictionary": False},
        {"compression": "gzip", "data_page_size": 64},
        {"compression": "none", "write_statistics": False},
    ],
)
def test_any_encoding_of_a_shard_is_read(tmp_path: Path, options: dict) -> None:
    pq.write_table(table([3, 1, 2] * 20), tmp_path / "x.parquet", row_group_size=7, **options)
    split = open_split(str(tmp_path))
    assert split.label_range == (1, 3)
    group = read_row_group(split, 1)
    assert [image.tobytes() for image in group.images] == [b"image %d" % n for n in range(7, 14)]
    assert group.first_index == 7
    assert group.labels.tolist() == [1, 2, 3, 1, 2, 3, 1]


def test_no_shards_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no Parquet shards match .*none\*; run jobs/prepare_imagenet.py"):
        open_split(f"{tmp_path}/none*")
    with pytest.raises(FileNotFoundError, match=r"absent"):
        open_split(f"{tmp_path}/absent")


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    write_split(tmp_path, [5, 5])
    (tmp_path / "part-001.parquet").write_bytes(b"x" * 1000)
    with pytest.raises(ValueError, match=r"part-001.parquet cannot be read as Parquet"):
        open_split(str(tmp_path))


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    split = write_split(tmp_path, [5])
    file = Path(split.shards[0])
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"part-000.parquet cannot be read as Parquet"):
        open_split(str(tmp_path))


def test_a_damaged_row_group_is_named(tmp_path: Path) -> None:
    pq.write_table(table([1] * 20), tmp_path / "x.parquet", row_group_size=10, compression="zstd")
    split = open_split(str(tmp_path))
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    content[4:200] = bytes(196)
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"row group 0 of .*x.parquet cannot be read"):
        read_row_group(split, 0)


def named(names: object) -> pa.Table:
    """A shard's table whose classes have these names, or none."""
    features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    return table([0, 1]).replace_schema_metadata({"huggingface": json.dumps(features)} if names else None)


@pytest.mark.parametrize(
    ("first", "second", "complaint"),
    [
        (
            ["cat", "dog"],
            ["dog", "cat"],
            r"has the name 'dog' for label 0, .*a.parquet has 'cat'; .* the same class names",
        ),
        (["cat", "dog"], ["cat", "dog", "owl"], r"has 3 class names, .*a.parquet has 2 class names; "),
        (["cat", "dog"], None, r"has no class names, .*a.parquet has 2 class names; "),
        (None, ["cat", "dog"], r"has 2 class names, .*a.parquet has no class names; "),
    ],
)
def test_shards_whose_labels_mean_other_classes_are_named(
    tmp_path: Path, first: list[str] | None, second: list[str] | None, complaint: str
) -> None:
    pq.write_table(named(first), tmp_path / "a.parquet")
    pq.write_table(named(second), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=rf"b.parquet {complaint}"):
        open_split(str(tmp_path))


def test_class_names_may_be_numbered_in_one_shard_and_listed_in_another_or_lack_in_all(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    for number, names in enumerate((["cat", "dog"], {"1": "dog", "0": "cat"})):
        pq.write_table(named(names), tmp_path / f"{number}.parquet")
        pq.write_table(named(None), tmp_path / "bare" / f"{number}.parquet")
    assert open_split(str(tmp_path)).class_names == ("cat", "dog")
    assert open_split(str(tmp_path / "bare")).class_names is None


def test_shards_without_an_image_are_refused(tmp_path: Path) -> None:
    pq.write_table(table([]), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="have no rows"):
        open_split(str(tmp_path))


def test_a_label_outside_of_the_classes_is_named_with_file_and_row(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.parquet", [b"x"] * 4, [0, 1, 2, 3])
    write_rows(tmp_path / "b.parquet", [b"x"] * 4, [0, 1, 7, 3])
    split = open_split(str(tmp_path))
    split.check_labels(8)
    with pytest.raises(ValueError, match=r"label 7 in .*b.parquet row 2 is not in 0 .. 3"):
        split.check_labels(4)


def test_a_row_without_bytes_that_no_statistics_told_of_is_an_image_of_no_bytes(tmp_path: Path) -> None:
    values = [{"bytes": bytes(999), "path": None}, {"bytes": None, "path": "a.jpg"}, None]
    rows = pa.array(values, LAYOUT.field("image").type)
    pq.write_table(pa.table({"image": rows, "label": [1] * 3}), tmp_path / "x.parquet", write_statistics=False)
    images = read_row_group(open_split(str(tmp_path)), 0).images
    assert [image.tobytes() for image in images] == [bytes(999), b"", b""]


def write_with_places(path: Path, images: list[bytes], labels: list[int], rows_per_group: int) -> None:
    """A shard that says in its footer where each image lies, found by searching the file."""
    columns = pa.table({"image": [{"bytes": image, "path": ""} for image in images], "label": labels}, schema=LAYOUT)
    options = {"row_group_size": rows_per_group, "compression": "none", "use_dictionary": False}
    pq.write_table(columns, path, **options)
    content, found, place = path.read_bytes(), [], 0
    for image, label in zip(images, labels, strict=True):
        place = content.index(image, place)
        found.append((place, len(image), label))
        place += len(image)
    with pq.ParquetWriter(path, LAYOUT, compression="none", use_dictionary=False) as writer:
        writer.write_table(columns, row_group_size=rows_per_group)
        writer.add_key_value_metadata({byte_offsets.KEY: byte_offsets.encode(np.array(found).T)})
    assert path.read_bytes()[: found[-1][0]] == content[: found[-1][0]]


def test_shards_that_tell_the_images_places_are_read_as_those_that_do_not(tmp_path: Path) -> None:
    images = [jpeg(smooth(20 + n, 30, n)) for n in range(23)]
    labels = [n % 4 for n in range(23)]
    for name in ("a", "b"):
        write_rows(tmp_path / "pages" / f"{name}.parquet", images, labels, 5)
        (tmp_path / "places").mkdir(exist_ok=True)
        write_with_places(tmp_path / "places" / f"{name}.parquet", images, labels, 5)
    pages, marked = open_split(str(tmp_path / "pages")), open_split(str(tmp_path / "places"))
    for number in range(pages.num_row_groups):
        theirs, ours = read_row_group(pages, number), read_row_group(marked, number)
        assert ours.first_index == theirs.first_index
        assert [image.tobytes() for image in ours.images] == [image.tobytes() for image in theirs.images]
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        assert not ours.images[0].flags.owndata  # a view of the file


def test_a_shard_cut_short_after_it_was_opened_is_named(tmp_path: Path) -> None:
    write_with_places(tmp_path / "x.parquet", [jpeg(smooth(40, 40, n)) for n in range(8)], [0] * 8, 8)
    split = open_split(str(tmp_path))
    (tmp_path / "x.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"row group 0 of .*x.parquet cannot be read \(the file ends before byte"):
        read_row_group(split, 0)


def test_many_shards_are_read_with_few_open_files(tmp_path: Path) -> None:
    split = write_split(tmp_path, [3] * 30)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(split.num_row_groups):
        assert len(read_row_group(split, number).images) == 3
    assert len(os.listdir("/proc/self/fd")) <= before + 10


def test_the_real_images_are_read() -> None:
    split = real("imagenet-sample/*.parquet")
    groups = [read_row_group(split, number) for number in range(split.num_row_groups)]
    assert sum(len(group.images) for group in groups) == split.num_images == 500
    assert all(image[:2].tobytes() == b"\xff\xd8" for group in groups for image in group.images)
    labels = np.concatenate([group.labels for group in groups])
    assert split.label_range == (labels.min(), labels.max())
    assert split.class_names is not None
    assert len(split.class_names) == 1000
