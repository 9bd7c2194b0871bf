"""Image sets in the forms that people have them, written with the standard library, SciPy and pyarrow."""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.io import savemat

from dist_resnet.data.prepare.options import Options
from dist_resnet.data.prepare.prepare import prepare
from oracle.images import REAL, jpeg, smooth

SYNSETS = ("n01440764", "n01443537", "n02012849", "n03126707", "n07875152")

Images = dict[str, dict[str, list[tuple[str, bytes]]]]
"""Split -> class -> (name, encoded) of each image."""


class Silent:
    """Progress that nobody sees, but for what was said."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.said: list[str] = []
        self.done = 0

    def begin(self, what: str, total: int | None) -> None:
        self.begun.append(what)

    def advance(self, images: int) -> None:
        self.done += images

    def say(self, line: str) -> None:
        self.said.append(line)


def in_turn(function: Any, tasks: Sequence[Any]) -> Iterator[Any]:
    """Runs tasks one after the other in this process."""
    for task in tasks:
        yield from function(task)


def prepare_here(source: object, target: object, *, run: Any = in_turn, **options: Any) -> dict[str, Any]:
    """Prepares in this process, into shards of about 10 KB unless told otherwise."""
    values = {"shard_megabytes": 0.01, **options}
    return prepare(Options(source=str(source), target=str(target), **values), run=run, progress=Silent())


def small_images(per_class: int = 8, validation: int = 2, classes: Sequence[str] = SYNSETS) -> Images:
    """Generated images of about 1 KB, each unlike the others."""
    made: Images = {"train": {}, "validation": {}}
    number = 0
    for split, count in (("train", per_class), ("validation", validation)):
        for name in classes:
            made[split][name] = []
            for _ in range(count):
                number += 1
                stem = (
                    f"{name}_{number}"
                    if split == "train"
                    else f"ILSVRC2012_val_{number - per_class * len(classes):08d}"
                )
                made[split][name].append((f"{stem}.JPEG", jpeg(smooth(32 + number % 5, 40 - number % 7, number))))
    return made


def damaged_images() -> Images:
    """The same with a training image cut short, `cut.JPEG`, and a page in place of a validation one, `page.JPEG`."""
    images = small_images()
    images["train"][SYNSETS[1]][3] = ("cut.JPEG", images["train"][SYNSETS[1]][3][1][:-60])
    images["validation"][SYNSETS[4]][0] = ("page.JPEG", b"<html>not found</html>")
    return images


def real_images(count: int = 500) -> Images:
    """So many real images, in classes of 8 for training and 2 for validation; none where they are absent."""
    made: Images = {"train": {}, "validation": {}}
    number = validation = 0
    for file in sorted(REAL.glob("imagenet-sample/*.parquet")):
        for row in pq.read_table(file).to_pylist():
            if number == count:
                break
            synset = f"n{number % (count // 10):08d}"
            split = "validation" if number >= count * 4 // 5 else "train"
            validation += split == "validation"
            name = f"{synset}_{number}.JPEG" if split == "train" else f"ILSVRC2012_val_{validation:08d}.JPEG"
            made[split].setdefault(synset, []).append((name, row["image"]["bytes"]))
            number += 1
    return made


def write_folders(root: Path, images: Images) -> Path:
    """As ImageFolder has them."""
    for split, classes in images.items():
        for synset, files in classes.items():
            folder = root / {"validation": "val"}.get(split, split) / synset
            folder.mkdir(parents=True)
            for name, encoded in files:
                (folder / name).write_bytes(encoded)
    return root


def tar(files: Sequence[tuple[str, bytes]]) -> bytes:
    """A tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_archives(root: Path, images: Images, *, truth: list[int] | None = None) -> Path:
    """As ImageNet was published: nested tars, a flat one, and the devkit with ids in another order than the synsets."""
    root.mkdir(parents=True, exist_ok=True)
    inner = [(f"{synset}.tar", tar(files)) for synset, files in reversed(images["train"].items())]
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar(inner))
    flat = [(name, synset, encoded) for synset, files in images["validation"].items() for name, encoded in files]
    flat.sort()
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar([(name, encoded) for name, _, encoded in flat]))
    ids = {synset: number for number, synset in enumerate(reversed(list(images["train"])), 1)}
    write_devkit(root / "ILSVRC2012_devkit_t12.tar.gz", ids, truth or [ids[synset] for _, synset, _ in flat])
    return root


