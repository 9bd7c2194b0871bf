"""Which images an address names, and in which order they are read. Oracle: the files as written here."""

import io
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from oracle.images import jpeg, smooth
from PIL import Image

from dist_resnet.data.unlabeled.find import find_images
from dist_resnet.data.unlabeled.images import Images, count, cut
from dist_resnet.data.unlabeled.read import read_batches


def _jpegs(number: int) -> list[bytes]:
    return [jpeg(smooth(20, 24, seed)) for seed in range(number)]


def _names(images: list[Images]) -> list[str]:
    return [name for part in images for name in part.names()]


def _read(images: list[Images], batch: int = 3) -> list[bytes | str]:
    read = [image for images in read_batches(images, batch) for image in images]
    return [image if isinstance(image, str) else image.tobytes() for image in read]


def _found(*addresses: object) -> list[str]:
    return _names(find_images([str(address) for address in addresses])[0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images in a folder and below, one without an ending, one damaged; and what is no image."""
    root = tmp_path / "photos"
    (root / "b" / "c").mkdir(parents=True)
    (root / ".thumbnails").mkdir()
    one, two, three, four, hidden = _jpegs(5)
    (root / "z.JPG").write_bytes(one)
    (root / "a.jpg").write_bytes(two)
    (root / "b" / "_DSC0001.jpeg").write_bytes(three)
    (root / "b" / "c" / "scan").write_bytes(four)
    (root / "b" / "c" / "torn.png").write_bytes(b"rubbish")
    (root / ".thumbnails" / "a.jpg").write_bytes(hidden)
    (root / "notes.txt").write_text("none")
    (root / "Thumbs.db").write_bytes(b"x")
    return root


INSIDE = ["a.jpg", "b/_DSC0001.jpeg", "b/c/scan", "b/c/torn.png", "z.JPG"]


def test_a_folder_is_searched_with_its_subfolders_in_the_order_of_the_paths(folder: Path):
    images, left = find_images([str(folder)])
    assert _names(images) == [f"{folder}/{name}" for name in INSIDE]
    assert _read(images) == [(folder / name).read_bytes() for name in INSIDE]
    assert any("notes.txt" in line or "text (.txt) (1)" in line for line in left)
    assert any("Thumbs.db" in line for line in left)


def test_a_link_is_followed_and_a_folder_read_once(folder: Path, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.jpg").write_bytes(_jpegs(1)[0])
    (folder / "far").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    (folder / "again").symlink_to(folder / "b")
    assert _found(folder) == sorted(f"{folder}/{name}" for name in [*INSIDE, "far/far.jpg"])


@pytest.mark.parametrize(
    ("glob", "names"),
    [
        ("*.jpg", ["a.jpg"]),
        ("b/*", ["b/_DSC0001.jpeg"]),
        ("**/*.jp*g", ["a.jpg", "b/_DSC0001.jpeg"]),
        ("b/**", ["b/_DSC0001.jpeg", "b/c/scan", "b/c/torn.png"]),
        ("notes.txt", ["notes.txt"]),
    ],
)
def test_a_glob_means_every_file_that_it_matches(folder: Path, glob: str, names: list[str]):
    assert _found(folder / glob) == [f"{folder}/{name}" for name in names]


def test_a_file_that_is_named_twice_is_read_once(folder: Path):
    assert _found(folder / "z.JPG", folder / "b", folder) == [
        f"{folder}/{name}" for name in ("z.JPG", "b/_DSC0001.jpeg", "b/c/scan", "b/c/torn.png", "a.jpg")
    ]


def test_a_wildcard_in_a_files_own_name_is_no_glob(tmp_path: Path):
    (tmp_path / "a[1].jpg").write_bytes(b"x")
    (tmp_path / "a1.jpg").write_bytes(b"x")
    assert _found(tmp_path / "a[1].jpg") == [f"{tmp_path}/a[1].jpg"]


@pytest.mark.parametrize("struct", [True, False])
@pytest.mark.parametrize("group", [3, 100])
def test_rows_of_parquet_files_are_numbered_through_the_file(tmp_path: Path, struct: bool, group: int):
    images = _jpegs(8)
    column = pa.array([{"bytes": one, "path": "x.jpg"} for one in images] if struct else images)
    for name, rows in (("b", column[5:]), ("a", column[:5]), ("none", column[:0])):
        pq.write_table(pa.table({"image": rows}), tmp_path / f"{name}.parquet", row_group_size=group)
    found, _ = find_images([str(tmp_path)])
    assert _names(found) == [f"{tmp_path}/a.parquet#{n}" for n in range(5)] + [
        f"{tmp_path}/b.parquet#{n}" for n in range(3)
    ]
    assert _read(found) == images
    assert [_read(block, 2) for block in cut(found, 3)] == [images[:3], images[3:6], images[6:]]


def test_rows_with_paths_are_read_from_there_and_rows_with_nothing_get_a_reason(tmp_path: Path):
    one, two, three = _jpegs(3)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "two.jpg").write_bytes(two)
    (tmp_path / "three.jpg").write_bytes(three)
    rows = [
        {"bytes": one, "path": "absent.jpg"},
        {"bytes": None, "path": "photos/two.jpg"},
        {"bytes": b"", "path": str(tmp_path / "three.jpg")},
        {"bytes": None, "path": "absent.jpg"},
        {"bytes": None, "path": None},
        None,
    ]
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet")
    found = _read(find_images([str(tmp_path / "a.parquet")])[0])
    assert found[:3] == [one, two, three]
    assert isinstance(found[3], str)
    assert "the file cannot be read: " in found[3]
    assert "absent.jpg" in found[3]
    assert found[4:] == ["the row has neither bytes nor a path"] * 2


def test_a_damaged_row_group_costs_only_its_own_rows(tmp_path: Path):
    images = [os.urandom(2000) for _ in range(6)]
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": images}), file, row_group_size=3, compression="zstd", use_dictionary=False)
    start = pq.ParquetFile(file).metadata.row_group(0).column(0).data_page_offset
    content = bytearray(file.read_bytes())
    content[start : start + 3000] = bytes(3000)
    file.write_bytes(content)
    found = _read(find_images([str(file)])[0])
    assert found[3:] == images[3:]
    assert all(isinstance(one, str) and one.startswith("row group 0 cannot be read: ") for one in found[:3])


def test_a_file_that_is_gone_gets_a_reason(folder: Path):
    images, _ = find_images([str(folder)])
    (folder / "a.jpg").unlink()
    first, second, *_ = _read(images)
    assert isinstance(first, str)
    assert "a.jpg" in first
    assert second == (folder / "b" / "_DSC0001.jpeg").read_bytes()


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda root: None, "has no images; give --images a folder, files or a glob"),
        (lambda root: (root / "a.txt").write_text("x"), "has no images; give --images a folder, files or a glob"),
        (
            lambda root: [(root / name).write_bytes(b"x") for name in ("a.parquet", "b.jpg")],
            "has both Parquet files and images, such as {0}/a.parquet and {0}/b.jpg",
        ),
        (lambda root: (root / "a.parquet").write_bytes(b"x"), "{0}/a.parquet cannot be read as Parquet"),
        (
            lambda root: pq.write_table(pa.table({"number": [1]}), root / "a.parquet"),
            "{0}/a.parquet has no column of images, it has the columns number: int64",
        ),
        (
            lambda root: pq.write_table(pa.table({"image": pa.array([], pa.binary())}), root / "a.parquet"),
            "has no images: {0}/a.parquet have no rows",
        ),
    ],
)
def test_what_has_no_images_is_refused(tmp_path: Path, make, complaint: str):
    make(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        find_images([str(tmp_path)])
    assert complaint.format(tmp_path) in str(refused.value)


def test_images_of_an_object_store_have_uris_that_open_again(s3: str, folder: Path):
    import boto3

    client = boto3.client("s3")
    for name in INSIDE:
        client.put_object(Bucket="bucket", Key=f"new images/{name}", Body=(folder / name).read_bytes())
    images, _ = find_images([f"{s3}/new images"])
    assert _names(images) == [f"s3://bucket/new%20images/{name}" for name in INSIDE]
    assert _read(images) == [(folder / name).read_bytes() for name in INSIDE]
    assert _found(*_names(images)) == _names(images)
    assert _found(f"{s3}/new images/**/*.jp*g") == [f"s3://bucket/new%20images/{n}" for n in INSIDE[:2]]
    with pytest.raises(FileNotFoundError, match="s3://bucket/absent has no images"):
        find_images(["s3://bucket/absent"])


def test_blocks_keep_the_order_and_every_image_once(folder: Path, tmp_path: Path):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    pq.write_table(pa.table({"image": [file.getvalue()] * 7}), tmp_path / "a.parquet", row_group_size=2)
    images, _ = find_images([str(folder), str(tmp_path / "a.parquet")])
    for size in range(1, 14):
        blocks = list(cut(images, size))
        assert [name for block in blocks for name in _names(block)] == _names(images)
        assert {count(block) for block in blocks[:-1]} <= {size}
        assert 0 < count(blocks[-1]) <= size
