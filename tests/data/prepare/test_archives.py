"""ImageNet's archives; oracle: the images that tarfile put in, byte for byte at the places found."""

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pytest
from oracle.sources import SYNSETS, expected_rows, small_images, tar, write_archives, write_devkit

from dist_resnet.data.prepare.archives import find_archives, index_archives
from dist_resnet.data.prepare.index import Index

LOCAL = pafs.LocalFileSystem()


def index(root: Path) -> dict[str, Index]:
    counted: list[int] = []
    source = index_archives(LOCAL, str(root), find_archives(LOCAL, str(root)), counted.append)
    assert source.kind == "tar"
    assert source.class_names == SYNSETS
    assert sum(counted) == sum(len(one) for one in source.splits.values())
    return source.splits


def rows(found: Index) -> list[tuple[str, bytes, int]]:
    read = []
    for row in range(len(found)):
        content = Path(found.containers[found.container[row]].path).read_bytes()
        start = int(found.offset[row])
        read.append((found.name[row].as_py(), content[start : start + int(found.size[row])], int(found.label[row])))
    return sorted(read)


def test_images_are_byte_ranges_of_the_archives_under_the_sorted_synsets(tmp_path: Path) -> None:
    images = small_images()
    found = index(write_archives(tmp_path, images))
    assert rows(found["train"]) == expected_rows(images, "train")
    # The devkit numbers the classes the other way round.
    assert rows(found["validation"]) == expected_rows(images, "validation")
    names = [found["train"].describe(row) for row in range(len(found["train"]))]
    assert f"ILSVRC2012_img_train.tar/n01440764.tar/{images['train']['n01440764'][0][0]}" in names


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_folders_and_long_names_in_any_tar_format_are_read(tmp_path: Path, form: int) -> None:
    name = "x" * 90 + ".JPEG" if form == tarfile.USTAR_FORMAT else "ä" + "x" * 300 + ".JPEG"
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w", format=form) as archive:
        folder = tarfile.TarInfo("./")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        member = tarfile.TarInfo(f"./{name}")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"hello"))
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar([("n01440764.tar", inner.getvalue())]))
    source = index_archives(LOCAL, "", find_archives(LOCAL, str(tmp_path)), lambda count: None)
    assert rows(source.splits["train"]) == [(name, b"hello", 0)]


