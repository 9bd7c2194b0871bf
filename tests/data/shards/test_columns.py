"""The forms of Parquet that are read. Oracle: the images and labels that pyarrow wrote, the table in
docs/data-format.md, and the metadata and write options recorded from `datasets` 5.2."""

import json
import re
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from oracle.images import jpeg, read_row_group, smooth
from oracle.sources import prepare_here, prepared_rows

from dist_resnet.data.input.streams import check_some_whole
from dist_resnet.data.shards.columns import UnlabeledError
from dist_resnet.data.shards.split import Split, open_split

PAGE = Path(__file__).parents[3] / "docs" / "data-format.md"
IMAGES = [jpeg(smooth(12 + n, 20 - n, n)) for n in range(9)]
LABELS = [2, 0, 1, 3, 3, 0, 2, 1, 0]
BYTES, TEXT, INT64 = pa.binary(), pa.string(), pa.int64()
# Their sorted order is that of the numbers.
NAMES = ["ant", "bee", "cat", "dog"]
WORDS = [NAMES[label] for label in LABELS]
ROWS = sorted(zip(IMAGES, LABELS, strict=True))


def images(kind: pa.DataType = BYTES, path: pa.DataType = TEXT, **options: bool) -> pa.StructArray:
    """The images as `datasets` has them, a struct of bytes and path, of these types."""
    fields = [pa.field("bytes", kind, **options), pa.field("path", path)]
    return pa.StructArray.from_arrays([pa.array(IMAGES, kind), pa.array([None] * len(IMAGES), path)], fields=fields)


def numbers(kind: pa.DataType = INT64) -> pa.Array:
    return pa.array(LABELS, pa.int64()).cast(kind)


def features(image: str = "image", label: str | None = "label") -> dict[bytes, bytes]:
    """The metadata that `datasets` writes for Image() and ClassLabel()."""
    marked = {image: {"_type": "Image"}}
    if label is not None:
        marked[label] = {"names": NAMES, "_type": "ClassLabel"}
    return {b"huggingface": json.dumps({"info": {"features": marked}}).encode()}


def of_two_types() -> list[pa.Table]:
    whole = [
        pa.table({"image": images(), "label": numbers(pa.int8())}),
        pa.table({"image": images(pa.large_binary()), "label": numbers(pa.uint32())}),
        pa.table({"image": pa.array(IMAGES), "label": numbers(pa.float32())}),
    ]
    return [table.slice(3 * number, 3) for number, table in enumerate(whole)]


def in_a_dictionary(values: list, kind: pa.DataType) -> pa.Array:
    """Dictionary-encoded, the dictionary in another order than the values' sorted one."""
    ordered = sorted(set(values), reverse=True)
    codes = pa.array([ordered.index(value) for value in values], pa.int32())
    return pa.DictionaryArray.from_arrays(codes, pa.array(ordered, kind))


Form = tuple[list[pa.Table], list[str] | None, str | None]
"""A shard's table or several shards' tables, the class names that they give, and the label column to ask for."""


def form(*tables: pa.Table, names: list[str] | None = None, ask: str | None = None) -> Form:
    return list(tables), names, ask


IMAGE = {"image": images()}
LABEL = {"label": numbers()}
LAYOUT = pa.table(IMAGE | LABEL)
FURTHER = pa.StructArray.from_arrays(
    [pa.array(["x"] * 9), pa.array(IMAGES), pa.array([1] * 9), pa.array([None] * 9, pa.string())],
    ["mime", "bytes", "width", "path"],
)

