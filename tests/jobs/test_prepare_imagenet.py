"""jobs/prepare_imagenet.py as a command; oracle: an undisturbed run's sums, and its exit codes."""

import hashlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from jobs.inside import run_inside
from oracle.sources import SYNSETS, damaged_images, prepare_here, small_images, write_downloaded, write_folders

from dist_resnet.data.shards.split import open_split

JOB = Path(__file__).parents[2] / "jobs" / "prepare_imagenet.py"


def start(*arguments: str) -> subprocess.Popen[str]:
    # A shell that runs the tests in the background has its children ignore Ctrl-C.
    command = ["env", "--default-signal=INT", sys.executable, str(JOB), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(JOB), *arguments], capture_output=True, text=True, check=False)


def sums(folder: Path) -> dict[str, str]:
    return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in folder.iterdir() if one.is_file()}


def wait_for(job: subprocess.Popen[str], what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.ray
@pytest.mark.parametrize("end", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_job_that_was_killed_or_interrupted_goes_on_to_the_same_set(tmp_path: Path, end: signal.Signals) -> None:
    source = write_downloaded(tmp_path / "source", small_images(per_class=60), shards=2)
    prepare_here(source, tmp_path / "undisturbed", shard_megabytes=0.004)
    target = tmp_path / "target"
    arguments = ["--source", str(source), "--target", str(target), "--shard-megabytes", "0.004", "--workers", "1"]
    job = start(*arguments)
    wait_for(job, lambda: len(list(target.glob("train-*.parquet"))) >= 3)
    job.send_signal(end)
    _, complaint = job.communicate()
    if end == signal.SIGINT:
        assert job.returncode == 130
        assert complaint.splitlines()[-1] == (
            "prepare_imagenet: interrupted; run the same command again to write the remaining shards"
        )
    assert not (target / "manifest.json").exists()
    with pytest.raises(ValueError, match="is not fully prepared"):
        open_split(f"{target}/train-*.parquet")
    ended = run(*arguments)
    assert ended.returncode == 0, ended.stderr
    assert " shards were finished by an earlier start" in ended.stderr
    assert sums(target) == sums(tmp_path / "undisturbed")
    assert not (target / "preparing").exists()


@pytest.mark.ray
def test_the_job_says_what_it_made_and_the_check_what_it_found(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", damaged_images())
    target = tmp_path / "target"
    ended = run("--source", str(source), "--target", str(target), "--shard-megabytes", "0.01", "--shorter-side", "32")
    assert ended.returncode == 0, ended.stderr
    assert f"from {source} (folder), seed 0" in ended.stdout
    assert "train: 39 images of 5 classes in " in ended.stdout
    assert "train: left out: train/n01443537/cut.JPEG (image file is truncated" in ended.stdout
    assert "shrinking changed the evaluation crop of " in ended.stdout
    assert "images/s" in ended.stderr
    checked = run("--check", str(target))
    assert checked.returncode == 0
    assert checked.stdout == ended.stdout + "every shard matches the manifest\n"
    shard = min(target.glob("train-*.parquet"))
    content = shard.read_bytes()
    shard.write_bytes(content[:1000] + b"x" + content[1001:])
    checked = run("--check", str(target))
    assert checked.returncode == 1
    assert f"{shard.name} has sha256 " in checked.stdout
    assert checked.stderr.splitlines()[-1] == (
        "prepare_imagenet: 1 shards differ from the manifest; restore them, or prepare the set again into an empty "
        "folder"
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--source", "{0}/absent", "--target", "{0}/target"], "the source {0}/absent does not exist"),
        (["--source", "{0}", "--target", "{0}/target"], "{0} is not a known kind of source"),
        (["--source", "{0}", "--target", "{0}/target", "--seed", "-1"], "the seed must be in 0 .. "),
        (["--source", "{0}", "--target", "{0}/target", "--shorter-side", "5"], "must be at least 32 pixels, got 5"),
        (["--check", "{0}"], "{0} has no manifest.json"),
        (["--source", "{0}", "--target", "{0}/target", "--labels", "{0}/no.csv"], "{0}/no.csv does not exist; give a"),
        (
            ["--source", "{0}", "--target", "{0}/target", "--class-map", "{0}/no"],
            "class map {0}/no does not exist; give",
        ),
        (["--source", "{0}", "--target", "{0}/target", "--validation-split", "a/b"], "takes the name of one folder"),
        (["--source", "{0}", "--target", "{0}/target", "--labels", "s3://a:b@c/d"], "labels contains a password"),
    ],
)
def test_what_cannot_be_done_exits_2_with_one_line(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    (tmp_path / "readme.txt").write_text("hello")
    ended = run_inside("prepare_imagenet", *(argument.format(tmp_path) for argument in arguments))
    assert ended.returncode == 2
    (line,) = [line for line in ended.stderr.splitlines() if not line.startswith("finding")]
    assert complaint.format(tmp_path) in line
    assert not list(tmp_path.rglob("*.json"))


def test_a_name_with_line_feeds_makes_one_line(tmp_path: Path) -> None:
    images = small_images()
    images["train"][SYNSETS[1]].append(("a\nb\t\x1b[2J.jpg", b"rubbish"))
    images["validation"][SYNSETS[0]][0] = ("leak.jpg", images["train"][SYNSETS[0]][0][1])
    source = write_folders(tmp_path / "source", images)
    lines = runpy.run_path(str(JOB))["describe"](prepare_here(source, tmp_path / "target"))
    assert any(rf"left out: train/{SYNSETS[1]}/a\nb\t\x1b[2J.jpg (not an image" in line for line in lines)
    assert any(line.startswith("duplicates: 1 of 10 validation images are in train too") for line in lines)
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("arguments", [[], ["--on-damaged-class", "refuse"]])
def test_a_class_without_an_intact_image_exits_2_before_the_decoding(tmp_path: Path, arguments: list[str]) -> None:
    images = small_images()
    images["train"][SYNSETS[1]] = [(name, one[:-60]) for name, one in images["train"][SYNSETS[1]]]
    source, target = write_folders(tmp_path / "source", images), tmp_path / "target"
    ended = run_inside("prepare_imagenet", "--source", str(source), "--target", str(target), *arguments)
    assert ended.returncode == 2
    line = ended.stderr.splitlines()[-1]
    assert line.startswith(f"{JOB.name}: every train image of class {SYNSETS[1]} is damaged, such as train/")
    assert line.endswith("repair the source, or prepare the set without them with --on-damaged-class keep")
    assert not list(target.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--source", "x"],
        ["--source", "x", "--target", "y", "--quality", "90"],
        ["--source", "x", "--target", "y", "--workers", "0"],
        ["--source", "x", "--target", "y", "--on-damaged", "ignore"],
        ["--source", "x", "--target", "y", "--on-damaged-class", "skip"],
        ["--check", "x", "--target", "y"],
        ["--source", "x", "--target", "y", "--size", "9"],
    ],
)
def test_options_that_do_not_fit_exit_2(arguments: list[str]) -> None:
    assert run_inside("prepare_imagenet", *arguments).returncode == 2


def test_a_set_under_preparation_is_not_checked(tmp_path: Path) -> None:
    prepare_here(write_folders(tmp_path / "source", small_images()), tmp_path / "target")
    (tmp_path / "target" / "preparing.json").write_text(json.dumps({}))
    ended = run_inside("prepare_imagenet", "--check", str(tmp_path / "target"))
    assert ended.returncode == 2
    assert "is not fully prepared" in ended.stderr


def test_the_manual_names_every_kind_of_source() -> None:
    ended = run_inside("prepare_imagenet", "--help")
    assert ended.returncode == 0
    for words in (
        "ImageFolder",
        "ILSVRC2012_devkit_t12.tar.gz",
        "Hugging Face",
        "Kaggle",
        "WebDataset",
        "labels.csv",
        "--labels",
        "--class-map",
        "--validation-split test",
        "--on-damaged",
        "--on-damaged-class",
        "--check",
    ):
        assert words in ended.stdout
    assert os.path.basename(JOB) in ended.stdout