def cuts(content: bytes) -> list[int]:
    """Places where an archive may be cut: within data, between members, within a header, and before the end mark."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = archive.getmembers()
    second, last = members[1], members[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    return [100, second.offset, second.offset + 100, second.offset_data, last.offset_data + 10, end, end + 200]


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("archive", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
def test_an_archive_cut_short_is_named(tmp_path: Path, archive: str, number: int) -> None:
    file = write_archives(tmp_path, small_images()) / archive
    content = file.read_bytes()
    file.write_bytes(content[: cuts(content)[number]])
    with pytest.raises(
        ValueError, match=rf"{archive}.* is cut short or not a tar archive \(.*\); download it again"
    ) as caught:
        index(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", range(7))
def test_an_inner_archive_cut_short_is_named(tmp_path: Path, number: int) -> None:
    files = small_images()["train"]["n01440764"]
    whole = tar(files)
    inner = whole[: cuts(whole)[number]]
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar([("n01440764.tar", inner), ("n01443537.tar", whole)]))
    with pytest.raises(
        ValueError, match=r"ILSVRC2012_img_train.tar in n01440764.tar is cut short or not a tar archive"
    ):
        index(tmp_path)


def test_an_empty_archive_and_a_file_of_something_else_are_named(tmp_path: Path) -> None:
    for content in (b"", b"x" * 5000, bytes(5000)[:300]):
        (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(content)
        with pytest.raises(ValueError, match="ILSVRC2012_img_train.tar is cut short or not a tar archive"):
            index(tmp_path)


def test_a_training_archive_of_images_or_with_a_class_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ILSVRC2012_img_train.tar"
    file.write_bytes(tar([("n01440764_1.JPEG", b"x")]))
    with pytest.raises(ValueError, match=r"holds n01440764_1.JPEG; it should hold a tar of each class"):
        index(tmp_path)
    inner = tar([("a.JPEG", b"x")])
    file.write_bytes(tar([("n01440764.tar", inner), ("n01440764.tar", inner)]))
    with pytest.raises(ValueError, match=r"holds n01440764.tar twice"):
        index(tmp_path)


def test_a_ground_truth_beyond_the_class_list_is_refused(tmp_path: Path) -> None:
    write_archives(tmp_path, small_images(), truth=[1, 2, 3, 4, 5, 1, 2, 3, 4, 7])
    with pytest.raises(ValueError, match=r"ground truth has label 7, which is not in the class list of 5"):
        index(tmp_path)


def test_a_ground_truth_of_another_number_of_images_is_refused(tmp_path: Path) -> None:
    write_archives(tmp_path, small_images(), truth=[1, 2, 3])
    with pytest.raises(ValueError, match=r"img_val.tar holds 10 images, the devkit has the classes of 3"):
        index(tmp_path)


def test_a_validation_class_that_the_training_archive_has_not_is_named(tmp_path: Path) -> None:
    write_archives(tmp_path, small_images())
    write_devkit(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", {"n01440764": 1, "n99999999": 2}, [1] * 9 + [2])
    with pytest.raises(ValueError, match=r"ILSVRC2012_val_00000010.JPEG of .* is of class n99999999 in the devkit"):
        index(tmp_path)


def test_validation_images_without_a_number_are_refused(tmp_path: Path) -> None:
    images = small_images()
    images["validation"]["n01440764"][0] = ("first.JPEG", b"x")
    write_archives(tmp_path, images)
    with pytest.raises(ValueError, match=r"holds first.JPEG; its names should end in a number, 1 to 10"):
        index(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"x" * 100, gzip.compress(b"x" * 5000), gzip.compress(tar([("a", b"b")]))],
    ids=["empty", "text", "compressed text", "another archive"],
)
def test_a_devkit_that_is_none_is_named(tmp_path: Path, content: bytes) -> None:
    write_archives(tmp_path, small_images())
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"devkit_t12.tar.gz cannot be read as ImageNet's devkit \(.*\); download"):
        index(tmp_path)


def test_the_index_of_a_thousand_images_is_exact(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = [(f"{n}.JPEG", rng.bytes(int(rng.integers(0, 2000)))) for n in range(1000)]
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar([("n01440764.tar", tar(files))]))
    source = index_archives(LOCAL, "", find_archives(LOCAL, str(tmp_path)), lambda count: None)
    assert rows(source.splits["train"]) == sorted((name, content, 0) for name, content in files)


def test_hidden_members_are_skipped_and_others_taken_by_their_first_bytes(tmp_path: Path) -> None:
    """As a Mac packs a folder."""
    images = small_images()
    encoded = images["train"]["n01440764"][0][1]
    odd = [("._1.JPEG", b"x"), ("__MACOSX/a.JPEG", b"x"), ("deep/.DS_Store", b"x"), ("Thumbs.db", b"x")]
    files = [
        *images["train"]["n01440764"],
        *odd,
        ("no-ending", encoded),
        ("list.txt", b"eight"),
        ("a.heic", b"\0" * 9),
    ]
    outer = [("n01440764.tar", tar(files)), ("._n01440764.tar", b"x"), ("__MACOSX/._n01440764.tar", b"x")]
    write_archives(tmp_path, images)
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar(outer))
    (tmp_path / "._ILSVRC2012_img_train.tar").write_bytes(b"x")
    (tmp_path / "ILSVRC2012_img_val.tar").unlink()
    source = index_archives(LOCAL, "", find_archives(LOCAL, str(tmp_path)), lambda count: None)
    assert source.class_names == ("n01440764",)
    wanted = [(name, one, 0) for name, one in [*images["train"]["n01440764"], ("no-ending", encoded)]]
    assert rows(source.splits["train"]) == sorted(wanted)
    assert source.notes == (
        "6 hidden and tools' files and folders: ._* (2), __MACOSX (2), .DS_Store (1), Thumbs.db (1)",
        "2 files that are not images: text (.txt) (1), unknown (.heic) (1)",
    )


def test_links_in_an_archive_have_no_bytes_and_are_counted(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        member = tarfile.TarInfo("a.JPEG")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"hello"))
        for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):
            link = tarfile.TarInfo(f"b{kind.decode()}.JPEG")
            link.type, link.linkname = kind, "a.JPEG"
            archive.addfile(link)
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar([("n01440764.tar", inner.getvalue())]))
    source = index_archives(LOCAL, "", find_archives(LOCAL, str(tmp_path)), lambda count: None)
    assert rows(source.splits["train"]) == [("a.JPEG", b"hello", 0)]
    assert source.notes == ("2 files that are not images: link or device in an archive (2)",)


def test_two_archives_of_one_kind_are_refused(tmp_path: Path) -> None:
    write_archives(tmp_path, small_images())
    (tmp_path / "ILSVRC2010_img_train.tar").write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"ILSVRC2010_img_train.tar and .*ILSVRC2012_img_train.tar have the name of the same archive"
    ):
        find_archives(LOCAL, str(tmp_path))


def test_names_of_another_encoding_are_carried_on_with_their_bytes_escaped(tmp_path: Path) -> None:
    def inner(name: str) -> bytes:
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w", encoding="latin-1", format=tarfile.GNU_FORMAT) as archive:
            member = tarfile.TarInfo(name)
            member.size = 5
            archive.addfile(member, io.BytesIO(b"hello"))
        return content.getvalue()

    outer = io.BytesIO()
    with tarfile.open(fileobj=outer, mode="w", encoding="latin-1", format=tarfile.GNU_FORMAT) as archive:
        for class_name in ("café", "cat"):
            content = inner("Å.JPEG")
            member = tarfile.TarInfo(f"{class_name}.tar")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(outer.getvalue())
    source = index_archives(LOCAL, "", find_archives(LOCAL, str(tmp_path)), lambda count: None)
    assert source.class_names == ("caf\\xe9", "cat")
    assert rows(source.splits["train"]) == [("\\xc5.JPEG", b"hello", 0), ("\\xc5.JPEG", b"hello", 1)]
    assert source.splits["train"].describe(0) == "ILSVRC2012_img_train.tar/caf\\xe9.tar/\\xc5.JPEG"