def write_devkit(file: Path, ids: dict[str, int], truth: list[int]) -> None:
    """The devkit's two files that matter, with an inner node of the hierarchy beside the classes."""
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(float(number), synset, "a word, another", "what it is", 0.0) for synset, number in ids.items()]
    rows.append((float(len(ids) + 1), "n00000001", "all", "everything", float(len(ids))))
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=fields)[:, None]})
    lines = "".join(f"{number}\n" for number in truth).encode()
    content = [
        ("ILSVRC2012_devkit_t12/readme.txt", b"read me"),
        ("ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue()),
        ("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", lines),
    ]
    with tarfile.open(file, "w:gz") as archive:
        for name, data in content:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def write_parquet(file: Path, rows: Sequence[tuple[str | None, bytes | None, int]], class_names: Sequence[str]) -> None:
    """A shard as downloaded: compressed, dictionary-encoded, other row groups; rows are (name, encoded, label)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    label = {"names": list(class_names), "_type": "ClassLabel"}
    features = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table(
        [
            pa.array([{"bytes": encoded, "path": name} for name, encoded, _ in rows], image),
            pa.array([label for _, _, label in rows], pa.int64()),
        ],
        schema=pa.schema({"image": image, "label": pa.int64()}, {"huggingface": json.dumps(features)}),
    )
    pq.write_table(table, file, row_group_size=7, compression="snappy", use_dictionary=True)


def rename_classes(source: str, target: Path, names: Sequence[str], labels: Sequence[int | None]) -> str:
    """A copy of a split with other class names, in which label l has become labels[l], or is left out; its folder."""
    target.mkdir()
    for shard in Path(source).iterdir():
        table = pq.read_table(shard)
        table = table.filter(pa.array([labels[label] is not None for label in table["label"].to_pylist()], pa.bool_()))
        column = pa.array([labels[label] for label in table["label"].to_pylist()], pa.int64())
        features = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": list(names)}}}}
        table = table.set_column(table.schema.get_field_index("label"), "label", column)
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), target / shard.name)
    return str(target)


def write_downloaded(root: Path, images: Images, *, shards: int = 3) -> Path:
    """As Hugging Face has them, in a folder `data`, with a test split without labels."""
    names = sorted(images["train"])
    for split, classes in images.items():
        rows = [(name, one, names.index(synset)) for synset, files in classes.items() for name, one in files]
        for number in range(shards):
            file = root / "data" / f"{split}-{number:05d}-of-{shards:05d}.parquet"
            write_parquet(file, rows[number::shards], names)
    test = [(None, jpeg(smooth(20, 20, 1)), -1)]
    write_parquet(root / "data" / "test-00000-of-00001.parquet", test, names)
    return root


def write_kaggle(root: Path, images: Images, folder: str = "ILSVRC/Data/CLS-LOC") -> Path:
    """As the archive of Kaggle's challenge unpacks."""
    write_folders(root / folder, {"train": images["train"]})
    (root / folder / "val").mkdir()
    lines = ["ImageId,PredictionString"]
    for synset, files in images["validation"].items():
        for name, encoded in files:
            (root / folder / "val" / name).write_bytes(encoded)
            lines.append(f"{name.removesuffix('.JPEG')},{synset} 85 1 499 272 {synset} 1 1 9 9 ")
    (root / "LOC_val_solution.csv").write_text("\r\n".join(lines) + "\r\n")
    (root / "LOC_synset_mapping.txt").write_text("".join(f"{synset} a word, another\n" for synset in images["train"]))
    return root


def write_webdataset(
    root: Path,
    images: Images,
    *,
    ending: str = "cls",
    names: dict[str, str] | None = None,
    classes: Sequence[str] | None = None,
) -> Path:
    """Two WebDataset archives of each split; `classes`: state numbers, the places of the synsets among these."""
    for split, name in (names or {"train": "train-{:04d}.tar", "validation": "val-{:04d}.tar"}).items():
        files = []
        for synset, ones in images[split].items():
            stated = synset if classes is None else classes.index(synset)
            for file, encoded in ones:
                key = file.partition(".")[0]
                told = str(stated) if ending == "cls" else json.dumps({"width": 3, "label": stated})
                files += [(f"{key}.JPEG", encoded), (f"{key}.{ending}", told.encode())]
        half = len(files) // 4 * 2
        for shard, content in enumerate((files[:half], files[half:])):
            file = root / name.format(shard)
            file.parent.mkdir(exist_ok=True, parents=True)
            file.write_bytes(tar(content))
    return root


def write_table(root: Path, images: Images, *, name: str = "labels.csv", separator: str = ",") -> Path:
    """All images in one folder, and a table with a column of splits."""
    (root / "images").mkdir(parents=True)
    lines = [("file_name", "label", "split")]
    for split, classes in images.items():
        for synset, files in classes.items():
            for file, encoded in files:
                (root / "images" / file).write_bytes(encoded)
                lines.append((file, synset, {"validation": "val"}.get(split, split)))
    (root / name).write_text("\n".join(map(separator.join, lines)) + "\n")
    return root


WRITERS = [write_folders, write_archives, write_downloaded, write_kaggle, write_webdataset, write_table]
"""Every kind of source."""


def expected_rows(images: Images, split: str) -> list[tuple[str, bytes, int]]:
    """(name, encoded, label) of a split's images, sorted, with labels in the order of the sorted classes."""
    names = sorted(images["train"])
    rows = [(name, one, names.index(synset)) for synset, files in images[split].items() for name, one in files]
    return sorted(rows)


def prepared_rows(target: Path, split: str) -> list[tuple[str, bytes, int]]:
    """(name, encoded, label) of the rows that pyarrow reads from a prepared split, in their order."""
    rows = []
    for file in sorted(target.glob(f"{split}-*.parquet")):
        for image, label in zip(*pq.read_table(file).to_pydict().values(), strict=True):
            rows.append((image["path"], image["bytes"], label))
    return rows
