"""Shards by folders and globs. Oracle: Python's own glob, and the listings a file system was asked for."""

import glob
import os
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from dist_resnet.data.shards.globs import find_shards
from dist_resnet.storage.uri import child_uri, open_uri

TREE = [
    "train-0.parquet",
    "train-1.parquet",
    "notes.txt",
    ".train-9.parquet",
    "a/train-0.parquet",
    "a/deep/train-0.parquet",
    "a/deep/er/train-7.parquet",
    "b/train-0.parquet",
    "b/test-0.parquet",
    ".ipynb_checkpoints/train-0.parquet",
    "set [v1]/train-0.parquet",
    "set [v1]/train-1.parquet",
    "set v/train-5.parquet",
    "odd/train-[0].parquet",
    "odd/train-0.parquet",
    "odd/what?*.parquet",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in TREE:
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "root"


def _found(uri: str) -> list[str]:
    filesystem, path = open_uri(uri)
    return find_shards(filesystem, path, uri)[0]


@pytest.mark.parametrize(
    "pattern",
    [
        "train-*.parquet",
        "train-?.parquet",
        "train-[1-9].parquet",
        "*/train-0.parquet",
        "[ab]/t*.parquet",
        "?/*/*.parquet",
        "**/train-0.parquet",
        "a/**/*.parquet",
        "**/deep/**/train-7.parquet",
        ".ipynb_checkpoints/*.parquet",
        ".*/train-*.parquet",
        "a/deep/../deep/*.parquet",
        "set*/train-1.parquet",
    ],
)
def test_a_glob_finds_what_pythons_glob_finds(root: Path, pattern: str):
    expected = sorted(map(os.path.normpath, glob.glob(str(root / pattern), recursive=True)))
    assert expected
    assert _found(f"{root}/{pattern}") == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("set [v1]/train-*.parquet", ["set [v1]/train-0.parquet", "set [v1]/train-1.parquet"]),
        ("set [v1]", ["set [v1]/train-0.parquet", "set [v1]/train-1.parquet"]),
        ("set [v1]/train-1.parquet", ["set [v1]/train-1.parquet"]),
        ("set [v2]/train-*.parquet", ["set v/train-5.parquet"]),
        ("set [w1]/train-*.parquet", None),
        ("set[ ]v/train-*.parquet", ["set v/train-5.parquet"]),
        ("odd/train-[0].parquet", ["odd/train-[0].parquet"]),
        ("odd/what?*.parquet", ["odd/what?*.parquet"]),
        (
            "*/train-[0].parquet",
            ["a/train-0.parquet", "b/train-0.parquet", "odd/train-[0].parquet", "set [v1]/train-0.parquet"],
        ),
        ("a/**", ["a/deep/er/train-7.parquet", "a/deep/train-0.parquet", "a/train-0.parquet"]),
    ],
)
def test_what_is_there_by_its_very_name_beats_a_glob(root: Path, given: str, expected: list[str] | None):
    if expected is None:
        with pytest.raises(FileNotFoundError, match="no Parquet shards match"):
            _found(f"{root}/{given}")
        return
    assert [path.removeprefix(f"{root}/") for path in _found(f"{root}/{given}")] == expected


class _Recording(pafs.FileSystemHandler):
    """Another file system that notes which folders are listed."""

    def __init__(self, inner: pafs.FileSystem) -> None:
        self.inner, self.listed = inner, []

    def get_type_name(self):
        return "recording"

    def get_file_info(self, paths):
        return self.inner.get_file_info(paths)

    def get_file_info_selector(self, selector):
        self.listed.append((selector.base_dir, selector.recursive))
        return self.inner.get_file_info(selector)

    def normalize_path(self, path):
        return path


for _name in pafs.FileSystemHandler.__abstractmethods__ - set(vars(_Recording)):
    setattr(_Recording, _name, lambda *_: pytest.fail("only lists"))
_Recording.__abstractmethods__ = frozenset()


def _listed(filesystem: pafs.FileSystem, path: str) -> list[tuple[str, bool]]:
    recording = _Recording(filesystem)
    find_shards(pafs.PyFileSystem(recording), path, path)
    return recording.listed


def test_only_the_folders_that_a_glob_reaches_are_listed(root: Path):
    local = pafs.LocalFileSystem()
    assert _listed(local, f"{root}/?/train-*.parquet") == [(f"{root}{rest}", False) for rest in ("", "/a", "/b")]
    assert _listed(local, f"{root}/*/deep/train-*.parquet")[:2] == [(str(root), False), (f"{root}/a/deep", False)]
    assert _listed(local, f"{root}/set [v1]/train-*.parquet") == [(f"{root}/set [v1]", False)]
    assert _listed(local, str(root)) == [(str(root), False)]
    assert _listed(local, f"{root}/a/**/t*.parquet") == [(f"{root}/a", True)]


@pytest.mark.parametrize("store", ["s3", "gs", "az"])
def test_globs_on_an_object_store_mean_the_same(store: str, request: pytest.FixtureRequest):
    folder = child_uri(request.getfixturevalue(store), f"globs-{store}")
    filesystem, path = open_uri(folder)
    for name in TREE:
        if store == "s3":
            filesystem.create_dir(f"{path}/{name}".rpartition("/")[0], recursive=True)
        with filesystem.open_output_stream(f"{path}/{name}") as stream:
            stream.write(b"x")

    def found(pattern: str) -> list[str]:
        return [one.removeprefix(f"{path}/") for one in _found(child_uri(folder, pattern))]

    assert found("train-*.parquet") == ["train-0.parquet", "train-1.parquet"]
    assert found("[ab]/t*.parquet") == ["a/train-0.parquet", "b/test-0.parquet", "b/train-0.parquet"]
    assert found("*/deep/*.parquet") == ["a/deep/train-0.parquet"]
    assert found("a/**/*.parquet") == ["a/deep/er/train-7.parquet", "a/deep/train-0.parquet", "a/train-0.parquet"]
    assert found("set [v1]/train-*.parquet") == ["set [v1]/train-0.parquet", "set [v1]/train-1.parquet"]
    if store == "s3":
        recording = _Recording(filesystem)
        find_shards(pafs.PyFileSystem(recording), f"{path}/?/train-*.parquet", path)
        assert recording.listed == [(f"{path}{rest}", False) for rest in ("", "/a", "/b")]


@pytest.mark.parametrize(
    ("folder", "name"),
    [(b"plain", b"train-\xe9.parquet"), (b"caf\xe9", b"train-0.parquet"), (b"\xff\xfe", b"t.parquet")],
)
def test_a_shard_whose_name_is_no_utf_8_is_refused_by_its_escaped_bytes(tmp_path: Path, folder: bytes, name: bytes):
    os.makedirs(os.path.join(os.fsencode(tmp_path), folder))
    with open(os.path.join(os.fsencode(tmp_path), folder, name), "wb"):
        pass
    # A folder is refused before what is in it.
    refused = folder if folder != b"plain" else folder + b"/" + name
    expected = f"the name {tmp_path}/{refused.decode('utf-8', 'backslashreplace')} is not UTF-8"
    with pytest.raises(ValueError, match="is not UTF-8") as caught:
        _found(f"{tmp_path}/*/t*.parquet")
    assert expected in str(caught.value)


def test_other_files_beside_the_shards_may_be_named_as_they_like(tmp_path: Path):
    for name in (b"x.parquet", b"caf\xe9.txt"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
            pass
    assert _found(str(tmp_path)) == [f"{tmp_path}/x.parquet"]