# First cell of a row of the page's table -> shards of this form.
FORMS: dict[str, list[Form]] = {
    "`image: struct<bytes: binary, path: string>` and `label: int64`": [
        form(LAYOUT),
        form(LAYOUT.replace_schema_metadata(features()), names=NAMES),
    ],
    "`img` instead of `image`": [
        form(pa.table({"img": images()} | LABEL)),
        form(pa.table({"img": images()} | LABEL).replace_schema_metadata(features("img")), names=NAMES),
    ],
    "images under another name": [
        form(pa.table({"photo": images()} | LABEL)),
        form(pa.table({"jpg": pa.array(IMAGES)} | LABEL)),
        form(
            pa.table({"mask": pa.array([b"no"] * 9), "photo": images()} | LABEL).replace_schema_metadata(
                features("photo")
            ),
            names=NAMES,
        ),
    ],
    "`path` before `bytes`, `label` before `image`": [
        form(
            pa.table(
                LABEL
                | {
                    "image": pa.StructArray.from_arrays(
                        [pa.array([f"{row}.jpg" for row in range(8)] + [None]), pa.array(IMAGES)], ["path", "bytes"]
                    )
                }
            )
        )
    ],
    "no field `path`": [form(pa.table({"image": pa.StructArray.from_arrays([pa.array(IMAGES)], ["bytes"])} | LABEL))],
    "`path` of type null": [form(pa.table({"image": images(path=pa.null())} | LABEL))],
    "further fields in the struct": [form(pa.table({"image": FURTHER} | LABEL))],
    "`bytes: binary not null`": [form(pa.table({"image": images(nullable=False)} | LABEL))],
    "`bytes` or strings of the large types": [
        form(pa.table({"image": images(pa.large_binary(), pa.large_string())} | LABEL)),
        form(pa.table(IMAGE | {"label": pa.array(WORDS, pa.large_string())}), names=NAMES),
    ],
    "`bytes` or strings of the view types": [
        form(pa.table({"image": images(pa.binary_view(), pa.string_view())} | LABEL)),
        form(pa.table(IMAGE | {"label": pa.array(WORDS, pa.string_view())}), names=NAMES),
    ],
    "`image: binary`": [
        form(pa.table({"image": pa.array(IMAGES, kind)} | LABEL))
        for kind in (pa.binary(), pa.large_binary(), pa.binary_view())
    ],
    "dictionary-encoded bytes": [
        form(pa.table({"image": in_a_dictionary(IMAGES, pa.binary())} | LABEL)),
        form(
            pa.table({"image": pa.StructArray.from_arrays([in_a_dictionary(IMAGES, pa.binary())], ["bytes"])} | LABEL)
        ),
    ],
    "`label` of any integer type, `int8` to `uint64`": [
        form(pa.table(IMAGE | {"label": numbers(kind)}).replace_schema_metadata(marked), names=names)
        for kind in (pa.int8(), pa.int16(), pa.int32(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())
        for marked, names in ((None, None), (features(), NAMES))
    ],
    "`label` of bool, floating-point or decimal type": [
        form(pa.table(IMAGE | {"label": numbers(pa.float64())})),
        form(pa.table(IMAGE | {"label": numbers(pa.float16())})),
        *(
            form(pa.table(IMAGE | {"label": pa.array([Decimal(label) for label in LABELS], kind)}))
            for kind in (pa.decimal32(5, 0), pa.decimal64(9, 2), pa.decimal128(5, 2), pa.decimal256(50, 3))
        ),
    ],
    "`label` of strings": [
        form(pa.table(IMAGE | {"label": WORDS}), names=NAMES),
        form(pa.table(IMAGE | {"label": WORDS}).replace_schema_metadata(features(label=None)), names=NAMES),
    ],
    "`label` of strings in a dictionary, as pandas' categories": [
        form(pa.table(IMAGE | {"label": in_a_dictionary(WORDS, pa.string())}), names=NAMES)
    ],
    "`label` of text stored as bytes": [
        form(pa.table(IMAGE | {"label": pa.array([word.encode() for word in WORDS])}), names=NAMES)
    ],
    "shards of one split whose types differ": [form(*of_two_types())],
    "`labels`, `class`, `target`, `cls`, `category`, `..._label` or `..._id` of these instead of `label`": [
        *(
            form(pa.table(IMAGE | {name: numbers(), "width": [9] * 9, "caption": ["x"] * 9}))
            for name in ("labels", "class", "target", "cls", "category", "fine_label", "class_id", "Label")
        ),
        form(
            pa.table(IMAGE | {"breed": numbers(), "width": [9] * 9}).replace_schema_metadata(features(label="breed")),
            names=NAMES,
        ),
    ],
    "`fine_label` and `coarse_label`": [
        form(
            pa.table({"img": images(), "fine_label": numbers(), "coarse_label": [0] * 9}).replace_schema_metadata(
                features("img", "fine_label")
            ),
            names=NAMES,
            ask="fine_label",
        ),
        form(pa.table(IMAGE | {"age": numbers(), "label": [0] * 9}), ask="age"),
    ],
    "further columns": [
        form(pa.table({"id": ["x"] * 9, "box": [[1, 2]] * 9} | LABEL | {"mask": pa.array([b"m"] * 9)} | IMAGE))
    ],
}

WRITERS = {
    "datasets": {"compression": "none", "use_dictionary": False, "write_page_index": True},
    "pyarrow": {"compression": "snappy", "use_dictionary": True},
    # As programs that know no Arrow write it: Parquet's own types alone.
    "others": {"compression": "zstd", "write_statistics": False, "store_schema": False},
}


def write(folder: Path, tables: list[pa.Table], writer: str = "pyarrow") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, table in enumerate(tables):
        rows = 9 if "struct<bytes: binary_view" in str(table.schema) else 4  # pyarrow cuts no structs of views
        pq.write_table(table, folder / f"train-{number}.parquet", row_group_size=rows, **WRITERS[writer])
    return folder


def read(split: Split) -> list[tuple[bytes, int]]:
    groups = [read_row_group(split, number) for number in range(split.num_row_groups)]
    assert all(group.labels.dtype == np.int64 for group in groups)
    return [
        (image.tobytes(), label)
        for group in groups
        for image, label in zip(group.images, group.labels.tolist(), strict=True)
    ]


CASES = [pytest.param(one, id=f"{row}-{number}") for row, of in FORMS.items() for number, one in enumerate(of)]


def test_every_row_of_the_page_is_tried():
    page = PAGE.read_text().partition("| what the shards have | what is read |\n|---|---|\n")[2].partition("\n\n")[0]
    assert [re.split(r" \| ", line)[0].removeprefix("| ") for line in page.splitlines()] == list(FORMS)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("given", CASES)
def test_a_run_reads_every_form(given: Form, writer: str, tmp_path: Path):
    tables, names, ask = given
    if writer == "others" and tables[0].schema.metadata:
        return  # it writes no metadata, which this form is about
    split = open_split(str(write(tmp_path, tables, writer)), label_column=ask)
    assert read(split) == list(zip(IMAGES, LABELS, strict=True))
    assert split.class_names == (None if names is None else tuple(names))
    assert split.label_range == (0, 3)
    split.check_labels(4)
    check_some_whole(split)


@pytest.mark.parametrize("given", CASES)
def test_preparing_reads_every_form(given: Form, tmp_path: Path):
    tables, names, ask = given
    manifest = prepare_here(write(tmp_path / "source", tables), tmp_path / "target", label_column=ask)
    rows = prepared_rows(tmp_path / "target", "train")
    assert sorted((encoded, label) for _, encoded, label in rows) == ROWS
    assert manifest["class_names"] == (names or ["0", "1", "2", "3"])


def test_text_labels_of_several_shards_are_numbered_by_the_sorted_names_of_all_and_that_is_said(tmp_path: Path, caplog):
    caplog.set_level("INFO")
    tables = [pa.table({"image": pa.array(IMAGES[:2]), "label": words}) for words in (["dog", "bee"], ["cat", "ant"])]
    split = open_split(str(write(tmp_path, tables)))
    assert split.class_names == ("ant", "bee", "cat", "dog")
    assert [label for _, label in read(split)] == [3, 1, 2, 0]
    assert (split.label_range, split.shard_labels) == ((0, 3), ((1, 3), (0, 2)))
    assert "are text in the column label: 4 classes, numbered by sorted name, ant, bee, cat, ..." in caplog.text
    with pytest.raises(ValueError, match=r"label 3 in .*train-0.parquet row 0 is not in 0 .. 2"):
        split.check_labels(3)


def test_a_label_column_of_another_name_is_said(tmp_path: Path, caplog):
    caplog.set_level("INFO")
    open_split(str(write(tmp_path, [pa.table(IMAGE | {"target": numbers()})])))
    assert "are taken from the column target" in caplog.text


REFUSED: dict[str, tuple[dict[str, pa.Array], str]] = {
    "two label columns": (
        {"img": images(), "fine_label": numbers(), "coarse_label": numbers()},
        r"several columns of labels, fine_label, coarse_label; choose one with --data.label-column",
    ),
    "no label column": (
        {"image": images(), "age": numbers()},
        r"no column with a name for labels.* age: int64; .*choose it",
    ),
    "a list of labels": (
        {"image": images(), "labels": pa.array([[label] for label in LABELS])},
        r"the column labels of type list<.*int64>, which cannot be labels",
    ),
    "a struct of labels": (
        {"image": images(), "label": pa.array([{"a": label} for label in LABELS])},
        r"the column label of type struct<a: int64>, which cannot be labels",
    ),
    "dates for labels": (
        {"image": images(), "label": numbers().cast(pa.timestamp("s"))},
        r"the column label of type timestamp\[.*\], which cannot be labels",
    ),
    "no images": ({"text": pa.array(WORDS), "label": numbers()}, r"no column of images, .* text: string"),
    "pixels": (
        {"image": pa.array([[1, 2, 3]] * 9, pa.list_(pa.uint8())), "label": numbers()},
        r"the column image of type list<.*uint8>, which cannot be encoded images; images are binary",
    ),
    "text for bytes": (
        {"image": pa.StructArray.from_arrays([pa.array(WORDS)], ["bytes"]), "label": numbers()},
        r"the column image of type struct<bytes: string>, which cannot be encoded images",
    ),
    "two image columns": (
        {"left": images(), "right": pa.array(IMAGES), "label": numbers()},
        r"several columns that may hold the images, left, right; rename the right one to image",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_columns_are_refused_by_name_and_type(case: str, tmp_path: Path):
    columns, complaint = REFUSED[case]
    source = write(tmp_path / "source", [pa.table(columns)])
    for refuse in (lambda: open_split(str(source)), lambda: prepare_here(source, tmp_path / "target")):
        with pytest.raises(ValueError, match=rf"train-0.parquet has .*{complaint}") as refused:
            refuse()
        assert "\n" not in str(refused.value)


def test_a_label_column_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path):
    source = write(tmp_path, [LAYOUT])
    with pytest.raises(
        ValueError, match=r"train-0.parquet has no column fine, it has the columns image: .*label: int64"
    ):
        open_split(str(source), label_column="fine")


@pytest.mark.parametrize(
    ("first", "second", "complaint"),
    [
        (
            IMAGE | LABEL,
            {"img": images()} | LABEL,
            r"train-1.parquet has the column img, .*train-0.parquet has image",
        ),
        (IMAGE | LABEL, IMAGE | {"labels": numbers()}, r"train-1.parquet has the column labels, .* has label"),
        (IMAGE | LABEL, IMAGE | {"label": WORDS}, r"train-1.parquet has text in the column label, .* has numbers"),
    ],
)
def test_shards_of_one_split_have_the_same_columns(tmp_path: Path, first: dict, second: dict, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        open_split(str(write(tmp_path, [pa.table(first), pa.table(second)])))


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (pa.array([0] * 6 + [None, 1, None]), "has no label"),
        (pa.array([None] * 6 + [1, 1, 1], pa.int8()), None),
        (pa.nulls(9), None),
        (pa.array([0.0] * 6 + [float("nan"), 1, 1]), "has the label nan, which is not a 64-bit integer"),
        (pa.array([0.0] * 6 + [None, float("nan"), 1]), "has no label"),
        (pa.array([0.0] * 6 + [0.5, 1, 1], pa.float32()), "has the label 0.5, which is not a 64-bit integer"),
        (
            pa.array([0] * 6 + [2**63, 1, 1], pa.uint64()),
            "has the label 9223372036854775808, which is not a 64-bit integer",
        ),
        (pa.array(["a"] * 6 + [None, "b", "b"]), "has no label"),
        (pa.array(["a"] * 6 + ["", "b", "b"]), "has an empty label"),
        (pa.array([b"a"] * 6 + [b"\xff\xfe", b"b", b"b"]), r"has the label b'.*', which is not text in UTF-8"),
        (
            pa.array([Decimal(0)] * 6 + [Decimal("0.5"), Decimal(1), Decimal(1)], pa.decimal32(5, 1)),
            "has the label 0.5",
        ),
        (pa.array([Decimal(0)] * 6 + [None, Decimal(1), Decimal(1)], pa.decimal32(5, 0)), "has no label"),
        (pa.array(["a"] * 6 + [None, "b", "b"]).dictionary_encode(), "has no label"),
    ],
)
def test_a_missing_label_is_named_by_file_and_row(tmp_path: Path, labels: pa.Array, said: str | None, statistics: bool):
    good = pa.table(IMAGE | {"label": pa.array(["a"] * 9) if pa.types.is_string(labels.type) else numbers()})
    bad = pa.table(IMAGE | {"label": labels})
    for number, table in enumerate((good, bad)):
        pq.write_table(table, tmp_path / f"train-{number}.parquet", row_group_size=4, write_statistics=statistics)
    row = 6 if said else 0
    complaint = rf"train-1.parquet row {row} {said or 'has no label'}.* in the column label; give shards in which every"
    for allow_paths in (False, True):
        with pytest.raises(UnlabeledError, match=complaint):
            open_split(str(tmp_path / "train-1.parquet"), allow_paths=allow_paths)


def test_a_label_below_zero_is_named_by_file_and_row(tmp_path: Path):
    split = open_split(str(write(tmp_path, [LAYOUT, pa.table(IMAGE | {"label": pa.array([0, -1] + [1] * 7)})])))
    with pytest.raises(ValueError, match=r"label -1 in .*train-1.parquet row 1 .* a label below 0 means no label"):
        split.check_labels(4)


def hollow(kind: str, rows: int = 9) -> pa.Array:
    """The images with those of rows 5 and 8 lacking bytes in one of the ways there are."""
    gone = {5, 8} if rows == 9 else set(range(rows))
    empty = b"" if "empty" in kind else None
    path = "there/{}.jpg" if "path" in kind else None
    if kind == "null struct":
        values = [None if row in gone else {"bytes": IMAGES[row], "path": None} for row in range(9)]
        return pa.array(values, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    bytes_ = [empty if row in gone else IMAGES[row] for row in range(9)]
    if kind == "null binary":
        return pa.array(bytes_, pa.large_binary())
    paths = [path and path.format(row) for row in range(9)]
    return pa.StructArray.from_arrays([pa.array(bytes_, pa.binary()), pa.array(paths, pa.string())], ["bytes", "path"])


def test_a_few_images_of_zero_bytes_are_damaged_ones_and_no_reason_to_refuse_the_rest(tmp_path: Path):
    write(tmp_path, [pa.table({"image": hollow("empty bytes")} | LABEL)])
    split = open_split(str(tmp_path))
    images = [image for group in range(split.num_row_groups) for image in read_row_group(split, group).images]
    assert [len(image) for image in images] == [0 if row in (5, 8) else len(IMAGES[row]) for row in range(9)]


@pytest.mark.parametrize("kind", ["null struct", "null binary", "null bytes"])
def test_images_without_bytes_are_named_by_file_and_row(tmp_path: Path, kind: str):
    write(tmp_path, [LAYOUT, pa.table({"image": hollow(kind)} | LABEL)])
    pq.write_table(pa.table({"image": hollow(kind)} | LABEL), tmp_path / "train-1.parquet", row_group_size=4)
    with pytest.raises(ValueError, match=r"train-1.parquet row 5 has no image bytes; give shards in which every image"):
        open_split(str(tmp_path / "train-1.parquet"))


def test_a_null_among_large_images_is_found_by_the_statistics(tmp_path: Path):
    large = [bytes(6000)] * 8 + [None]
    write(tmp_path, [pa.table({"image": pa.array(large, pa.binary())} | LABEL)])
    with pytest.raises(ValueError, match=r"train-0.parquet row 8 has no image bytes"):
        open_split(str(tmp_path))


@pytest.mark.parametrize("kind", ["null bytes", "empty bytes"])
def test_a_split_of_no_bytes_is_found_without_statistics(tmp_path: Path, kind: str):
    table = pa.table({"image": hollow(kind, rows=10)} | LABEL)
    write(tmp_path, [table], "others")
    with pytest.raises(ValueError, match=r"train-0.parquet row 0 has no image bytes"):
        open_split(str(tmp_path))


@pytest.mark.parametrize("kind", ["path, null bytes", "path, empty bytes"])
def test_paths_in_the_place_of_bytes_are_refused_by_training_and_read_by_preparing(tmp_path: Path, kind: str):
    source = write(tmp_path / "my source", [pa.table({"image": hollow(kind, rows=10)} | LABEL)])
    with pytest.raises(ValueError, match=r"row 0 has no image bytes, only the path there/0.jpg") as refused:
        open_split(str(source))
    assert f"jobs/prepare_imagenet.py --source '{source}' --target" in str(refused.value)
    complaint = (
        r"train-0.parquet row 0 has no image bytes, only the path there/0.jpg, which does not exist; give shards"
    )
    with pytest.raises(ValueError, match=complaint):
        prepare_here(source, tmp_path / "target")
    (source / "there").mkdir()
    for row, image in enumerate(IMAGES):
        (source / "there" / f"{row}.jpg").write_bytes(image)
    prepare_here(source, tmp_path / "target")
    rows = prepared_rows(tmp_path / "target", "train")
    assert sorted((encoded, label) for _, encoded, label in rows) == ROWS


@pytest.mark.parametrize("column", ["struct", "text", "null bytes"])
def test_absolute_paths_are_read_by_preparing(tmp_path: Path, column: str):
    paths = []
    for row, image in enumerate(IMAGES):
        paths.append(str(tmp_path / f"{row}.jpg"))
        Path(paths[-1]).write_bytes(image)
    given = pa.array(paths)
    if column != "text":
        given = pa.StructArray.from_arrays([given, pa.nulls(9)], ["path", "bytes" if column == "null bytes" else "x"])
    source = write(tmp_path / "source", [pa.table({"image": given} | LABEL).replace_schema_metadata(features())])
    with pytest.raises(ValueError, match=rf"row 0 has no image bytes, only the path {tmp_path}/0.jpg, and training"):
        open_split(str(source))
    prepare_here(source, tmp_path / "target")
    rows = prepared_rows(tmp_path / "target", "train")
    assert sorted((encoded, label) for _, encoded, label in rows) == ROWS


def test_a_test_split_without_labels_is_left_out_of_a_set(tmp_path: Path):
    for number, labels in enumerate(({"label": pa.nulls(9, pa.int64())}, {})):
        source = write(tmp_path / f"source {number}", [LAYOUT])
        pq.write_table(pa.table(IMAGE | labels), source / "test-0.parquet")
        manifest = prepare_here(source, tmp_path / f"target {number}")
        assert list(manifest["splits"]) == ["train"]
        assert manifest["left_out"] == ["the images of test, which have no labels"]


def test_text_classes_that_a_split_lacks_are_matched_by_name_in_preparing(tmp_path: Path):
    source = write(tmp_path / "source", [pa.table(IMAGE | {"label": WORDS})])
    few = pa.table({"image": pa.array(IMAGES[:2]), "label": ["dog", "bee"]})
    pq.write_table(few, source / "validation-0.parquet")
    manifest = prepare_here(source, tmp_path / "target")
    assert manifest["class_names"] == NAMES
    rows = prepared_rows(tmp_path / "target", "validation")
    assert {encoded: label for _, encoded, label in rows} == {IMAGES[0]: 3, IMAGES[1]: 1}


def test_a_split_in_which_nothing_is_an_image_is_refused(tmp_path: Path):
    pages = pa.array([b"<html>" + bytes(100)] * 9)
    split = open_split(str(write(tmp_path, [pa.table({"image": pages} | LABEL)])))
    with pytest.raises(
        ValueError, match=r"none of the 9 images of .* can be decoded; the first is .*train-0.parquet row 0"
    ):
        check_some_whole(split)
    some = pa.array([b"<html>"] * 8 + IMAGES[:1])
    check_some_whole(open_split(str(write(tmp_path, [pa.table({"image": some} | LABEL)]))))
