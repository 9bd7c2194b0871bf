"""Names of splits; oracle: the names that published image sets have for theirs."""

import pytest

from dist_resnet.data.shards.split_names import check_one_split, resembled_split, split_of


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


@pytest.mark.parametrize(
    ("shards", "advice"),
    [
        (["/d/data/test-00000-of-00001.parquet", "/d/data/train-00000-of-00001.parquet"], "/d/data/train-*"),
        (["/d/cifar10-test.parquet", "/d/cifar10-train.parquet"], None),
        (["/d/train/0000.parquet", "/d/validation/0000.parquet"], "/d/train/*"),
        (["/d/Val_00.parquet", "/d/x.parquet", "/d/TRAIN_00.parquet"], "/d/TRAIN_*"),
        (["/d/dev/a/0.parquet", "/d/test/a/0.parquet"], "/d/dev/a/*"),
    ],
)
def test_shards_of_several_splits_are_refused(shards: list[str], advice: str | None) -> None:
    with pytest.raises(ValueError, match="/d matches shards of several splits: ") as caught:
        check_one_split("/d", shards)
    assert advice is None or f"as in {advice}, or" in str(caught.value)


@pytest.mark.parametrize(
    "shards",
    [
        [],
        ["/d/train-00000-of-00002.parquet", "/d/train-00001-of-00002.parquet"],
        ["/d/train/test/0.parquet", "/d/train/test/1.parquet"],
        ["/d/validation/part-train-0.parquet", "/d/validation/part-train-1.parquet"],
        ["/d/0000.parquet", "/d/0001.parquet"],
        ["/d/train-0.parquet", "/d/more-0.parquet"],
        ["/d/test"],
    ],
)
def test_shards_of_one_split_pass_whatever_their_folders_are_called(shards: list[str]) -> None:
    check_one_split("/d", shards)
