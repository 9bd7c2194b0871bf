"""Classes of two sides, compared by name. Oracle: dictionaries from name to label, and what the tests wrote."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from oracle.images import jpeg, read_row_group, smooth
from oracle.sources import prepare_here, write_parquet

from dist_resnet.data.shards import classes
from dist_resnet.data.shards.split import Split, open_split
from dist_resnet.data.shards.write import encode_table


def shards(folder: Path, labels: Sequence[int], names: Sequence[str] | None) -> Split:
    """A split of images that nobody decodes, with these labels and names."""
    folder.mkdir(parents=True, exist_ok=True)
    table = encode_table([b"x"] * len(labels), ["x"] * len(labels), np.array(labels, np.int64), names or ["x"])
    pq.write_table(table if names else table.replace_schema_metadata(None), folder / "x.parquet")
    return open_split(str(folder))


def read(split: Split) -> list[int]:
    return [label for number in range(split.num_row_groups) for label in read_row_group(split, number).labels.tolist()]


def refused(complaint: str, split: Split, names: Sequence[str] | None, num_classes: int, **options) -> str:
    with pytest.raises(ValueError, match=complaint) as caught:
        classes.match(split, names, num_classes, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_same_names_in_another_order_are_mapped_and_said_in_one_line(tmp_path: Path) -> None:
    found = classes.match(shards(tmp_path, [0, 1, 2, 1], ["c", "a", "b"]), ["a", "b", "c"], 3)
    assert read(found.split) == [2, 0, 1, 0]
    (note,) = found.notes
    assert note == (
        f"the validation images at {tmp_path} have their classes in another order than the model; they are "
        "matched by name: "
        "label 0, 'c', is the model's class 2"
    )
    assert found.lacking == ()


def test_the_same_names_in_the_same_order_need_no_map_and_no_word(tmp_path: Path) -> None:
    found = classes.match(shards(tmp_path, [0, 1, 2], ["a", "b", "c"]), ["a", "b", "c"], 3)
    assert found.split.label_map is None
    assert (found.notes, found.lacking) == ((), ())


def test_folders_named_by_numbers_are_sorted_as_text_and_still_found(tmp_path: Path) -> None:
    model = sorted(str(number) for number in range(12))
    assert model[:4] == ["0", "1", "10", "11"]
    found = classes.match(shards(tmp_path, range(12), [str(number) for number in range(12)]), model, 12)
    assert [model[label] for label in read(found.split)] == [str(number) for number in range(12)]
    assert "label 2, '2', is the model's class 4" in found.notes[0]


def test_a_subset_is_mapped_and_what_it_lacks_is_said(tmp_path: Path) -> None:
    model = [f"class {number:02}" for number in range(12)]
    found = classes.match(shards(tmp_path, [0, 1, 0], ["class 07", "class 03"]), model, 12)
    assert read(found.split) == [7, 3, 7]
    assert set(found.lacking) == set(model) - {"class 07", "class 03"}
    assert found.notes[-1].endswith(
        "have 2 of the model's 12 classes; without images: 'class 00', 'class 01', 'class 02', 'class 04', 'class 05' "
        "and 5 more"
    )


def test_a_subset_at_the_front_is_no_other_order(tmp_path: Path) -> None:
    found = classes.match(shards(tmp_path, [0, 1], ["a", "b"]), ["a", "b", "c"], 3)
    assert read(found.split) == [0, 1]
    assert found.lacking == ("c",)
    assert len(found.notes) == 1


def test_a_prepared_set_tells_by_its_footers_which_classes_have_no_image(tmp_path: Path) -> None:
    rows = [("a", jpeg(smooth(9, 9, 1)), 2), ("b", jpeg(smooth(9, 9, 2)), 0)]
    write_parquet(tmp_path / "source" / "train-0.parquet", rows, ["x", "y", "z"])
    prepare_here(tmp_path / "source", tmp_path / "target")
    split = open_split(f"{tmp_path}/target/train-*.parquet")
    assert classes.match(split, ["z", "y", "x"], 3).lacking == ("y",)
    assert classes.match(split, ["x", "y", "z"], 3).lacking == ("y",)
    assert classes.match(split, ["x", "y", "z"], 3, by="numbers").lacking == ("y",)


def test_an_unknown_class_is_refused_by_the_first_image_that_has_one(tmp_path: Path) -> None:
    split = shards(tmp_path, [0, 2, 1], ["cat", "wolf", "newt"])
    said = refused("is not one of the model's 4 classes", split, ["ant", "bee", "cat", "dog"], 4)
    assert said == (
        f"class 'newt' of the validation images at {tmp_path} (label 2, first in {tmp_path}/x.parquet row 1) is not "
        "one of the model's 4 classes, 'ant', 'bee', 'cat', 'dog'; give images of the model's classes, or "
        "--data.match-classes numbers if equal labels are equal classes"
    )


@pytest.mark.parametrize("name", ["Cat", "cat ", " cat", "c at", "CAT"])
def test_names_that_differ_in_case_or_spaces_are_others_and_the_near_one_is_named(tmp_path: Path, name: str) -> None:
    refused(
        f"class '{name}' of .*'ant', 'cat'; 'cat' is; give images", shards(tmp_path, [0], [name]), ["ant", "cat"], 2
    )


def test_an_accent_may_be_spelled_in_either_way(tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "café")
    assert apart != "café"
    assert read(classes.match(shards(tmp_path, [0, 1], ["bar", apart]), ["café", "bar"], 2).split) == [1, 0]


def test_an_unknown_class_without_images_is_said_and_not_refused(tmp_path: Path) -> None:
    found = classes.match(shards(tmp_path, [2, 0], ["b", "background", "a"]), ["a", "b"], 2)
    assert read(found.split) == [0, 1]
    assert any(
        "name classes that the model does not know, but have no image of them: 'background'" in note
        for note in found.notes
    )


CRANES = ["ant", "crane", "bee", "crane", "cat"]


def test_names_that_two_classes_share_are_fine_where_nothing_moves(tmp_path: Path) -> None:
    assert read(classes.match(shards(tmp_path / "same", range(5), CRANES), CRANES, 5).split) == [0, 1, 2, 3, 4]
    others_moved = ["cat", "crane", "bee", "crane", "ant"]
    assert read(classes.match(shards(tmp_path / "moved", range(5), others_moved), CRANES, 5).split) == [4, 1, 2, 3, 0]


@pytest.mark.parametrize(
    "names",
    [["ant", "crane"], ["crane", "ant", "bee", "crane", "cat"], ["ant", "crane", "crane"], ["ant", "crane", "bee"]],
)
def test_names_that_two_classes_share_are_not_guessed(tmp_path: Path, names: list[str]) -> None:
    refused("class 'crane' .* cannot be matched by name: ", shards(tmp_path, range(len(names)), names), CRANES, 5)


def test_two_labels_of_one_name_are_not_merged(tmp_path: Path) -> None:
    refused(
        "'b' .* cannot be matched by name: 2 of its labels and 1 of the model's classes have that name",
        shards(tmp_path, [0, 1, 2], ["a", "b", "b"]),
        ["a", "b"],
        2,
    )


def test_a_subset_without_the_shared_names_is_mapped(tmp_path: Path) -> None:
    assert read(classes.match(shards(tmp_path, [0, 1], ["cat", "ant"]), CRANES, 5).split) == [4, 0]


def test_numbered_names_in_the_metadata_are_compared_like_listed_ones(tmp_path: Path) -> None:
    split = shards(tmp_path, [0, 1, 2], ["x"])
    table = pq.read_table(split.shards[0])
    features = b'{"info": {"features": {"label": {"names": {"0": "c", "2": "b", "1": "a"}, "_type": "ClassLabel"}}}}'
    pq.write_table(table.replace_schema_metadata({b"huggingface": features}), split.shards[0])
    assert read(classes.match(open_split(str(tmp_path)), ["a", "b", "c"], 3).split) == [2, 0, 1]


def test_labels_of_text_are_names_and_compared_like_listed_ones(tmp_path: Path) -> None:
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = pa.array([{"bytes": b"x", "path": None}] * 4, image)
    pq.write_table(pa.table({"image": rows, "label": ["dog", "cat", "owl", "dog"]}), tmp_path / "x.parquet")
    split = open_split(str(tmp_path))
    found = classes.match(split, ["owl", "ant", "dog", "cat"], 4)
    assert read(found.split) == [2, 3, 0, 2]
    assert found.lacking == ("ant",)
    refused("class 'owl' of .*row 2.* is not one of the model's 2 classes, 'cat', 'dog'", split, ["cat", "dog"], 2)
    record = {"classes": {"names": None, "validation_labels": found.split.label_map.tolist()}}
    assert read(classes.as_recorded(split, record, 4).split) == [2, 3, 0, 2]


def test_without_names_on_both_sides_there_is_nothing_to_say(tmp_path: Path) -> None:
    found = classes.match(shards(tmp_path, [0, 2, 1], None), None, 3)
    assert found.split.label_map is None
    assert found.notes == ()


@pytest.mark.parametrize(
    ("theirs", "ours", "lack"),
    [(["a", "b", "c"], None, "the model's classes have"), (None, ["a", "b", "c"], "they have")],
)
def test_names_on_one_side_alone_cannot_be_compared_and_that_is_said(tmp_path: Path, theirs, ours, lack) -> None:
    found = classes.match(shards(tmp_path, [0, 2, 1], theirs), ours, 3)
    assert read(found.split) == [0, 2, 1]
    assert found.notes == (
        f"the classes of the validation images at {tmp_path} cannot be compared with the model's, because {lack} "
        "no names; "
        "equal labels are taken as equal classes",
    )


def test_numbers_have_to_fit_where_names_cannot_be_compared(tmp_path: Path) -> None:
    refused(
        "label 3 in .*row 1 is not one of the model's classes, 0 .. 2",
        shards(tmp_path / "a", [0, 3], None),
        ["a", "b", "c"],
        3,
    )
    refused(
        "label -1 in .*row 0 is not one of the model's classes, 0 .. 2", shards(tmp_path / "b", [-1, 0], None), None, 3
    )
    # Outputs that the training images have no class for are no classes.
    refused("label 3 in .* is not one of the model's classes", shards(tmp_path / "d", [3], None), ["a", "b", "c"], 5)
    refused(
        "name 2 classes, the model has 3 classes without names, so they cannot be matched; .*match-classes numbers",
        shards(tmp_path / "c", [0, 1], ["b", "c"]),
        None,
        3,
    )


def test_a_label_that_its_own_shards_have_no_name_for_is_refused(tmp_path: Path) -> None:
    refused(
        "label 2 in .*row 1 has no class name: the shards name 2 classes, 0 .. 1",
        shards(tmp_path, [0, 2], ["a", "b"]),
        ["b", "a", "c"],
        3,
    )
    with pytest.raises(ValueError, match="label 2 in .*row 1 has no class name"):
        classes.of_training(open_split(str(tmp_path)), 3, spare_outputs=False)


def test_a_label_below_zero_beside_names_is_refused(tmp_path: Path) -> None:
    refused("label -1 in .*row 1", shards(tmp_path, [0, -1], ["b", "a"]), ["a", "b"], 2)


def test_equal_numbers_are_equal_classes_where_that_is_asked_for(tmp_path: Path) -> None:
    split = shards(tmp_path, [0, 1], ["n01440764", "n01443537"])
    found = classes.match(split, ["tench", "goldfish"], 2, by="numbers")
    assert read(found.split) == [0, 1]
    assert len(found.notes) == 1
    assert (
        "differ from the model's; equal labels are taken as equal classes because of --data.match-classes"
        in found.notes[0]
    )
    refused("label 1 in .* is not one of the model's classes", split, ["tench"], 2, by="numbers")


def test_the_models_names_are_those_of_its_training_images(tmp_path: Path) -> None:
    assert classes.of_training(shards(tmp_path / "a", [0, 1], ["b", "a"]), 2, spare_outputs=False) == ("b", "a")
    assert classes.of_training(shards(tmp_path / "b", [0, 1], None), 2, spare_outputs=False) is None
    # As where a set was filtered and kept the names of all.
    assert classes.of_training(shards(tmp_path / "c", [0, 1], ["a", "b", "c"]), 2, spare_outputs=False) == ("a", "b")


@pytest.mark.parametrize("names", [["a", "b", "c"], None])
def test_outputs_without_a_class_are_refused_unless_that_is_asked_for(tmp_path: Path, names) -> None:
    split = shards(tmp_path, [0, 2, 1], names)
    complaint = (
        "the model has 1000 outputs, .* have 3 classes; give --model.num-classes 3, .* --execution.spare-outputs"
    )
    with pytest.raises(ValueError, match=complaint):
        classes.of_training(split, 1000, spare_outputs=False)
    found = classes.of_training(split, 1000, spare_outputs=True)
    assert found == (names and tuple(names))


def test_one_class_alone_has_no_number_of_outputs_to_give(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"have 1 class; give images of two classes or more"):
        classes.of_training(shards(tmp_path, [0, 0], ["a"]), 2, spare_outputs=False)


def test_fewer_outputs_than_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"label 2 in .*--model.num-classes"):
        classes.of_training(shards(tmp_path, [0, 2], ["a", "b", "c"]), 2, spare_outputs=False)


def test_preparing_maps_the_validation_shards_to_the_training_shards_classes(tmp_path: Path) -> None:
    images = [jpeg(smooth(9, 9, number)) for number in range(4)]
    write_parquet(tmp_path / "source/train-0.parquet", [(f"{n}", images[n], n) for n in range(3)], ["a", "b", "c"])
    write_parquet(tmp_path / "source/validation-0.parquet", [("v", images[3], 0), ("w", images[0], 1)], ["c", "b"])
    prepare_here(tmp_path / "source", tmp_path / "target")
    validation = open_split(f"{tmp_path}/target/validation-*.parquet")
    assert validation.class_names == ("a", "b", "c")
    of_image = {
        image.tobytes(): label
        for group in [read_row_group(validation, 0)]
        for image, label in zip(group.images, group.labels.tolist(), strict=True)
    }
    assert of_image == {images[3]: 2, images[0]: 1}


def test_preparing_refuses_validation_shards_of_other_classes_or_without_names(tmp_path: Path) -> None:
    image = jpeg(smooth(9, 9, 1))
    write_parquet(tmp_path / "a/train-0.parquet", [("a", image, 0), ("b", image, 1)], ["a", "b"])
    write_parquet(tmp_path / "a/validation-0.parquet", [("a", image, 0)], ["d"])
    with pytest.raises(
        ValueError, match=r"class 'd' of the validation images at .*; give images of the model's classes$"
    ):
        prepare_here(tmp_path / "a", tmp_path / "target")
    bare = pq.read_table(tmp_path / "a/validation-0.parquet").replace_schema_metadata(None)
    assert isinstance(bare, pa.Table)
    pq.write_table(bare, tmp_path / "a/validation-0.parquet")
    with pytest.raises(ValueError, match="the shards of train have class names, those of validation have none"):
        prepare_here(tmp_path / "a", tmp_path / "target")
