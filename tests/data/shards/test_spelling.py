"""Class names that people take for one. Oracle: Python's Unicode database, and what both spellings show."""

import unicodedata
from pathlib import Path

import pytest
from oracle.images import jpeg, smooth
from oracle.sources import Silent, in_turn, prepare_here, prepared_rows

from dist_resnet.data.prepare.options import Options
from dist_resnet.data.prepare.prepare import prepare
from dist_resnet.data.shards.spelling import describe_alike, key, nearest

CAFE, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def folders(root: Path, **splits: list[str]) -> Path:
    """Class folders of two images each."""
    for split, names in splits.items():
        for number, name in enumerate(names):
            (root / split / name).mkdir(parents=True)
            for image in range(2):
                (root / split / name / f"{image}.jpg").write_bytes(jpeg(smooth(20, 20 + number, image + len(split))))
    return root


@pytest.mark.parametrize(("train", "validation"), [(CAFE, DECOMPOSED), (DECOMPOSED, CAFE)])
def test_a_class_is_one_in_either_unicode_form(tmp_path: Path, train: str, validation: str) -> None:
    assert train != validation
    assert key(train) == key(validation)
    source = folders(tmp_path / "source", train=["apple", train], val=["apple", validation])
    manifest = prepare_here(source, tmp_path / "target")
    assert manifest["class_names"] == ["apple", train]
    assert manifest["splits"]["validation"]["class_counts"] == [2, 2]
    images = [one.read_bytes() for one in sorted((source / "val" / validation).iterdir())]
    rows = prepared_rows(tmp_path / "target", "validation")
    assert sorted(encoded for _, encoded, label in rows if label == 1) == sorted(images)


def test_a_class_in_both_forms_is_refused_for_it_would_be_two(tmp_path: Path) -> None:
    source = folders(tmp_path / "source", train=["apple", CAFE, DECOMPOSED], val=["apple", CAFE])
    with pytest.raises(ValueError, match=r"train holds 'cafe\\u0301' and 'caf\\xe9', one name in two Unicode forms"):
        prepare_here(source, tmp_path / "target")


@pytest.mark.parametrize("near", ["Cat", "cat ", " cat", "c at"])
def test_an_unknown_class_is_refused_with_the_near_one(tmp_path: Path, near: str) -> None:
    source = folders(tmp_path / "source", train=["ant", "cat"], val=["ant", near])
    with pytest.raises(ValueError, match=rf"{near} is not one of the 2 classes of .*/train, but 'cat' is; both splits"):
        prepare_here(source, tmp_path / "target")


@pytest.mark.parametrize("names", [["Cat", "cat"], ["cat", "cat "], [CAFE, DECOMPOSED], ["ice cream", "icecream"]])
def test_classes_that_look_alike_are_said(tmp_path: Path, names: list[str]) -> None:
    (line,) = describe_alike(["ant", *names, "bee"], "source")
    assert (
        f"the classes {names[0]!a} and {names[1]!a} of the source differ only in case, spaces or Unicode form" in line
    )
    if CAFE not in names:
        said = Silent()
        source = folders(tmp_path / "source", train=names)
        prepare(
            Options(source=str(source / "train"), target=str(tmp_path / "t"), split="train"), run=in_turn, progress=said
        )
        assert any("differ only in case, spaces or Unicode form; they" in one for one in said.said)


def test_classes_that_differ_or_share_a_name_are_not_said() -> None:
    assert describe_alike(["n01440764", "n01443537", "crane", "crane", "0", "00"], "source") == []
    assert nearest("dog", ["Dogs", "cat"]) is None
