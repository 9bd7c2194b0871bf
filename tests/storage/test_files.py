"""Files that appear whole or not at all; oracle: what lies on the disk, or on a real S3 server, afterwards."""

from pathlib import Path

import pyarrow.fs as pafs
import pytest

from dist_resnet.storage import uri
from dist_resnet.storage.files import exists, is_partial_of_here, now_at, read_json, size_text, whole_file, write_json
from dist_resnet.storage.uri import open_uri

LARGE = b"x" * (12 << 20)  # more than one part of an upload


def write_half(filesystem: pafs.FileSystem, path: str, content: bytes) -> None:
    with whole_file(filesystem, path) as stream:
        stream.write(content)
        raise ValueError("half way")


def test_a_file_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file"
    with whole_file(pafs.LocalFileSystem(), str(target)) as stream:
        stream.write(b"first")
        assert not target.exists()
        stream.write(b"second")
    assert target.read_bytes() == b"firstsecond"
    assert list(target.parent.iterdir()) == [target]


def test_where_folders_must_exist_a_files_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = uri.Scheme(names=("tree",), example="tree://path", type_name="subtree", folders_must_exist=True)
    monkeypatch.setitem(uri._BY_TYPE, "subtree", scheme)
    with whole_file(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "a/b/file") as stream:
        stream.write(b"content")
    assert (tmp_path / "a/b/file").read_bytes() == b"content"


def test_a_block_that_fails_leaves_the_earlier_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"earlier")
    with pytest.raises(ValueError, match="half way"):
        write_half(pafs.LocalFileSystem(), str(target), b"later")
    assert target.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [target]


def test_an_upload_that_fails_half_way_leaves_no_object(tmp_path: Path, s3: str) -> None:
    filesystem, path = open_uri(f"{s3}/{tmp_path.name}/object")
    with pytest.raises(ValueError, match="half way"):
        write_half(filesystem, path, LARGE)
    assert not exists(filesystem, path)
    with whole_file(filesystem, path) as stream:
        stream.write(LARGE)
    with filesystem.open_input_file(path) as file:
        assert file.read() == LARGE


def test_json_comes_back_and_damaged_json_is_named(tmp_path: Path) -> None:
    filesystem, path = pafs.LocalFileSystem(), str(tmp_path / "value.json")
    assert read_json(filesystem, path) is None
    write_json(filesystem, path, {"a": [1, None]})
    assert read_json(filesystem, path) == {"a": [1, None]}
    Path(path).write_text('{"a": ')
    with pytest.raises(ValueError, match=r"value.json is damaged: not JSON \(.*\); restore it from a copy"):
        read_json(filesystem, path)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 bytes"),
        (1, "1 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (55_160, "55.2 kB"),
        (999_960, "1.0 MB"),
        (49_000_000, "49.0 MB"),
        (146_000_000_000, "146.0 GB"),
        (7_250_000_000_000, "7.2 TB"),
    ],
)
def test_sizes_are_told_in_a_unit_in_which_they_are_not_zero(num_bytes: int, text: str) -> None:
    assert size_text(num_bytes) == text


def test_a_file_that_is_not_whole_tells_whether_this_machine_began_it(tmp_path: Path) -> None:
    with whole_file(pafs.LocalFileSystem(), str(tmp_path / "file")) as stream:
        (name,) = (one.name for one in tmp_path.iterdir())
        assert is_partial_of_here(name)
        stream.write(b"x")
    assert not is_partial_of_here("file.0123456789abcdef0123456789abcdef.partial")
    assert not is_partial_of_here("file")


def test_the_files_clock_is_that_which_stamps_them(tmp_path: Path) -> None:
    filesystem = pafs.LocalFileSystem()
    first = now_at(filesystem, str(tmp_path))
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_bytes(b"x")
    assert first <= (tmp_path / "file").stat().st_mtime_ns <= now_at(filesystem, str(tmp_path))
