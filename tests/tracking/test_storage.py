"""The run's directory. Oracle: plain files as Python writes and reads them, and a real S3 server on loopback."""

import os
import pickle
from pathlib import Path

import pytest

from dist_resnet.tracking.storage import RunDirectory, absolute_uri


def test_what_is_written_is_read_and_listed(tmp_path: Path):
    directory = RunDirectory(str(tmp_path / "run"))
    directory.write("a/b.bin", b"content")
    assert (tmp_path / "run/a/b.bin").read_bytes() == b"content"
    assert directory.read("a/b.bin") == b"content"
    assert directory.list("a") == [("b.bin", 7)]
    assert directory.list("") == [("a", -1)]
    assert directory.list("nowhere") == []


def test_writing_again_replaces_and_leaves_nothing_else(tmp_path: Path):
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
def test_a_file_that_holds_no_json_object_is_named(tmp_path: Path, content: bytes):
    directory = RunDirectory(str(tmp_path))
    directory.write("summary.json", content)
    with pytest.raises(ValueError, match=f"^{tmp_path}/summary.json is damaged, .*; restore it from a copy$"):
        directory.read_json("summary.json")


def test_a_directory_travels_between_processes(tmp_path: Path):
    directory = RunDirectory(str(tmp_path))
    directory.write("file", b"x")
    assert pickle.loads(pickle.dumps(directory)).read("file") == b"x"  # noqa: S301


def test_local_paths_become_absolute_and_uris_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert absolute_uri("runs") == str(tmp_path / "runs")
    assert absolute_uri("~/runs") == "/home/someone/runs"
    assert absolute_uri("s3://bucket/runs") == "s3://bucket/runs"


def test_an_unknown_kind_of_storage_is_named():
    with pytest.raises(ValueError, match="storage ftp://host/runs cannot be opened"):
        RunDirectory("ftp://host/runs")


def test_a_storage_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="cannot be written .*--execution.storage URI"):
        RunDirectory(str(tmp_path / "file" / "runs")).check_writable()


@pytest.mark.parametrize("store", ["s3", "gs"])
def test_an_object_store_serves_as_well(store: str, request: pytest.FixtureRequest):
    directory = RunDirectory(f"{request.getfixturevalue(store)}/runs/one")
    directory.check_writable()
    directory.write("checkpoints/step_1/model", b"weights")
    directory.write_json("summary.json", {"steps": 1})
    assert directory.read("checkpoints/step_1/model") == b"weights"
    assert [name for name, _ in directory.list("")] == ["checkpoints", "summary.json"]
    assert directory.list("checkpoints") == [("step_1", -1)]
    assert directory.read_json("missing.json") is None
    directory.delete("checkpoints/step_1")
    assert directory.list("checkpoints/step_1") == []


def test_a_staged_file_is_there_whole_or_not_at_all(tmp_path: Path):
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
