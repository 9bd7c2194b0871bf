"""Prepared sets; oracle: the pictures that the test wrote, read back by pyarrow, and hashlib over the files."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from oracle.pictures import jpeg, smooth
from oracle.sources import (
    SYNSETS,
    Silent,
    damaged_pictures,
    expected_rows,
    in_turn,
    prepare_here,
    prepared_rows,
    real_pictures,
    small_pictures,
    write_archives,
    write_downloaded,
    write_folders,
    write_parquet,
)

from dist_resnet.data.image.ingest import Shrink
from dist_resnet.data.prepare.prepare import Options, prepare
from dist_resnet.data.shards import byte_offsets
from dist_resnet.data.shards.split import open_split
from dist_resnet.storage.files import PARTIAL
from dist_resnet.storage.uri import child_uri, list_entries, open_uri

WRITERS = [write_folders, write_archives, write_downloaded]


def sums(folder: Path) -> dict[str, str]:
    return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in folder.iterdir() if one.is_file()}


@pytest.mark.parametrize("write", WRITERS)
def test_every_kind_of_source_becomes_the_same_pictures_under_the_same_labels(tmp_path: Path, write) -> None:
    pictures = small_pictures()
    manifest = prepare_here(write(tmp_path / "source", pictures), tmp_path / "target")
    for split in ("train", "validation"):
        assert sorted(prepared_rows(tmp_path / "target", split)) == expected_rows(pictures, split)
        opened = open_split(f"{tmp_path}/target/{split}-*.parquet")
        assert opened.class_names == SYNSETS
        assert opened.num_images == manifest["splits"][split]["pictures"] == len(expected_rows(pictures, split))
    assert len(manifest["splits"]["train"]["shards"]) > 2
    assert {one.name for one in (tmp_path / "target").iterdir() if one.suffix != ".parquet"} == {"manifest.json"}


def test_the_manifest_tells_counts_and_sums_of_the_files(tmp_path: Path) -> None:
    target = tmp_path / "target"
    returned = prepare_here(write_folders(tmp_path / "source", small_pictures()), target, seed=7)
    manifest = json.loads((target / "manifest.json").read_text())
    assert manifest == returned
    assert (manifest["seed"], manifest["source_kind"], manifest["class_names"]) == (7, "folder", list(SYNSETS))
    of_file = sums(target)
    for split, per_class in (("train", 8), ("validation", 2)):
        entry = manifest["splits"][split]
        assert entry["class_counts"] == [per_class] * 5
        assert np.sum([shard["class_counts"] for shard in entry["shards"]], axis=0).tolist() == [per_class] * 5
        assert entry["damaged"] == entry["converted"] == []
        for shard in entry["shards"]:
            assert shard["sha256"] == of_file[shard["file"]]
            assert shard["bytes"] == (target / shard["file"]).stat().st_size
            assert shard["pictures"] == pq.read_metadata(target / shard["file"]).num_rows


def test_the_footer_tells_where_each_picture_lies(tmp_path: Path) -> None:
    prepare_here(write_folders(tmp_path / "source", small_pictures()), tmp_path / "target")
    for file in (tmp_path / "target").glob("*.parquet"):
        content = file.read_bytes()
        located = byte_offsets.decode(pq.read_metadata(file).metadata)
        assert located is not None
        for (offset, size, label), row in zip(located.T.tolist(), pq.read_table(file).to_pylist(), strict=True):
            assert content[offset : offset + size] == row["image"]["bytes"]
            assert label == row["label"]


def test_row_groups_hold_a_hundred_plain_pictures(tmp_path: Path) -> None:
    pictures = small_pictures(per_class=50)
    prepare_here(write_folders(tmp_path / "source", pictures), tmp_path / "target", shard_megabytes=500)
    metadata = pq.read_metadata(tmp_path / "target" / "train-00000-of-00001.parquet")
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [100, 100, 50]
    column = metadata.row_group(0).column(0)
    assert (column.compression, column.has_dictionary_page) == ("UNCOMPRESSED", False)


def test_pictures_are_shuffled_all_through_and_shards_are_of_one_size(tmp_path: Path) -> None:
    pictures = small_pictures(per_class=200)
    manifest = prepare_here(write_folders(tmp_path / "source", pictures), tmp_path / "a", shard_megabytes=0.1)
    shards = manifest["splits"]["train"]["shards"]
    assert len(shards) == round(sum(len(one) for _, one, _ in expected_rows(pictures, "train")) / 1e5)
    bytes_of = [shard["bytes"] for shard in shards]
    assert max(bytes_of) < 1.2 * min(bytes_of)
    # A shard draws n of 200 in each of 5 classes: within 5 standard deviations of the hypergeometric law.
    for shard in shards:
        share = shard["pictures"] / 1000
        spread = 5 * np.sqrt(200 * share * (1 - share))
        assert np.abs(np.array(shard["class_counts"]) - 200 * share).max() < spread
    labels = [label for _, _, label in prepared_rows(tmp_path / "a", "train")]
    neighbours = np.mean(np.array(labels[1:]) == np.array(labels[:-1]))
    assert abs(neighbours - 0.2) < 0.07


def test_there_are_no_more_shards_than_pictures(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_pictures(per_class=2, validation=1))
    manifest = prepare_here(source, tmp_path / "target", shard_megabytes=1e-6)
    assert [len(manifest["splits"][split]["shards"]) for split in ("train", "validation")] == [10, 5]
    assert open_split(f"{tmp_path}/target/train-*.parquet").num_images == 10


def test_the_seed_decides_the_order_and_nothing_else_does(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_pictures())
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepare_here(source, tmp_path / name, seed=seed)
    assert sums(tmp_path / "a") == sums(tmp_path / "b")
    a, c = (prepared_rows(tmp_path / name, "train") for name in "ac")
    assert sorted(a) == sorted(c)
    assert a != c


def test_class_folders_alone_are_the_split_that_is_named(tmp_path: Path) -> None:
    pictures = small_pictures()
    write_folders(tmp_path / "source", pictures)
    prepare_here(tmp_path / "source" / "train", tmp_path / "target", split="train")
    assert sorted(prepared_rows(tmp_path / "target", "train")) == expected_rows(pictures, "train")


def test_a_training_archive_alone_needs_no_devkit(tmp_path: Path) -> None:
    source = write_archives(tmp_path / "source", small_pictures())
    (source / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(ValueError, match=r"ILSVRC2012_img_val.tar needs ILSVRC2012_devkit_t12.tar.gz beside it"):
        prepare_here(source, tmp_path / "a")
    (source / "ILSVRC2012_img_val.tar").unlink()
    assert list(prepare_here(source, tmp_path / "b")["splits"]) == ["train"]


def test_a_test_split_without_labels_is_left_out_with_a_word(tmp_path: Path) -> None:
    manifest = prepare_here(write_downloaded(tmp_path / "source", small_pictures()), tmp_path / "target")
    assert sorted(manifest["splits"]) == ["train", "validation"]
    assert manifest["left_out"] == ["the 1 pictures of test, which have no labels"]


def test_what_is_of_no_split_or_class_is_left_out_with_a_word(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_pictures())
    for folder in ("test", "extra", ".cache"):
        (source / folder).mkdir()
    for file in ("stray.jpg", "LOC_synset_mapping.txt", "train/a.jpg", ".hidden"):
        (source / file).write_bytes(b"x")
    manifest = prepare_here(source, tmp_path / "target")
    assert manifest["left_out"] == [
        "extra/, test/, LOC_synset_mapping.txt and 1 more beside the split folders",
        "a.jpg in no class folder of train",
        "2 hidden and tools' files and folders: .cache (1), .hidden (1)",
    ]
    manifest = prepare_here(source / "train", tmp_path / "alone", split="train")
    assert manifest["left_out"] == ["a.jpg in no class folder of train"]


def test_damaged_pictures_are_left_out_and_listed_with_the_reason(tmp_path: Path) -> None:
    manifest = prepare_here(write_folders(tmp_path / "source", damaged_pictures()), tmp_path / "target")
    train, validation = (manifest["splits"][split] for split in ("train", "validation"))
    assert (train["pictures"], validation["pictures"]) == (39, 9)
    assert train["class_counts"] == [8, 7, 8, 8, 8]
    assert [(one["picture"], one["class"]) for one in train["damaged"]] == [("train/n01443537/cut.JPEG", SYNSETS[1])]
    assert "truncated" in train["damaged"][0]["reason"]
    assert validation["damaged"][0]["picture"] == "val/n07875152/page.JPEG"
    assert validation["damaged"][0]["reason"].startswith("no picture: 22 bytes that begin with 3c68746d6c3e6e6f")
    assert "cut.JPEG" not in [name for name, _, _ in prepared_rows(tmp_path / "target", "train")]


def test_a_damaged_picture_stops_the_job_where_that_is_asked_for(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", damaged_pictures())
    with pytest.raises(ValueError, match=r"(cut|page).JPEG of class n\d+ is damaged \(.*\); repair or remove it"):
        prepare_here(source, tmp_path / "target", on_damaged="error")
    with pytest.raises(ValueError, match=r"is not fully prepared, preparing.json is still there"):
        open_split(f"{tmp_path}/target/train-*.parquet")
    # The same job goes on when told to leave such pictures out.
    assert prepare_here(source, tmp_path / "target")["splits"]["train"]["pictures"] == 39


def test_what_was_left_out_before_stops_a_job_that_is_to_stop(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", damaged_pictures())

    def all_but_one(function, tasks):
        yield from in_turn(function, tasks[:-1])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_here(source, tmp_path / "target", run=all_but_one)
    with pytest.raises(ValueError, match=r"cut.JPEG of class n01443537 is damaged .* was left out of train-"):
        prepare_here(source, tmp_path / "target", on_damaged="error")


def test_shrinking_says_what_it_did_to_size_and_to_the_pictures(tmp_path: Path) -> None:
    pictures = small_pictures()
    pictures["train"][SYNSETS[0]] = [(f"{n}.JPEG", jpeg(smooth(300, 400, n), quality=95)) for n in range(8)]
    source = write_folders(tmp_path / "source", pictures)
    manifest = prepare_here(source, tmp_path / "target", shrink=Shrink(shorter_side=128, quality=85))
    train = manifest["splits"]["train"]
    assert train["shrunk"] == 8
    before = sum(len(one) for _, one, _ in expected_rows(pictures, "train"))
    after = sum(len(one) for _, one, _ in prepared_rows(tmp_path / "target", "train"))
    assert (train["source_picture_bytes"], train["picture_bytes"]) == (before, after)
    assert after < before
    sample = manifest["shrinking_of_a_sample"]
    assert (sample["pictures"], sample["shrunk"], sample["bytes_before"]) == (40, 8, before)
    assert 0 < sample["mean_difference"] <= sample["largest_difference"] < 2


def test_a_job_that_was_stopped_leaves_finished_shards_as_they_are(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_pictures())
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
    assert progress.said == ["2 shards are finished from before"]
    assert {name: (tmp_path / "target" / name).stat().st_mtime_ns for name in finished} == finished
    mine, theirs = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("target", "undisturbed"))
    assert mine == theirs
    assert sums(tmp_path / "target") == sums(tmp_path / "undisturbed")


class Killed(BaseException):
    """Ends a job where no handler of errors looks."""


@pytest.mark.parametrize("write", WRITERS)
def test_a_job_that_dies_after_every_third_file_comes_to_the_same_end(tmp_path: Path, write, monkeypatch) -> None:
    source = write(tmp_path / "source", small_pictures(per_class=4))
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
    source = write(tmp_path / "source", small_pictures())
    prepare_here(source, tmp_path / "undisturbed")
    work = tmp_path / "target" / "preparing"

    def half(filesystem: pafs.FileSystem, folder: str) -> None:
        for entry in sorted(work.iterdir())[1::2]:
            entry.unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("dist_resnet.data.prepare.prepare._clean_up", half)
        with pytest.raises(Killed):
            prepare_here(source, tmp_path / "target")
    written = {one: one.stat().st_mtime_ns for one in (tmp_path / "target").glob("*.parquet")}
    manifest = prepare_here(source, tmp_path / "target")
    assert manifest == json.loads((tmp_path / "target" / "manifest.json").read_text())
    assert {one: one.stat().st_mtime_ns for one in (tmp_path / "target").glob("*.parquet")} == written
    assert sums(tmp_path / "target") == sums(tmp_path / "undisturbed")
    assert not work.exists()


def test_a_clean_up_of_another_set_of_options_is_not_finished(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_pictures())
    prepare_here(source, tmp_path / "target")
    claim = tmp_path / "target" / "preparing.json"
    claim.write_text(json.dumps(json.loads((tmp_path / "target" / "manifest.json").read_text())["options"]))
    with pytest.raises(ValueError, match=r"with other options: --seed \(was 0, now 1\)"):
        prepare_here(source, tmp_path / "target", seed=1)
    assert claim.exists()


def test_a_finished_set_that_lost_or_changed_a_shard_is_told(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_pictures())
    prepare_here(source, tmp_path / "target")
    shard = min((tmp_path / "target").glob("train-*.parquet"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-7])
    with pytest.raises(
        ValueError, match=rf"{shard.name} has {len(content) - 7} bytes instead of {len(content)} by .*; restore it, or"
    ):
        prepare_here(source, tmp_path / "target")
    shard.unlink()
    with pytest.raises(ValueError, match=rf"target/{shard.name} is missing by the manifest.json beside it; restore"):
        prepare_here(source, tmp_path / "target")
    shard.write_bytes(content)
    assert prepare_here(source, tmp_path / "target")["splits"]["train"]["pictures"] == 40


def test_a_finished_set_without_damaged_pictures_stops_a_job_that_is_to_stop(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", damaged_pictures())
    prepare_here(source, tmp_path / "target")
    with pytest.raises(ValueError, match=r"cut.JPEG of class n01443537 is damaged .* was left out of .*target by"):
        prepare_here(source, tmp_path / "target", on_damaged="error")


def test_two_jobs_do_not_prepare_one_target_at_once(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_pictures())
    seen = []

    def second(function, tasks):
        seen.append(True)
        with pytest.raises(ValueError, match=rf"target is being prepared by process {os.getpid()} on .*; wait for"):
            prepare_here(source, tmp_path / "target")
        yield from in_turn(function, tasks)

    assert prepare_here(source, tmp_path / "target", run=second)["splits"]["train"]["pictures"] == 40
    assert seen
    assert prepare_here(source, tmp_path / "target")["splits"]["train"]["pictures"] == 40


def test_a_second_job_where_nothing_can_be_locked_takes_nothing_from_the_first(tmp_path: Path, monkeypatch) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    source = write_folders(tmp_path / "source", small_pictures())
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

    source = write_folders(tmp_path / "source", small_pictures())
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
    source = write_folders(tmp_path / "source", small_pictures())
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
    source = write_folders(tmp_path / "source", small_pictures())
    manifest = prepare_here(source, tmp_path / "target")
    before = {one.name: one.stat().st_mtime_ns for one in (tmp_path / "target").iterdir()}
    assert prepare_here(source, tmp_path / "target") == manifest
    assert {one.name: one.stat().st_mtime_ns for one in (tmp_path / "target").iterdir()} == before
    with pytest.raises(ValueError, match=r"holds a set that was prepared with other options: --seed \(was 0, now 1\)"):
        prepare_here(source, tmp_path / "target", seed=1)


def test_a_job_with_other_options_does_not_go_on(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_pictures())

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
    source = write_folders(tmp_path / "source", small_pictures())
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
    pictures = small_pictures()
    prepare_here(write_folders(tmp_path / "source", pictures), tmp_path / "a")
    prepare_here(tmp_path / "a", tmp_path / "b", seed=5)
    assert sorted(prepared_rows(tmp_path / "b", "train")) == expected_rows(pictures, "train")


def test_a_set_is_prepared_from_s3_to_s3(tmp_path: Path, s3: str) -> None:
    boto3 = pytest.importorskip("boto3")
    local = tmp_path / "source"
    for write in WRITERS:
        shutil.rmtree(local, ignore_errors=True)
        write(local, small_pictures(per_class=2, validation=1))
        prepare_here(local, tmp_path / write.__name__)
        prefix = f"{tmp_path.name}/{write.__name__}"
        for file in local.rglob("*"):
            if file.is_file():
                boto3.client("s3").upload_file(str(file), "bucket", f"{prefix}/{file.relative_to(local)}")
        target = f"{s3}/{prefix}-prepared"
        mine = prepare_here(f"{s3}/{prefix}", target)
        theirs = json.loads((tmp_path / write.__name__ / "manifest.json").read_text())
        assert mine["splits"] == theirs["splits"]
        listed = boto3.client("s3").list_objects_v2(Bucket="bucket", Prefix=f"{prefix}-prepared/")["Contents"]
        names = {one["Key"].rpartition("/")[2] for one in listed if not one["Key"].endswith("/")}
        assert names == {one.name for one in (tmp_path / write.__name__).iterdir()}
        assert open_split(f"{target}/train-*.parquet").num_images == 10


def test_a_set_is_prepared_on_azures_store(tmp_path: Path, az: str) -> None:
    local, source = tmp_path / "source", child_uri(az, f"{tmp_path.name}/a source")
    write_folders(local, small_pictures(per_class=2, validation=1))
    filesystem, folder = open_uri(source)
    for file in local.rglob("*"):
        if file.is_file():
            with filesystem.open_output_stream(f"{folder}/{file.relative_to(local)}") as stream:
                stream.write(file.read_bytes())
    target = child_uri(az, f"{tmp_path.name}/target")
    mine, theirs = prepare_here(source, target), prepare_here(local, tmp_path / "theirs")
    assert mine["splits"] == theirs["splits"]
    names = [one.name for one in list_entries(*open_uri(target))]
    assert names == sorted(one.name for one in (tmp_path / "theirs").iterdir())
    assert open_split(child_uri(target, "train-*.parquet")).num_images == 10


def test_class_folders_on_googles_store_need_no_objects_that_stand_for_them(tmp_path: Path, gs: str) -> None:
    local = tmp_path / "source"
    write_folders(local, small_pictures(per_class=2, validation=1))
    filesystem, bucket = pafs.FileSystem.from_uri(gs)
    for file in local.rglob("*"):
        if file.is_file():
            with filesystem.open_output_stream(f"{bucket}/{tmp_path.name}/{file.relative_to(local)}") as stream:
                stream.write(file.read_bytes())
    mine = prepare_here(f"{gs}/{tmp_path.name}", tmp_path / "mine")
    assert mine["splits"] == prepare_here(local, tmp_path / "theirs")["splits"]
    assert mine["splits"]["train"]["pictures"] == 10


def test_the_real_pictures_come_out_of_every_kind_of_source_as_they_are(tmp_path: Path) -> None:
    pictures = real_pictures(100)
    if not pictures["train"]:
        pytest.skip("the real pictures are not in ../shared/data beside the project")
    for write in WRITERS:
        target = tmp_path / write.__name__
        manifest = prepare_here(write(tmp_path / f"{write.__name__}-source", pictures), target, shard_megabytes=3)
        for split in ("train", "validation"):
            assert manifest["splits"][split]["damaged"] == manifest["splits"][split]["converted"] == []
            assert sorted(prepared_rows(target, split)) == expected_rows(pictures, split)


# Bad input


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    pictures = small_pictures()
    pictures["train"][SYNSETS[3]] = []
    with pytest.raises(ValueError, match=r"class n03126707 has no train picture; complete the source"):
        prepare_here(write_folders(tmp_path / "folders", pictures), tmp_path / "a")
    with pytest.raises(ValueError, match=r"class n03126707 has no train picture; complete the source"):
        prepare_here(write_archives(tmp_path / "archives", pictures), tmp_path / "b")
    pictures = small_pictures()
    del pictures["validation"][SYNSETS[0]], pictures["validation"][SYNSETS[1]]
    with pytest.raises(ValueError, match=r"class n01440764 and 1 more has no validation picture"):
        prepare_here(write_folders(tmp_path / "partial", pictures), tmp_path / "c")


def test_classes_of_parquet_without_a_picture_are_told(tmp_path: Path) -> None:
    write_parquet(tmp_path / "source" / "train-0.parquet", [("a", jpeg(smooth(9, 9, 1)), 1)], ["x", "y", "z"])
    manifest = prepare_here(tmp_path / "source", tmp_path / "target")
    assert manifest["left_out"] == ["2 of 3 classes have no train picture"]


def test_two_pictures_of_one_name_in_a_class_are_named(tmp_path: Path) -> None:
    pictures = small_pictures()
    name, encoded = pictures["train"][SYNSETS[0]][0]
    pictures["train"][SYNSETS[0]].append((name, encoded + b"\0"))
    with pytest.raises(
        ValueError,
        match=rf"two pictures of class n01440764 are named {name}, in ILSVRC2012_img_train.tar/n01440764.tar and",
    ):
        prepare_here(write_archives(tmp_path / "archives", pictures), tmp_path / "a")


def test_one_name_in_two_classes_is_no_mistake(tmp_path: Path) -> None:
    pictures = small_pictures()
    for synset in SYNSETS:
        pictures["train"][synset][0] = ("1.JPEG", pictures["train"][synset][0][1])
    assert prepare_here(write_folders(tmp_path / "source", pictures), tmp_path / "target")["splits"]


@pytest.mark.parametrize(("label", "reason"), [(-1, "stands for none"), (3, "is outside of the class list, 0 .. 2")])
def test_labels_beyond_the_class_list_are_named_with_file_and_row(tmp_path: Path, label: int, reason: str) -> None:
    picture = jpeg(smooth(9, 9, 1))
    rows = [("a", picture, 0), ("b", picture, 2), ("c", picture, label)]
    write_parquet(tmp_path / "source" / "train-00000-of-00001.parquet", rows, ["x", "y", "z"])
    with pytest.raises(ValueError, match=rf"label {label} in .*train-00000-of-00001.parquet row 2 {reason}"):
        prepare_here(tmp_path / "source", tmp_path / "target")


def test_a_validation_class_that_training_has_not_is_named(tmp_path: Path) -> None:
    pictures = small_pictures()
    pictures["validation"]["n09999999"] = pictures["validation"].pop(SYNSETS[0])
    with pytest.raises(ValueError, match=r"val/n09999999 is no class of .*train, which has 5"):
        prepare_here(write_folders(tmp_path / "source", pictures), tmp_path / "target")


def test_a_source_that_is_not_there_or_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"the source .*absent is not there"):
        prepare_here(tmp_path / "absent", tmp_path / "target")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "readme.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"odd is of no known kind; needed are folders train and val"):
        prepare_here(tmp_path / "odd", tmp_path / "target")
    write_folders(tmp_path / "source", small_pictures())
    with pytest.raises(ValueError, match=r"of no known kind; .* \(or class folders and --split\)"):
        prepare_here(tmp_path / "source" / "train", tmp_path / "target")
    (tmp_path / "flat" / "train").mkdir(parents=True)
    (tmp_path / "flat" / "train" / "a.JPEG").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"flat/train has no class folders"):
        prepare_here(tmp_path / "flat", tmp_path / "target")


def test_a_download_that_is_not_complete_is_refused(tmp_path: Path) -> None:
    source = write_downloaded(tmp_path / "source", small_pictures())
    (source / "data" / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(ValueError, match=r"train has 2 of 3 shards; the first that is missing is number 00001"):
        prepare_here(source, tmp_path / "target")


def test_shards_of_no_split_by_their_names_need_one(tmp_path: Path) -> None:
    pictures = small_pictures()
    write_parquet(tmp_path / "source" / "part-0.parquet", [("a", pictures["train"][SYNSETS[0]][0][1], 0)], ["x"])
    with pytest.raises(ValueError, match=r"part-0.parquet is of no split by its name"):
        prepare_here(tmp_path / "source", tmp_path / "a")
    assert prepare_here(tmp_path / "source", tmp_path / "b", split="train")["splits"]["train"]["pictures"] == 1


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ("Train-0", "Valid-0"),
        ("TRAIN", "VAL"),
        ("training-00000-of-00001", "dev-00000-of-00001"),
        ("train2017", "val2017"),
    ],
)
def test_shards_of_splits_in_any_case_and_form_are_taken(tmp_path: Path, train: str, validation: str) -> None:
    one, two = (jpeg(smooth(9, 9, seed)) for seed in (1, 2))
    write_parquet(tmp_path / "source" / f"{train}.parquet", [("one", one, 0)], ["x"])
    write_parquet(tmp_path / "source" / f"{validation}.parquet", [("two", two, 0)], ["x"])
    for name in ("._train-0.parquet", "._Valid.parquet"):
        (tmp_path / "source" / name).write_bytes(b"a Mac's")
    prepare_here(tmp_path / "source", tmp_path / "target")
    assert prepared_rows(tmp_path / "target", "train") == [("one", one, 0)]
    assert prepared_rows(tmp_path / "target", "validation") == [("two", two, 0)]


def test_hidden_shards_are_none_of_the_split_that_is_given(tmp_path: Path) -> None:
    one = jpeg(smooth(9, 9, 1))
    write_parquet(tmp_path / "source" / "part-0.parquet", [("one", one, 0)], ["x"])
    (tmp_path / "source" / "._part-0.parquet").write_bytes(b"a Mac's")
    assert prepare_here(tmp_path / "source", tmp_path / "target", split="train")["splits"]["train"]["pictures"] == 1


@pytest.mark.parametrize(
    ("write", "named"),
    [
        (write_folders, "source/train"),
        (write_archives, "img_train.tar"),
        (write_downloaded, "data/test-00000-of-00001.parquet"),
    ],
)
def test_a_source_whose_names_say_the_split_takes_no_other(tmp_path: Path, write, named: str) -> None:
    source = write(tmp_path / "source", small_pictures())
    with pytest.raises(ValueError, match=rf"{named} is of the split \w+ by its name; leave out --split train, or give"):
        prepare_here(source, tmp_path / "target", split="train")
    assert prepare_here(source, tmp_path / "target")["splits"]["validation"]["pictures"] == 10


def test_two_names_for_one_split_are_refused(tmp_path: Path) -> None:
    folders = write_folders(tmp_path / "folders", small_pictures())
    (folders / "validation").mkdir()
    with pytest.raises(
        ValueError, match=r"folders/val and .*folders/validation are both of the split validation; keep"
    ):
        prepare_here(folders, tmp_path / "target")
    downloaded = write_downloaded(tmp_path / "downloaded", small_pictures())
    shutil.copy(downloaded / "data" / "test-00000-of-00001.parquet", downloaded / "data" / "val-0.parquet")
    with pytest.raises(
        ValueError, match=r"data holds val-0.parquet and validation-00000-of-00003.parquet, .* keep one"
    ):
        prepare_here(downloaded, tmp_path / "target")


def test_source_shards_that_were_mended_added_or_removed_are_unpacked_again(tmp_path: Path) -> None:
    one, two, three = (jpeg(smooth(9, 9, seed)) for seed in (1, 2, 3))
    source = tmp_path / "source"
    write_parquet(source / "train-a.parquet", [("one", one, 0), ("two", one, 1)], ["x", "y"])
    write_parquet(source / "train-b.parquet", [("three", two, 0)], ["x", "y"])
    write_parquet(source / "train-c.parquet", [("four", three, 7)], ["x", "y"])
    with pytest.raises(ValueError, match=r"label 7 in .*train-c.parquet row 0 is outside"):
        prepare_here(source, tmp_path / "target")
    # Two labels in turn leave the size as it is, and what the footer tells of them.
    write_parquet(source / "train-a.parquet", [("one", one, 1), ("two", one, 0)], ["x", "y"])
    (source / "train-b.parquet").unlink()
    write_parquet(source / "train-0.parquet", [("five", three, 1)], ["x", "y"])
    write_parquet(source / "train-c.parquet", [("four", three, 0)], ["x", "y"])
    prepare_here(source, tmp_path / "target")
    assert sorted(prepared_rows(tmp_path / "target", "train")) == [
        ("five", three, 1),
        ("four", three, 0),
        ("one", one, 1),
        ("two", one, 0),
    ]


def test_unpacked_shards_that_are_no_longer_wanted_are_removed(tmp_path: Path) -> None:
    picture = jpeg(smooth(9, 9, 1))
    source, work = tmp_path / "source", tmp_path / "target" / "preparing"
    for labels in ([0, 7], [1, 7]):
        for number, label in enumerate(labels):
            write_parquet(source / f"train-{number}.parquet", [(str(number), picture, label)], ["x", "y"])
        with pytest.raises(ValueError, match="label 7"):
            prepare_here(source, tmp_path / "target")
        first, index = sorted(work.iterdir())
        assert index.name == f"{first.name}.index"


def test_pictures_of_parquet_without_names_get_one_of_their_shard(tmp_path: Path) -> None:
    pictures = [jpeg(smooth(9, 9, seed)) for seed in range(3)]
    write_parquet(tmp_path / "source" / "train-0.parquet", [(None, one, 0) for one in pictures[:2]], ["x"])
    write_parquet(tmp_path / "source" / "train-1.parquet", [(None, pictures[2], 0)], ["x"])
    prepare_here(tmp_path / "source", tmp_path / "target")
    assert sorted(prepared_rows(tmp_path / "target", "train")) == [
        ("train-0.parquet row 0", pictures[0], 0),
        ("train-0.parquet row 1", pictures[1], 0),
        ("train-1.parquet row 0", pictures[2], 0),
    ]


def test_a_source_shard_with_a_torn_page_is_named(tmp_path: Path) -> None:
    source = write_downloaded(tmp_path / "source", small_pictures())
    shard = source / "data" / "train-00001-of-00003.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[:4] + b"\xff" * 64 + content[68:])
    with pytest.raises(
        ValueError, match=rf"{shard} cannot be read \(.+\); replace the file by an intact copy"
    ) as caught:
        prepare_here(source, tmp_path / "target")
    assert "\n" not in str(caught.value)
    shard.write_bytes(content)
    prepare_here(source, tmp_path / "target")


def test_rows_without_bytes_and_splits_of_different_classes_are_refused(tmp_path: Path) -> None:
    picture = jpeg(smooth(9, 9, 1))
    write_parquet(tmp_path / "a" / "train-0.parquet", [("a", picture, 0), ("b", None, 0)], ["x"])
    with pytest.raises(ValueError, match=r"train-0.parquet row 1 has no image bytes, only the path b, which does not"):
        prepare_here(tmp_path / "a", tmp_path / "target-a")
    write_parquet(tmp_path / "b" / "train-0.parquet", [("a", picture, 0)], ["x"])
    write_parquet(tmp_path / "b" / "validation-0.parquet", [("a", picture, 0)], ["y"])
    with pytest.raises(
        ValueError, match=r"class 'y' of the validation images .* is none of the model's 1 classes, 'x'"
    ):
        prepare_here(tmp_path / "b", tmp_path / "target-b")


def test_a_target_with_other_shards_is_refused(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_pictures())
    write_parquet(tmp_path / "target" / "mine.parquet", [("a", b"x", 0)], ["x"])
    with pytest.raises(ValueError, match=r"target already holds mine.parquet of another origin"):
        prepare_here(source, tmp_path / "target")
    with pytest.raises(ValueError, match="source and target are both"):
        prepare_here(source, source)


def test_a_source_that_changes_meanwhile_is_named(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", small_pictures())
    victim = next((source / "train" / SYNSETS[0]).iterdir())

    def changed(function, tasks):
        victim.write_bytes(victim.read_bytes() + b"more")
        yield from in_turn(function, tasks)

    with pytest.raises(
        OSError, match=rf"{victim.name} has \d+ bytes and had \d+ when the job began; restore the source"
    ):
        prepare_here(source, tmp_path / "target", run=changed)
    assert not (tmp_path / "target" / "manifest.json").exists()


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    usage = namedtuple("usage", "free")
    source = write_folders(tmp_path / "source", small_pictures())
    monkeypatch.setattr("dist_resnet.storage.files.shutil.disk_usage", lambda path: usage(10_000))
    with pytest.raises(OSError, match=r"has room for 10\.\d kB and the set needs about 55\.\d kB; free space"):
        prepare_here(source, tmp_path / "target")
    assert not list((tmp_path / "target").iterdir())


def test_a_disk_that_fills_up_leaves_nothing_that_looks_finished(tmp_path: Path, monkeypatch) -> None:
    source = write_folders(tmp_path / "source", small_pictures())
    prepare_here(source, tmp_path / "undisturbed")
    written = []

    def full(path: str) -> None:
        written.extend([path] if path.endswith(PARTIAL) else [])
        if len(written) == 8 and path == written[-1]:
            raise OSError(errno.ENOSPC, "No space left on device", path)

    with monkeypatch.context() as patch:
        patch.setattr("dist_resnet.storage.files._make_durable", full)
        with pytest.raises(
            OSError, match=r"target is full \(.*No space left on device.*\); free space and give the same"
        ):
            prepare_here(source, tmp_path / "target")
    assert not list((tmp_path / "target").rglob("*.partial"))
    assert not (tmp_path / "target" / "manifest.json").exists()
    with pytest.raises(ValueError, match="is not fully prepared"):
        open_split(f"{tmp_path}/target/train-*.parquet")
    prepare_here(source, tmp_path / "target")
    assert sums(tmp_path / "target") == sums(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"seed": -1}, "seed must lie in 0 .. 18446744073709551615, got -1"),
        ({"shard_megabytes": 0}, "shards must have more than 0 megabytes, got 0"),
        ({"split": "Part 1"}, "must be of the letters a .. z, got 'Part 1'"),
    ],
)
def test_impossible_options_are_refused(changes: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Options(source="a", target="b", **changes)


def test_a_limit_of_the_kernel_on_writing_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    """The kernel's own refusal in the middle of a shard, at the size that a file may have."""
    source = write_folders(tmp_path / "source", small_pictures(per_class=40))
    program = (
        "import resource, sys\n"
        "from oracle.sources import prepare_here\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        "prepare_here(sys.argv[1], sys.argv[2], shard_megabytes=0.1)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(source), str(tmp_path / "target")],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[3])]),
        },
    )
    assert "target is full (" in ended.stderr.splitlines()[-1], ended.stderr
    assert {one.name for one in (tmp_path / "target").iterdir()} == {"preparing.json", "preparing"}
    manifest = prepare_here(source, tmp_path / "target", shard_megabytes=0.1)
    assert manifest["splits"]["train"]["pictures"] == 200
