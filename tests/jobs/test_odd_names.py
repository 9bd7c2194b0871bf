"""Names that are not UTF-8, given to jobs. Oracle: their bytes, escaped, in the one line of exit code 2."""

import os
from pathlib import Path

import pytest
from jobs.inside import run_inside
from oracle.images import jpeg, smooth


def _write(path: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(jpeg(smooth(16, 16, 1)))


@pytest.mark.parametrize(
    "odd",
    [
        b"train/caf\xe9/1.jpg",
        b"train/cat/caf\xe9.jpg",
        b"val/cat/\xff\xfe.jpg",
        b"train/cat/deep\xe9/1.jpg",
        b"val/\xe9/1.jpg",
    ],
)
def test_a_source_with_such_a_name_is_refused_with_its_folder(tmp_path: Path, odd: bytes):
    root = os.fsencode(tmp_path / "source")
    for name in (b"train/cat/1.jpg", b"train/dog/1.jpg", b"val/cat/1.jpg", b"val/dog/1.jpg", odd):
        _write(root + b"/" + name)
    ended = run_inside("prepare_imagenet", "--source", str(tmp_path / "source"), "--target", str(tmp_path / "target"))
    assert ended.returncode == 2
    last = ended.stderr.splitlines()[-1]
    upto = odd[: len(odd) - len(odd.split(b"\xe9")[-1].split(b"\xfe")[-1])]
    assert f"the name {tmp_path}/source/{upto.decode('utf-8', 'backslashreplace')}" in last
    assert "is not UTF-8; rename it" in last
    assert "Traceback" not in ended.stderr
    assert not list((tmp_path / "target").iterdir())


@pytest.mark.parametrize(
    ("job", "arguments"),
    [
        ("prepare_imagenet", ["--source", "{odd}", "--target", "{plain}"]),
        ("prepare_imagenet", ["--source", "{set}/val", "--split", "train", "--target", "{odd}"]),
        ("prepare_imagenet", ["--check", "{odd}"]),
        ("prepare_cifar", ["--source", "{odd}", "--target", "{plain}"]),
        ("imagenet_preact200", ["--data.train", "{odd}/train-*.parquet"]),
        ("imagenet_preact200", ["--demo", "--execution.storage", "{odd}"]),
        ("imagenet_preact200", ["--demo", "--execution.storage", "{plain}", "--execution.name", "caf\udce9"]),
        ("cifar_ablation", ["--demo", "--execution.storage", "{odd}"]),
        ("evaluate", ["--run", "{odd}"]),
        ("register_model", ["--run", "{odd}"]),
        ("deliver_tracking", ["--run", "{odd}"]),
        ("probe_signal", ["--data.train", "{odd}"]),
        ("runs", ["list", "--storage", "{odd}"]),
        ("runs", ["show", "caf\udce9", "--storage", "{plain}"]),
    ],
)
def test_an_option_with_such_a_name_is_refused(tmp_path: Path, job: str, arguments: list[str]):
    _write(os.fsencode(tmp_path) + b"/set/val/cat/1.jpg")
    places = {"odd": f"{tmp_path}/caf\udce9", "plain": f"{tmp_path}/plain", "set": f"{tmp_path}/set"}
    ended = run_inside(job, *(argument.format(**places) for argument in arguments))
    assert ended.returncode == 2, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert "caf\\xe9" in line.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def test_a_folder_of_another_name_beside_the_runs_is_passed_over(tmp_path: Path):
    os.makedirs(os.fsencode(tmp_path) + b"/caf\xe9")
    ended = run_inside("runs", "list", "--storage", str(tmp_path))
    assert ended.returncode == 0
    assert "no runs under" in ended.stderr
