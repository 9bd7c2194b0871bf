"""Names of splits; oracle: the names that published image sets have for theirs."""

import pytest

from dist_resnet.data.splits import resembled_split, split_of


@pytest.mark.parametrize(
    ("split", "names"),
    [
        (
            "train",
            "train Train TRAIN training Training train2017 train_set training_set TrainingSet trainset trainData",
        ),
        ("train", "images_train train-images TRAINset"),
        ("validation", "val Val VAL valid Valid VALID validation Validation val2017 dev Dev eval val_images valset"),
        ("test", "test Test TEST testing Testing test2017 test_set TestSet test_images testset"),
    ],
)
def test_any_case_and_common_form_is_a_split(split: str, names: str) -> None:
    for name in names.split():
        assert split_of(name) == split, name


@pytest.mark.parametrize(
    "name", ["cat", "trains", "test_tube", "bullet train", "valley", "data", "images", "2017", "träin"]
)
def test_other_names_are_none(name: str) -> None:
    assert split_of(name) is None


def test_a_name_with_a_splits_word_in_it_resembles_that_split() -> None:
    names = ("seg_train", "seg_test", "train.X1", "val_blurred", "cat", "trainer")
    assert [resembled_split(name) for name in names] == ["train", "test", "train", "validation", None, None]
