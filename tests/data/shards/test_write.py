"""CIFAR's published formats; oracle: the arrays that the test wrote in them, and torchvision's reader."""

import hashlib
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from oracle.images import read_row_group
from PIL import Image
from torchvision.datasets import CIFAR10

from dist_resnet.data.shards.split import open_split
from dist_resnet.data.shards.write import convert_cifar

NAMES = {10: [f"name{n}" for n in range(10)], 100: [f"fine{n}" for n in range(100)]}
COUNT = 12


def arrays(seed: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (COUNT, 3072), dtype=np.uint8), rng.integers(0, num_classes, COUNT)


def write_python(root: Path, num_classes: int, protocol: int = 2) -> Path:
    """The python format: dictionaries of NumPy arrays and lists, pickled."""
    folder = root / ("cifar-10-batches-py" if num_classes == 10 else "cifar-100-python")
    folder.mkdir(parents=True)
    files = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"] if num_classes == 10 else ["train", "test"]
    for seed, file in enumerate(files):
        pixels, labels = arrays(seed, num_classes)
        key = "labels" if num_classes == 10 else "fine_labels"
        content = {"data": pixels, key: labels.tolist(), "filenames": ["a.png"] * COUNT}
        (folder / file).write_bytes(pickle.dumps(content, protocol=protocol))
    names = {"label_names" if num_classes == 10 else "fine_label_names": NAMES[num_classes]}
    (folder / ("batches.meta" if num_classes == 10 else "meta")).write_bytes(pickle.dumps(names, protocol=protocol))
    return folder


def write_binary(root: Path, num_classes: int) -> Path:
    """The binary format: a label byte (CIFAR-100: a coarse one before it) and 3072 pixel bytes per record."""
    folder = root / ("cifar-10-batches-bin" if num_classes == 10 else "cifar-100-binary")
    folder.mkdir(parents=True)
    files = [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]
    for seed, file in enumerate(files if num_classes == 10 else ["train.bin", "test.bin"]):
        pixels, labels = arrays(seed, num_classes)
        records = [labels[:, None].astype(np.uint8), pixels]
        if num_classes == 100:
            records.insert(0, np.full((COUNT, 1), 7, np.uint8))
        (folder / file).write_bytes(np.concatenate(records, axis=1).tobytes())
    names = folder / ("batches.meta.txt" if num_classes == 10 else "fine_label_names.txt")
    names.write_text("\n".join(NAMES[num_classes]) + "\n\n")
    return folder


def assert_holds(target: Path, split: str, seeds: range, num_classes: int) -> None:
    pixels, labels = (np.concatenate(column) for column in zip(*(arrays(s, num_classes) for s in seeds), strict=True))
    opened = open_split(str(target / f"{split}-*.parquet"))
    group = read_row_group(opened, 0)
    assert pq.read_schema(opened.shards[0]).names == ["img", "label"]
    assert opened.class_names == tuple(NAMES[num_classes])
    assert group.labels.tolist() == labels.tolist()
    for image, row in zip(group.images, pixels, strict=True):
        expected = row.reshape(3, 32, 32).transpose(1, 2, 0)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(image.tobytes()))), expected)


@pytest.mark.parametrize("write", [write_python, write_binary])
@pytest.mark.parametrize("num_classes", [10, 100])
@pytest.mark.parametrize("inside", [True, False])
def test_every_published_format_comes_back_exactly(tmp_path: Path, write, num_classes: int, inside: bool) -> None:
    folder = write(tmp_path / "source", num_classes)
    counts = convert_cifar(folder if inside else tmp_path / "source", str(tmp_path / "target"))
    train = 5 if num_classes == 10 else 1
    assert counts == {"train": train * COUNT, "test": COUNT}
    assert_holds(tmp_path / "target", "train", range(train), num_classes)
    assert_holds(tmp_path / "target", "test", range(train, train + 1), num_classes)
    assert {file.name for file in (tmp_path / "target").iterdir()} == {
        "train-00000-of-00001.parquet",
        "test-00000-of-00001.parquet",
    }


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_any_pickle_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    write_python(tmp_path / "source", 100, protocol)
    convert_cifar(tmp_path / "source", str(tmp_path / "target"))
    assert_holds(tmp_path / "target", "train", range(1), 100)


