"""Numbers that stand for classes, or do not. Oracle: the labels that pyarrow wrote, and classes counted from 0."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from oracle.images import jpeg, smooth
from oracle.sources import prepare_here

from dist_resnet.data.shards import classes
from dist_resnet.data.shards.split import Split, open_split


def split_of(folder: Path, labels: list, names: object = None) -> Split:
    """A split of these labels, whose `huggingface` metadata has the names."""
    folder.mkdir(parents=True)
    table = pa.table({"image": [jpeg(smooth(9, 9, n)) for n in range(len(labels))], "label": labels})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, folder / "train-0.parquet")
    return open_split(str(folder))


@pytest.mark.parametrize("label", [10**12, 1_000_000, (1 << 63) - 1])
def test_a_number_that_is_no_class_is_named_before_memory_is_taken(tmp_path: Path, label: int) -> None:
    split_of(tmp_path / "s", [0, 1, label])
    with pytest.raises(ValueError, match=rf"label {label} in .*train-0.parquet row 2 is not a class number, 0"):
        prepare_here(tmp_path / "s", tmp_path / "t")


def test_labels_below_zero_are_named_as_what_they_are(tmp_path: Path) -> None:
    split_of(tmp_path / "s", [-1, -1])
    with pytest.raises(ValueError, match=r"label -1 in .*train-0.parquet row 0 means no label; give every image a la"):
        prepare_here(tmp_path / "s", tmp_path / "t")


@pytest.mark.parametrize("names", [None, ["a", "b", "c"]])
def test_labels_that_begin_with_1_are_told_so(tmp_path: Path, names: list[str] | None) -> None:
    split = split_of(tmp_path / "s", [1, 2, 3], names)
    with pytest.raises(ValueError, match=r"label 3 in .* row 2 .* subtract 1 from every label"):
        classes.of_training(split, 3, spare_outputs=False)
    if names is None:
        with pytest.raises(ValueError, match=r"label 3 in .* row 2 .* subtract 1 from every label"):
            classes.match(split, None, 3)


@pytest.mark.parametrize(
    ("labels", "names", "said"),
    [
        ([1, 2, 3], None, "labels run from 1 to 3, have 3 of 4 classes; without images: '0'"),
        ([1, 2, 3], ["none", "a", "b", "c"], "labels run from 1 to 3, have 3 of 4 classes; without images: 'none'"),
        ([0, 1], ["a", "b", "c", "d"], "labels run from 0 to 1, have 2 of 4 classes; without images: 'c', 'd'"),
        ([0, 1, 2], ["a", "b", "c"], None),
        ([0, 1, 2], None, None),
        (["a", "b"], None, None),
    ],
)
def test_classes_without_a_training_image_are_said(tmp_path: Path, labels: list, names: list | None, said: str | None):
    split = split_of(tmp_path / "s", labels, names)
    lines = classes.describe_absent_classes(split, "training images")
    assert len(lines) == (said is not None)
    assert said is None or said in lines[0]


def test_a_gap_in_a_prepared_sets_labels_is_said(tmp_path: Path) -> None:
    split_of(tmp_path / "s", [0, 2, 0, 2], ["a", "b", "c"])
    prepare_here(tmp_path / "s", tmp_path / "t")
    (line,) = classes.describe_absent_classes(open_split(f"{tmp_path}/t/train-*.parquet"), "training images")
    assert "have 2 of 3 classes; without images: 'b'" in line


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"0": "a", "1": "b", "2": "c"}, ("a", "b", "c")),
        ({"2": "c", "0": "a", "1": "b"}, ("a", "b", "c")),
        ({"0": "a", "2": "b", "5": "c"}, None),
        ({"0": "a", "1": "b", "x": "c"}, None),
        (["a", None, "c"], None),
        ([0, 1, 2], ("0", "1", "2")),
        ([], None),
        ("abc", None),
    ],
)
def test_names_are_those_of_their_numbers_or_none(tmp_path: Path, names: object, expected: tuple | None) -> None:
    assert split_of(tmp_path / "s", [0, 1, 2], names).class_names == expected
