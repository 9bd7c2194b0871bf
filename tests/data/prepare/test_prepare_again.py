"""A set that was stopped, killed, finished or changed, prepared again. Oracle: what an undisturbed job writes."""

import errno
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from oracle.sources import (
    WRITERS,
    Silent,
    damaged_images,
    expected_rows,
    in_turn,
    prepare_here,
    prepared_rows,
    small_images,
    write_folders,
)

from dist_resnet.data.image.ingest import Shrink
from dist_resnet.data.prepare.options import Options
from dist_resnet.data.prepare.prepare import prepare
from dist_resnet.storage.files import PARTIAL


def sums(folder: Path) -> dict[str, str]:
    return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in folder.iterdir() if one.is_file()}


def test_a_job_that_was_stopped_leaves_finished_shards_as_they_are(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_images())
    prepare_here(source, tmp_path / "undisturbed")

    def stopped(function, tasks):
        for task in tasks[:2]:
            yield from function(task)
        yield next(function(tasks[2]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_here(source, tmp_path / "target", run=stopped)
    finished = {one.name: one.stat().st_mtime_ns for one in (tmp_path / "target").glob("*.parquet")}
    assert len(finished) == 2
    # What a process that was killed leaves:
    (tmp_path / "target" / "train-00002-of-00004.parquet.0123.partial").write_bytes(b"half")
    progress = Silent()
    options = Options(source=str(source), target=str(tmp_path / "target"), shard_megabytes=0.01)
    prepare(options, run=in_turn, progress=progress)
    assert progress.said == ["2 shards were finished by an earlier start"]
    assert {name: (tmp_path / "target" / name).stat().st_mtime_ns for name in finished} == finished
    mine, theirs = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("target", "undisturbed"))
    assert mine == theirs
    assert sums(tmp_path / "target") == sums(tmp_path / "undisturbed")


class Killed(BaseException):
    """Ends a job where no handler of errors looks."""


@pytest.mark.parametrize("write", WRITERS)
def test_a_job_that_dies_after_every_third_file_comes_to_the_same_end(tmp_path: Path, write, monkeypatch) -> None:
    source = write(tmp_path / "source", small_images(per_class=4))
    prepare_here(source, tmp_path / "undisturbed")
    written = []

    def count(path: str) -> None:
        written.extend([path] if path.endswith(PARTIAL) else [])
        if len(written) == 4 and path == written[-1]:
            raise Killed

    monkeypatch.setattr("dist_resnet.storage.files._make_durable", count)
    deaths = 0
    while True:
        written.clear()
        try:
            prepare_here(source, tmp_path / "target")
            break
        except Killed:
            deaths += 1
            assert deaths < 50
    assert deaths > 3
    assert sums(tmp_path / "target") == sums(tmp_path / "undisturbed")


@pytest.mark.parametrize("write", WRITERS)
def test_a_job_that_was_killed_in_its_clean_up_finishes_that_alone(tmp_path: Path, write, monkeypatch) -> None:
    source = write(tmp_path / "source", small_images())
    prepare_here(source, tmp_path / "undisturbed")
    work = tmp_path / "target" / "preparing"

    def half(filesystem: pafs.FileSystem, folder: str) -> None:
        for entry in sorted(work.iterdir())[1::2]:
            entry.unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("dist_resnet.data.prepare.prepare.clean_up", half)
        with pytest.raises(Killed):
            prepare_here(source, tmp_path / "target")
    written = {one: one.stat().st_mtime_ns for one in (tmp_path / "target").glob("*.parquet")}
    manifest = prepare_here(source, tmp_path / "target")
    assert manifest == json.loads((tmp_path / "target" / "manifest.json").read_text())
    assert {one: one.stat().st_mtime_ns for one in (tmp_path / "target").glob("*.parquet")} == written
    assert sums(tmp_path / "target") == sums(tmp_path / "undisturbed")
    assert not work.exists()


def test_a_clean_up_of_another_set_of_options_is_not_finished(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_images())
    prepare_here(source, tmp_path / "target")
    claim = tmp_path / "target" / "preparing.json"
    claim.write_text(json.dumps(json.loads((tmp_path / "target" / "manifest.json").read_text())["options"]))
    with pytest.raises(ValueError, match=r"with other options: --seed \(was 0, now 1\)"):
        prepare_here(source, tmp_path / "target", seed=1)
    assert claim.exists()


def test_a_finished_set_that_lost_or_changed_a_shard_is_told(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_images())
    prepare_here(source, tmp_path / "target")
    shard = min((tmp_path / "target").glob("train-*.parquet"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-7])
    with pytest.raises(
        ValueError,
        match=rf"{shard.name} has {len(content) - 7} bytes instead of {len(content)}, says .*; restore it, or",
    ):
        prepare_here(source, tmp_path / "target")
    shard.unlink()
    with pytest.raises(ValueError, match=rf"target/{shard.name} is missing, says its manifest.json; restore"):
        prepare_here(source, tmp_path / "target")
    shard.write_bytes(content)
    assert prepare_here(source, tmp_path / "target")["splits"]["train"]["images"] == 40


def test_a_finished_set_without_damaged_images_stops_a_job_that_is_to_stop(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", damaged_images())
    prepare_here(source, tmp_path / "target")
    with pytest.raises(ValueError, match=r"cut.JPEG of class n01443537 is damaged .* was left out of .*target by"):
        prepare_here(source, tmp_path / "target", on_damaged="error")


def test_two_jobs_do_not_prepare_one_target_at_once(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_images())
    seen = []

    def second(function, tasks):
        seen.append(True)
        with pytest.raises(ValueError, match=rf"target is being prepared by process {os.getpid()} on .*; wait for"):
            prepare_here(source, tmp_path / "target")
        yield from in_turn(function, tasks)

    assert prepare_here(source, tmp_path / "target", run=second)["splits"]["train"]["images"] == 40
    assert seen
    assert prepare_here(source, tmp_path / "target")["splits"]["train"]["images"] == 40


def test_a_second_job_where_nothing_can_be_locked_takes_nothing_from_the_first(tmp_path: Path, monkeypatch) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    source = write_folders(tmp_path / "source", small_images())
    target = tmp_path / "target"

    def second(function, tasks):
        old, young = target / "train-0.parquet.1.partial", target / "train-1.parquet.2.partial"
        old.write_bytes(b"half")
        young.write_bytes(b"half")
        os.utime(old, (0, 0))

        def stopped(function, tasks):
            assert young.exists()
            assert not old.exists()
            raise KeyboardInterrupt
            yield

        with pytest.raises(KeyboardInterrupt):
            prepare_here(source, target, run=stopped)
        # Another machine's job finishes the set and removes what both needed.
        prepare_here(source, target)
        raise OSError("the true error")
        yield

    with pytest.raises(OSError, match="the true error"):
        prepare_here(source, target, run=second)
    assert {one.suffix for one in target.iterdir()} == {".parquet", ".json"}


@pytest.mark.parametrize("ahead_seconds", [-7200, 0, 90, 7200])
def test_what_another_machine_writes_is_left_whatever_the_clocks_say(
    tmp_path: Path, monkeypatch, ahead_seconds: int
) -> None:
    """The files' times are those of the file system's clock; this machine's differs."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + ahead_seconds)

    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    source = write_folders(tmp_path / "source", small_images())
    target = tmp_path / "target"
    theirs = target / "train-00000-of-00004.parquet.0123-4567.partial"
    with pytest.raises(KeyboardInterrupt):
        prepare_here(source, target, run=stop)
    theirs.write_bytes(b"half")
    for locks in (True, False):
        if not locks:
            monkeypatch.setattr(fcntl, "flock", unsupported)
        with pytest.raises(KeyboardInterrupt):
            prepare_here(source, target, run=stop)
        assert theirs.read_bytes() == b"half"
    os.utime(theirs, (now() - 4000, now() - 4000))
    with pytest.raises(KeyboardInterrupt):
        prepare_here(source, target, run=stop)
    assert not theirs.exists()


def test_what_a_killed_job_of_this_machine_was_writing_is_removed_at_once(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_images())
    target = tmp_path / "target"
    program = (
        "import os, sys\n"
        "from oracle.sources import prepare_here\n"
        "def killed(function, tasks):\n"
        "    import dist_resnet.storage.files as store\n"
        "    store._make_durable = lambda path: os._exit(7)\n"
        "    yield from function(tasks[0])\n"
        "prepare_here(sys.argv[1], sys.argv[2], run=killed)\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[3])])
    command = [sys.executable, "-c", program, str(source), str(target)]
    ended = subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": paths})
    assert ended.returncode == 7
    (left,) = target.glob("*.partial")
    with pytest.raises(KeyboardInterrupt):
        prepare_here(source, target, run=stop)
    assert not left.exists()


def stop(function, tasks):
    """Runs nothing."""
    raise KeyboardInterrupt
    yield


def test_a_finished_set_is_left_as_it_is(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_images())
    manifest = prepare_here(source, tmp_path / "target")
    before = {one.name: one.stat().st_mtime_ns for one in (tmp_path / "target").iterdir()}
    assert prepare_here(source, tmp_path / "target") == manifest
    assert {one.name: one.stat().st_mtime_ns for one in (tmp_path / "target").iterdir()} == before
    with pytest.raises(ValueError, match=r"holds a set that was prepared with other options: --seed \(was 0, now 1\)"):
        prepare_here(source, tmp_path / "target", seed=1)


def test_a_job_with_other_options_does_not_go_on(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_images())

    def stopped(function, tasks):
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        prepare_here(source, tmp_path / "target", run=stopped)
    with pytest.raises(
        ValueError, match=r"is being prepared with other options: --shorter-side and --quality \(was None"
    ):
        prepare_here(source, tmp_path / "target", shrink=Shrink(shorter_side=64))
    prepare_here(source, tmp_path / "target")


def test_a_shard_that_was_lost_is_written_again(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_images())
    prepare_here(source, tmp_path / "undisturbed")

    def all_but_one(function, tasks):
        yield from in_turn(function, tasks[:-1])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_here(source, tmp_path / "target", run=all_but_one)
    first, second, *_ = sorted((tmp_path / "target").glob("train-*.parquet"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-10])
    prepare_here(source, tmp_path / "target")
    assert sums(tmp_path / "target") == sums(tmp_path / "undisturbed")


def test_a_prepared_set_can_be_prepared_anew(tmp_path: Path) -> None:
    images = small_images()
    prepare_here(write_folders(tmp_path / "source", images), tmp_path / "a")
    prepare_here(tmp_path / "a", tmp_path / "b", seed=5)
    assert sorted(prepared_rows(tmp_path / "b", "train")) == expected_rows(images, "train")