def test_the_images_are_those_that_torchvision_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_python(tmp_path, 10)
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setitem(CIFAR10.meta, "md5", None)
    theirs = CIFAR10(str(tmp_path), train=False)
    convert_cifar(tmp_path, str(tmp_path / "target"))
    group = read_row_group(open_split(str(tmp_path / "target" / "test-*.parquet")), 0)
    assert group.labels.tolist() == theirs.targets
    for image, (their, _) in zip(group.images, theirs, strict=True):
        assert Image.open(io.BytesIO(image.tobytes())).tobytes() == their.tobytes()


def test_two_conversions_are_the_same_files(tmp_path: Path) -> None:
    write_binary(tmp_path / "source", 10)
    sums = []
    for name in ("a", "b"):
        convert_cifar(tmp_path / "source", str(tmp_path / name))
        sums.append(hashlib.sha256((tmp_path / name / "train-00000-of-00001.parquet").read_bytes()).hexdigest())
    assert sums[0] == sums[1]


def test_row_groups_hold_a_thousand_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.COUNT", 450)
    write_binary(tmp_path / "source", 10)
    convert_cifar(tmp_path / "source", str(tmp_path / "target"))
    metadata = pq.read_metadata(tmp_path / "target" / "train-00000-of-00001.parquet")
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [1000, 1000, 250]
    assert metadata.row_group(0).column(0).compression == "UNCOMPRESSED"


class _Evil:
    def __reduce__(self) -> tuple:
        return (os.system, ("touch evil-was-run",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_python(tmp_path / "source", 10)
    (folder / "data_batch_2").write_bytes(pickle.dumps({"data": _Evil()}))
    with pytest.raises(ValueError, match=r"data_batch_2 cannot be read \(it uses posix.system"):
        convert_cifar(tmp_path / "source", str(tmp_path / "target"))
    assert not (tmp_path / "evil-was-run").exists()
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("module", ["numpy", "numpy._core.multiarray", "builtins", "codecs"])
def test_names_beside_the_few_allowed_ones_are_refused(tmp_path: Path, module: str) -> None:
    folder = write_python(tmp_path / "source", 10)
    (folder / "test_batch").write_bytes(f"c{module}\nfromfile\n.".encode())
    with pytest.raises(ValueError, match=f"it uses {module}.fromfile"):
        convert_cifar(tmp_path / "source", str(tmp_path / "target"))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = write_python(tmp_path / "py", 10)
    whole = (folder / "test_batch").read_bytes()
    for content, words in (
        (whole[: len(whole) // 2], "test_batch cannot be read"),
        (b"", "test_batch cannot be read"),
        (pickle.dumps([1, 2]), "test_batch holds a list instead of a dictionary"),
        (pickle.dumps({"data": np.zeros((2, 5), np.uint8), "labels": [1, 2]}), r"test_batch holds uint8 \[2, 5\]"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}), r"labels 10 .. 10 for 10 classes"),
    ):
        (folder / "test_batch").write_bytes(content)
        with pytest.raises(ValueError, match=words):
            convert_cifar(tmp_path / "py", str(tmp_path / "target"))
    binary = write_binary(tmp_path / "bin", 10)
    (binary / "data_batch_3.bin").write_bytes(b"x" * 5000)
    with pytest.raises(ValueError, match=r"data_batch_3.bin has 5000 bytes, not a multiple of 3073"):
        convert_cifar(tmp_path / "bin", str(tmp_path / "target"))
    (binary / "data_batch_3.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"cifar-10-batches-bin lacks data_batch_3.bin"):
        convert_cifar(tmp_path / "bin", str(tmp_path / "target"))
    with pytest.raises(FileNotFoundError, match="holds none of cifar-10-batches-py, cifar-100-python"):
        convert_cifar(tmp_path / "nothing", str(tmp_path / "target"))
