"""Writes images as Parquet shards in the Hugging Face image-dataset layout, and reads CIFAR-10 and CIFAR-100.

These are published in a python format (pickles, which torchvision stores as `cifar-10-batches-py` and
`cifar-100-python`) and a binary format (`cifar-10-batches-bin`, `cifar-100-binary`).
"""

import io
import json
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from PIL import Image

from dist_resnet.storage.files import whole_file
from dist_resnet.storage.uri import open_uri

SIDE = 32
_PIXEL_BYTES = 3 * SIDE * SIDE
_ROWS_PER_GROUP = 1000


@dataclass(frozen=True)
class _Format:
    """One published format of a CIFAR data set."""

    dataset: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    label_bytes: int | None
    """Bytes before the pixels of each binary record; the last one is the label. None for the python format."""


_FORMATS = (
    _Format(
        "cifar10",
        "cifar-10-batches-py",
        tuple(f"data_batch_{n}" for n in range(1, 6)),
        ("test_batch",),
        "batches.meta",
        None,
    ),
    _Format("cifar100", "cifar-100-python", ("train",), ("test",), "meta", None),
    _Format(
        "cifar10",
        "cifar-10-batches-bin",
        tuple(f"data_batch_{n}.bin" for n in range(1, 6)),
        ("test_batch.bin",),
        "batches.meta.txt",
        1,
    ),
    _Format("cifar100", "cifar-100-binary", ("train.bin",), ("test.bin",), "fine_label_names.txt", 2),
)


def encode_table(
    encoded: Sequence[bytes],
    paths: Sequence[str],
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    image_column: str = "image",
) -> pa.Table:
    """A table of encoded images in the Hugging Face image-dataset layout; `labels`: int64 [N]."""
    label = {"names": list(class_names), "_type": "ClassLabel"}
    features = {"info": {"features": {image_column: {"_type": "Image"}, "label": label}}}
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({image_column: image, "label": pa.int64()}, {"huggingface": json.dumps(features)})
    column = pa.StructArray.from_arrays(
        [pa.array(encoded, pa.binary()), pa.array(paths, pa.string())], fields=list(image)
    )
    return pa.table([column, pa.array(labels, pa.int64())], schema=schema)


def write_table(filesystem: pafs.FileSystem, path: str, table: pa.Table, *, rows_per_group: int) -> None:
    """Writes a table as one shard, completely or not at all.

    The image bytes are neither compressed nor dictionary-encoded: JPEG and PNG do not shrink, and reading would take
    twice as long.
    """
    with whole_file(filesystem, path) as stream:
        pq.write_table(table, stream, row_group_size=rows_per_group, compression="none", use_dictionary=["label"])


def convert_cifar(source: Path, target: str) -> dict[str, int]:
    """Writes a published CIFAR folder as `train-` and `test-` shards of lossless PNGs under `target`, a path or URI.

    `source` is the folder with the batches, or its parent. Returns the number of images of each split. Raises
    FileNotFoundError if no known format is found, ValueError for a damaged file.
    """
    form, folder = _find(Path(source))
    names = _class_names(form, folder)
    splits = {
        split: [_read(form, folder / file, len(names)) for file in files]
        for split, files in (("train", form.train), ("test", form.test))
    }  # everything is read and checked before anything is written
    filesystem, path = open_uri(target)
    for split, parts in splits.items():
        pixels, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
        paths = [f"{split}/{names[label]}/{row:05d}.png" for row, label in enumerate(labels.tolist())]
        table = encode_table(list(_pngs(pixels)), paths, labels, names, image_column="img")
        write_table(filesystem, f"{path}/{split}-00000-of-00001.parquet", table, rows_per_group=_ROWS_PER_GROUP)
    return {split: sum(len(labels) for _, labels in parts) for split, parts in splits.items()}


def _find(source: Path) -> tuple[_Format, Path]:
    """The format of a published folder, and the folder with its files."""
    for form in _FORMATS:
        for folder in (source / form.folder, source):
            files = (*form.train, *form.test, form.names)
            here = [(folder / file).is_file() for file in files]
            if all(here):
                return form, folder
            if folder.name == form.folder and folder.is_dir():
                raise FileNotFoundError(f"{folder} lacks {files[here.index(False)]}; unpack the archive again")
    known = ", ".join(form.folder for form in _FORMATS)
    raise FileNotFoundError(f"{source} holds none of {known}; unpack a published CIFAR archive there")


def _class_names(form: _Format, folder: Path) -> tuple[str, ...]:
    if form.label_bytes is not None:
        try:
            return tuple((folder / form.names).read_text("utf-8").split())
        except UnicodeDecodeError as error:
            raise ValueError(f"{folder / form.names} is not UTF-8 text ({error}); unpack the archive again") from error
    entries = _unpickle(folder / form.names)
    names = entries.get("label_names") or entries.get("fine_label_names")
    if not names:
        raise ValueError(f"{folder / form.names} has no class names; unpack the archive again")
    return tuple(str(name) for name in names)


def _read(form: _Format, file: Path, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(pixels uint8 [N, 32, 32, 3], labels int64 [N]) of one file. Raises ValueError if it is damaged."""
    if form.label_bytes is None:
        entries = _unpickle(file)
        pixels = np.asarray(entries.get("data"))
        labels = np.array(entries.get("labels", entries.get("fine_labels", [])), np.int64)
    else:
        content = np.frombuffer(file.read_bytes(), np.uint8)
        if len(content) % (form.label_bytes + _PIXEL_BYTES):
            raise ValueError(
                f"{file} has {len(content)} bytes, not a multiple of {form.label_bytes + _PIXEL_BYTES}; "
                "unpack the archive again"
            )
        records = content.reshape(-1, form.label_bytes + _PIXEL_BYTES)
        pixels, labels = records[:, form.label_bytes :], records[:, form.label_bytes - 1].astype(np.int64)
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), _PIXEL_BYTES) or not len(labels):
        raise ValueError(
            f"{file} holds {pixels.dtype} {list(pixels.shape)} pixels and {len(labels)} labels, not uint8 "
            f"[N, {_PIXEL_BYTES}] and N labels; unpack the archive again"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"{file} has labels {labels.min()} .. {labels.max()} for {num_classes} classes; unpack the archive again"
        )
    return pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1), labels


def _pngs(pixels: np.ndarray) -> Iterator[bytes]:
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", compress_level=1)
        yield buffer.getvalue()


class _PlainUnpickler(pickle.Unpickler):
    """Reads the pickles of the python format: containers, text, numbers and NumPy arrays, but no code."""

    _allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): lambda kind, shape, code: np.ndarray(shape, np.uint8),
        ("numpy._core.multiarray", "_reconstruct"): lambda kind, shape, code: np.ndarray(shape, np.uint8),
        ("numpy", "ndarray"): None,  # only handed to _reconstruct
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
    }

    def find_class(self, module: str, name: str) -> Any:
        """The few names that arrays need. Raises UnpicklingError for any other."""
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it uses {module}.{name}, which images do not need")
        return self._allowed[module, name]


def _unpickle(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            entries = _PlainUnpickler(stream, encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError(f"{file} cannot be read ({error}); unpack the archive again") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{file} holds a {type(entries).__name__} instead of a dictionary; unpack the archive again")
    return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in entries.items()}
