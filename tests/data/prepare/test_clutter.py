"""Hidden and tools' names; oracle: the names that operating systems, network disks, archivers and editors use."""

import pytest

from dist_resnet.data.prepare.clutter import counted_as, find_clutter, is_clutter


@pytest.mark.parametrize(
    "name",
    [
        *(".DS_Store", "._cat.jpg", ".ipynb_checkpoints", ".git", ".cache", ".Trash-1000", ".nfs0001", ".hidden.jpg"),
        *("__MACOSX", "Thumbs.db", "thumbs.db", "THUMBS.DB", "ehthumbs.db", "desktop.ini", "Desktop.ini", "Icon\r"),
        *("$RECYCLE.BIN", "$Recycle.Bin", "RECYCLER", "System Volume Information", "cat.jpg:Zone.Identifier"),
        *(
            "@eaDir",
            "#recycle",
            "#snapshot",
            "@Recycle",
            "lost+found",
            "__pycache__",
            "_SUCCESS",
            "cat.jpg~",
            "~$a.doc",
        ),
    ],
)
def test_what_systems_and_tools_leave_is_no_image_class_or_split(name: str) -> None:
    assert is_clutter(name)
    assert find_clutter(f"train/cat/{name}/below/1.jpg") == f"train/cat/{name}"


@pytest.mark.parametrize("name", ["cat", "n01440764", "thumbs", "recycle", "lost", "_cat", "cat.1.jpg", "a.b", "@home"])
def test_other_names_are_kept(name: str) -> None:
    assert not is_clutter(name)
    assert find_clutter(f"train/{name}/1.jpg") is None


def test_names_that_differ_for_each_file_are_counted_as_one() -> None:
    names = ["cat/._1.jpg", "dog/._2.jpg", "cat/.nfs01", "cat/1.jpg:Zone.Identifier", "a~", "cat/.DS_Store"]
    assert [counted_as(name) for name in names] == ["._*", "._*", ".nfs*", "*:Zone.Identifier", "*~", ".DS_Store"]
