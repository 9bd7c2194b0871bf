"""jobs/prepare_cifar.py as a command; oracle: the shards that it promises, and its exit codes."""

import subprocess
from pathlib import Path

import numpy as np
from jobs.inside import run_inside

from dist_resnet.data.shards.split import open_split


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_inside("prepare_cifar", *arguments)


def test_a_binary_archive_becomes_two_splits(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    for file, count in (("train.bin", 5), ("test.bin", 3)):
        (folder / file).write_bytes(np.zeros((count, 3074), np.uint8).tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join(f"fine{n}" for n in range(100)))
    ended = run("--source", str(tmp_path), "--target", str(tmp_path / "target"))
    assert ended.returncode == 0, ended.stderr
    assert "train-00000-of-00001.parquet: 5 images" in ended.stdout
    assert open_split(str(tmp_path / "target" / "test-*.parquet")).num_images == 3


def test_an_empty_source_exits_2_with_one_line(tmp_path: Path) -> None:
    ended = run("--source", str(tmp_path), "--target", str(tmp_path / "target"))
    assert ended.returncode == 2
    assert ended.stderr.startswith("prepare_cifar.py: ")
    assert "holds none of cifar-10-batches-py" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_unknown_and_missing_options_exit_2(tmp_path: Path) -> None:
    ended = run("--source", str(tmp_path))
    assert ended.returncode == 2
    assert ended.stderr == "prepare_cifar.py: give --target; see --help\n"
    assert run().stderr == "prepare_cifar.py: give --source and --target; see --help\n"
    assert run("--source", str(tmp_path), "--target", "x", "--size", "9").returncode == 2
