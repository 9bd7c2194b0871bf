"""The run's directory. Oracle: plain files as Python writes and reads them, and a real S3 server on loopback."""

import contextlib
import os
import pickle
import resource
from pathlib import Path

import pytest

from dist_resnet.storage.files import whole_file
from dist_resnet.storage.uri import absolute_uri, child_uri, open_uri
from dist_resnet.tracking.run_directory import RunDirectory


def test_written_files_are_read_and_listed(tmp_path: Path):
    directory = RunDirectory(str(tmp_path / "run"))
    directory.write("a/b.bin", b"content")
    assert (tmp_path / "run/a/b.bin").read_bytes() == b"content"
    assert directory.read("a/b.bin") == b"content"
    assert directory.list("a") == [("b.bin", 7)]
    assert directory.list("") == [("a", -1)]
    assert directory.list("nowhere") == []


def test_writing_again_replaces_the_file_and_leaves_no_other(tmp_path: Path):
    directory = RunDirectory(str(tmp_path))
    directory.write("file", b"old")
    directory.write("file", b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert directory.read("file") == b"new"


def test_a_missing_json_file_is_none(tmp_path: Path):
    directory = RunDirectory(str(tmp_path))
    assert directory.read_json("summary.json") is None
    directory.write_json("summary.json", {"steps": 3})
    assert directory.read_json("summary.json") == {"steps": 3}


@pytest.mark.parametrize("content", [b"", b'{"status": "fin', b"[1, 2]", b'"text"', b"null", b"\xff\xfe\x00"])
def test_a_file_without_a_json_object_is_named(tmp_path: Path, content: bytes):
    directory = RunDirectory(str(tmp_path))
    directory.write("summary.json", content)
    with pytest.raises(ValueError, match=f"^{tmp_path}/summary.json is damaged[:,] .*; restore it from a copy$"):
        directory.read_json("summary.json")


def test_a_directory_can_be_pickled(tmp_path: Path):
    directory = RunDirectory(str(tmp_path))
    directory.write("file", b"x")
    assert pickle.loads(pickle.dumps(directory)).read("file") == b"x"  # noqa: S301


def test_local_paths_become_absolute_and_uris_do_not_change(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert absolute_uri("runs") == str(tmp_path / "runs")
    assert absolute_uri("~/runs") == "/home/someone/runs"
    assert absolute_uri("s3://bucket/runs") == "s3://bucket/runs"


@pytest.mark.parametrize(
    "uri", ["s3:/bucket/runs", "s3:runs", "S3://", "s3:///runs", "gs:/bucket", "file:runs", "file://runs"]
)
def test_half_a_uri_is_not_a_folder_of_that_name(uri: str):
    with pytest.raises(ValueError, match=f"'{uri}' is an incomplete URI; give a local path, s3://bucket/path"):
        RunDirectory(uri)


def test_the_folder_of_an_unknown_user_is_refused():
    with pytest.raises(ValueError, match="'~no-such-user/runs' begins with an unknown user; give the full path"):
        RunDirectory("~no-such-user/runs")


def test_a_relative_path_in_a_folder_that_is_gone_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(
        ValueError, match="'runs' is relative to a working directory that no longer exists; give the full path"
    ):
        RunDirectory("runs")
    RunDirectory(str(tmp_path))


def test_extra_slashes_change_nothing():
    assert RunDirectory("//tmp//runs//").uri == "/tmp/runs"
    assert RunDirectory("/").child("run") == "/run"
    assert RunDirectory("/run").parent.uri == "/"


_NAMES = ("a run", "50%", "a%20b", "what?", "a#b", "r\u00e9seau", "it's $HOME")


@pytest.mark.parametrize("storage", ["local", "file", "s3", "az"])
def test_a_run_of_any_name_has_its_own_folder_with_that_name(storage: str, tmp_path: Path, request):
    if storage in ("s3", "az"):
        root = RunDirectory(child_uri(request.getfixturevalue(storage), "my runs"))
    else:
        folder = tmp_path / "my runs"
        root = RunDirectory(str(folder) if storage == "local" else f"file://{folder}")
    for name in _NAMES:
        directory = RunDirectory(root.child(name))
        directory.write("name", name.encode())
        assert directory.name == name
        assert directory.parent.uri == root.uri
        assert RunDirectory(directory.uri).uri == directory.uri
    assert sorted(root.list("")) == sorted((name, -1) for name in _NAMES)
    assert [root.read(f"{name}/name").decode() for name in _NAMES] == list(_NAMES)


def test_a_uri_may_have_options_for_its_store(s3: str):
    root = RunDirectory(f"{s3}/with?region=us-east-1")
    run = RunDirectory(root.child("run"))
    run.write("file", b"x")
    assert (run.uri, run.name) == (f"{s3}/with/run?region=us-east-1", "run")
    assert run.parent.list("run") == [("file", 1)]
    assert RunDirectory(f"{s3}/with/run").read("file") == b"x"


def test_a_directory_of_another_kind_is_refused(tmp_path: Path):
    for kind, name, content in (
        ("run", "recipe.json", {"recipe": {}}),
        ("probe", "recipe.json", {"recipe": {}, "probe": {}}),
        ("sweep", "sweep.json", {}),
    ):
        directory = RunDirectory(str(tmp_path / kind))
        directory.check_kind("run")
        directory.write_json(name, content)
        for other in ("run", "sweep", "probe"):
            with (
                contextlib.nullcontext()
                if other == kind
                else pytest.raises(ValueError, match=f"is the directory of a {kind}; ")
            ):
                directory.check_kind(other)


def test_an_unknown_kind_of_storage_is_named():
    with pytest.raises(
        ValueError, match="ftp://host/runs cannot be opened .*; give a local path, s3://bucket/path, gs://"
    ):
        RunDirectory("ftp://host/runs")


def test_a_full_disk_is_named_and_keeps_existing_files(tmp_path: Path):
    """A limit on file sizes stands in for a full disk."""
    directory, limits = RunDirectory(str(tmp_path)), resource.getrlimit(resource.RLIMIT_FSIZE)
    directory.write("file", b"old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: '{tmp_path}/file'"):
            directory.write("file", b"x" * 2000)
        with pytest.raises(OSError, match=f"File too large: '{tmp_path}/large'"), directory.staged("large") as path:
            path.write_bytes(b"x" * 2000)
        with pytest.raises(ValueError, match=r"cannot be written \(.*File too large.*\); free some space, correct"):
            directory.check_writable()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["file"]
    assert directory.read("file") == b"old"


def test_a_storage_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="cannot be written .*--execution.storage URI"):
        RunDirectory(str(tmp_path / "file" / "runs")).check_writable()


@pytest.mark.parametrize("store", ["s3", "gs", "az"])
def test_an_object_store_works_too(store: str, request: pytest.FixtureRequest):
    directory = RunDirectory(child_uri(request.getfixturevalue(store), "runs/one"))
    directory.check_writable()
    directory.write("checkpoints/step_1/model", b"weights")
    directory.write_json("summary.json", {"steps": 1})
    assert directory.read("checkpoints/step_1/model") == b"weights"
    assert [name for name, _ in directory.list("")] == ["checkpoints", "summary.json"]
    assert directory.list("checkpoints") == [("step_1", -1)]
    assert directory.read_json("missing.json") is None
    directory.delete("checkpoints/step_1")
    assert directory.list("checkpoints/step_1") == []
    assert pickle.loads(pickle.dumps(directory)).read_json("summary.json") == {"steps": 1}  # noqa: S301


def test_an_object_on_azure_appears_only_when_complete(az: str):
    directory = RunDirectory(child_uri(az, "runs/whole"))
    directory.write_json("summary.json", {"steps": 1})
    filesystem, path = open_uri(directory.child("summary.json"))
    with whole_file(filesystem, path) as stream:
        stream.write(b"x" * (12 << 20))  # more than one block
        assert directory.read_json("summary.json") == {"steps": 1}
    with pytest.raises(OSError, match="no space"):
        _fail_half_way(directory, "summary.json")
    assert directory.list("") == [("summary.json", 12 << 20)]
    with directory.staged("summary.json") as staged:
        staged.write_bytes(b"whole")
    assert directory.read("summary.json") == b"whole"
    assert directory.list("") == [("summary.json", 5)]


def test_a_staged_file_appears_complete_or_not_at_all(tmp_path: Path):
    directory = RunDirectory(str(tmp_path))
    with directory.staged("a/large.bin") as path:
        path.write_bytes(b"content")
        assert not directory.exists("a/large.bin")
    assert directory.read("a/large.bin") == b"content"
    with pytest.raises(OSError, match="no space"):
        _fail_half_way(directory, "a/large.bin")
    assert directory.read("a/large.bin") == b"content"
    assert [name for name, _ in directory.list("a")] == ["large.bin"]


def _fail_half_way(directory: RunDirectory, name: str) -> None:
    with directory.staged(name) as path:
        path.write_bytes(b"half")
        raise OSError("no space")
