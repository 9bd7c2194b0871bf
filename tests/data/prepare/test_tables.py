"""Images with a table of their classes, Kaggle's ImageNet among them; oracle: the set of the same class folders."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from oracle.images import jpeg, smooth
from oracle.sources import (
    SYNSETS,
    Images,
    damaged_images,
    expected_rows,
    prepare_here,
    prepared_rows,
    small_images,
    write_archives,
    write_folders,
    write_kaggle,
    write_table,
)


def sums(folder: Path) -> dict[str, str]:
    return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in folder.glob("*.parquet")}


def refusal(source: Path | str, target: Path, **options: object) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        prepare_here(source, target, **options)
    line = str(caught.value)
    assert line == " ".join(line.split())  # as the command prints it, on one line
    assert not target.exists() or not list(target.iterdir())
    return line


def of_train(images: Images) -> list[tuple[str, str, bytes]]:
    """(file, class, encoded) of the training images."""
    return [(name, synset, encoded) for synset, files in images["train"].items() for name, encoded in files]


def write_flat(
    root: Path, images: Images, lines: Sequence[str], *, folder: str = "", table: str = "labels.csv"
) -> Path:
    """The training images in one folder, and a table of the given lines in the source."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name, _, encoded in of_train(images):
        (root / folder / name).write_bytes(encoded)
    (root / table).write_text("\n".join(lines) + "\n")
    return root


# Kaggle's ImageNet


@pytest.mark.parametrize("given", ["", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"])
def test_kaggles_imagenet_is_the_set_of_its_class_folders_bit_for_bit(tmp_path: Path, given: str) -> None:
    images = damaged_images()
    root = write_kaggle(tmp_path / "a set", images)
    (root / "ILSVRC" / "Data" / "CLS-LOC" / "test").mkdir()
    (root / "ILSVRC" / "Data" / "CLS-LOC" / "test" / "ILSVRC2012_test_00000001.JPEG").write_bytes(b"x")
    manifest = prepare_here(root / given, tmp_path / "kaggle")
    theirs = prepare_here(write_folders(tmp_path / "folders", images), tmp_path / "target")
    assert sums(tmp_path / "kaggle") == sums(tmp_path / "target")
    assert manifest["left_out"] == ["test/ next to the split folders"]
    assert manifest["splits"] == theirs["splits"] | {"validation": manifest["splits"]["validation"]}
    damaged = manifest["splits"]["validation"]["damaged"]
    assert [one["image"] for one in damaged] == ["val/page.JPEG"]


def test_kaggles_imagenet_is_prepared_from_an_object_store(tmp_path: Path, s3: str) -> None:
    root = write_kaggle(tmp_path / "source", small_images(per_class=1))
    filesystem, bucket = pafs.FileSystem.from_uri(s3)
    pafs.copy_files(str(root), f"{bucket}/{tmp_path.name}", destination_filesystem=filesystem)
    for given in ("", "/ILSVRC/Data/CLS-LOC"):
        prepare_here(f"{s3}/{tmp_path.name}{given}", tmp_path / f"target{len(given)}")
        assert sorted(prepared_rows(tmp_path / f"target{len(given)}", "validation")) == expected_rows(
            small_images(per_class=1), "validation"
        )


def test_kaggles_images_in_class_folders_need_no_table(tmp_path: Path) -> None:
    images = small_images()
    write_folders(tmp_path / "source" / "ILSVRC" / "Data" / "CLS-LOC", images)
    prepare_here(tmp_path / "source", tmp_path / "target")
    assert sorted(prepared_rows(tmp_path / "target", "validation")) == expected_rows(images, "validation")


def test_kaggles_table_and_images_that_do_not_agree_are_refused_by_name(tmp_path: Path) -> None:
    root = write_kaggle(tmp_path / "source", small_images())
    table, val = root / "LOC_val_solution.csv", root / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    whole = table.read_text()
    table.write_text("\n".join(whole.splitlines()[:-2]) + "\n")
    line = refusal(root, tmp_path / "target")
    assert "val holds 2 files that LOC_val_solution.csv does not list, such as ILSVRC2012_val_00000009.JPEG;" in line
    table.write_text(whole.replace(f",{SYNSETS[2]} 85", ",n00000000 85", 1))
    line = refusal(root, tmp_path / "target")
    assert "LOC_val_solution.csv line 6 has class n00000000, which is not one of the 5 classes of the training" in line
    table.write_text(whole)
    for number in (3, 4):
        (val / f"ILSVRC2012_val_{number:08d}.JPEG").unlink()
    line = refusal(root, tmp_path / "target")
    assert "line 4 names ILSVRC2012_val_00000003, which is not below " in line
    assert "(nor are the files of 1 other lines); complete the images" in line
    table.unlink()
    assert "val has no class folders; put the images" in refusal(root, tmp_path / "target")


# Tables


def test_a_table_with_splits_is_the_set_of_class_folders_bit_for_bit(tmp_path: Path) -> None:
    images = small_images()
    prepare_here(write_folders(tmp_path / "folders", images), tmp_path / "theirs")
    for name, separator in (("labels.csv", ","), ("labels.tsv", "\t"), ("list.txt", "\t")):
        manifest = prepare_here(
            write_table(tmp_path / name, images, name=name, separator=separator), tmp_path / f"of {name}"
        )
        assert (manifest["source_kind"], manifest["left_out"]) == ("table", [])
        assert sums(tmp_path / f"of {name}") == sums(tmp_path / "theirs")


@pytest.mark.parametrize(
    ("folder", "table", "header", "line", "options"),
    [
        ("", "labels.csv", "file,label", "{name},{label}", {"split": "train"}),
        ("images", "labels.csv", "id,label", "{stem},{label}", {"split": "train"}),
        ("train", "labels.csv", "image_id,width,class", "{stem},300,{label}", {}),
        ("images", "train.csv", "filename,category", "{name},{label}", {}),
        ("images/a/b", "train.csv", "path,label", "a/b/{name},{label}", {}),
        ("images", "labels.csv", "img,breed", '"{name}","{label}"', {"split": "train", "label_column": "breed"}),
        ("images", "x.csv", "a,b", "{name},{label}", {"split": "train", "file_column": "a", "label_column": "b"}),
        ("train_images", "anything.csv", "path,label", "train_images\\{name},{label}", {}),
        ("", "labels.txt", None, "{name} {label}", {"split": "train"}),
        ("", "labels.csv", None, "{name},{label}", {"split": "train"}),
        ("train", "val_annotations.txt", None, "{name}\t{label}\t0\t0\t62\t57", {}),
        ("data", "l.csv", "file,label,part", "{name},{label},Training", {"split_column": "part"}),
        ("data", "l.csv", "file,label,split", "{name},{label},fold1", {"train_split": "fold1"}),
    ],
)
def test_columns_and_files_are_found_in_the_forms_that_people_have(
    tmp_path: Path, folder: str, table: str, header: str | None, line: str, options: dict[str, str]
) -> None:
    images = small_images()
    lines = [] if header is None else [header]
    for name, label, _ in of_train(images):
        lines.append(line.format(name=name, stem=name.rpartition(".")[0], label=label))
    source = write_flat(tmp_path / "source", images, lines, folder=folder, table=table)
    (source / table).write_bytes(b"\xef\xbb\xbf" + (source / table).read_bytes().replace(b"\n", b"\r\n"))
    prepare_here(source, tmp_path / "target", **options)
    assert sorted(prepared_rows(tmp_path / "target", "train")) == expected_rows(images, "train")


def test_a_table_of_each_split_and_tables_of_other_things(tmp_path: Path) -> None:
    images = small_images()
    source = tmp_path / "source"
    (source / "images").mkdir(parents=True)
    for split, name in (("train", "train.csv"), ("validation", "valid.csv")):
        lines = ["file,label"]
        for label, files in images[split].items():
            for file, encoded in files:
                (source / "images" / file).write_bytes(encoded)
                lines.append(f"{file},{label}")
        (source / name).write_text("\n".join(lines))
    (source / "sample_submission.csv").write_text((source / "valid.csv").read_text())
    (source / "README.txt").write_text("images of five classes\n")
    (source / "classes.csv").write_text("class,words\n" + "\n".join(f"{name},a" for name in SYNSETS))
    manifest = prepare_here(source, tmp_path / "target")
    for split in ("train", "validation"):
        assert sorted(prepared_rows(tmp_path / "target", split)) == expected_rows(images, split)
    assert manifest["left_out"] == ["3 files that train.csv and valid.csv does not list, such as README.txt"]


def test_class_folders_for_training_and_a_table_for_validation(tmp_path: Path) -> None:
    """Tiny ImageNet."""
    images = small_images()
    source = write_folders(tmp_path / "source", {"train": images["train"]})
    (source / "val" / "images").mkdir(parents=True)
    lines = []
    for label, files in images["validation"].items():
        for name, encoded in files:
            (source / "val" / "images" / name).write_bytes(encoded)
            lines.append(f"{name}\t{label}\t0\t0\t62\t57")
    (source / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    manifest = prepare_here(source, tmp_path / "target")
    assert sorted(prepared_rows(tmp_path / "target", "validation")) == expected_rows(images, "validation")
    assert manifest["left_out"] == []


def test_whole_numbers_are_the_labels_themselves(tmp_path: Path) -> None:
    images = small_images(classes=("1", "2", "11"))
    lines = ["file,label"] + [f"{name},{label}" for name, label, _ in of_train(images)]
    manifest = prepare_here(write_flat(tmp_path / "source", images, lines), tmp_path / "target", split="train")
    assert manifest["class_names"] == [str(number) for number in range(12)]
    assert manifest["left_out"] == ["9 of 12 classes have no train image"]
    found = {(name, label) for name, _, label in prepared_rows(tmp_path / "target", "train")}
    assert found == {(name, int(label)) for name, label, _ in of_train(images)}


def test_labels_win_over_class_folders_and_may_be_elsewhere(tmp_path: Path) -> None:
    images = small_images()
    source = write_folders(tmp_path / "source", images)
    lines = ["filepaths,label"]
    for split, folder in (("train", "train"), ("validation", "val")):
        lines += [
            f"{folder}/{synset}/{name},{'even' if number % 2 == 0 else 'odd'}"
            for number, (synset, files) in enumerate(images[split].items())
            for name, _ in files
        ]
    (tmp_path / "elsewhere.csv").write_text("\n".join(lines))
    manifest = prepare_here(source, tmp_path / "target", labels=str(tmp_path / "elsewhere.csv"))
    assert manifest["class_names"] == ["even", "odd"]
    assert manifest["splits"]["train"]["class_counts"] == [24, 16]
    assert manifest["splits"]["validation"]["class_counts"] == [6, 4]
    prepare_here(source, tmp_path / "folders")
    assert prepared_rows(tmp_path / "folders", "train") != prepared_rows(tmp_path / "target", "train")


def test_test_images_without_a_class_and_files_of_other_kinds_are_left_out_with_a_word(tmp_path: Path) -> None:
    images = small_images()
    source = write_table(tmp_path / "source", images)
    for number in range(3):
        (source / "images" / f"t{number}.JPEG").write_bytes(jpeg(smooth(9, 9, number)))
    (source / "images" / "note").write_bytes(b"hello")
    with (source / "labels.csv").open("a") as table:
        table.write(f"t0.JPEG,,test\nt1.JPEG,,test\nnote,{SYNSETS[0]},train\n")
    manifest = prepare_here(source, tmp_path / "target")
    assert manifest["left_out"] == [
        "2 images of test, which have no class",
        "1 files that labels.csv does not list, such as images/t2.JPEG",
        "1 files that are not images: text (1)",
    ]
    assert list(manifest["splits"]) == ["train", "validation"]


@pytest.mark.parametrize(
    ("lines", "options", "complaint"),
    [
        (["file,label", "a.JPEG,x", "b.JPEG,y"], {}, "labels.csv does not state the split of a.JPEG, and neither does"),
        (["a.JPEG,0,x", "b.JPEG,0,y"], {"split": "train"}, "has no line of column names, it begins with 'a.JPEG,0,x'"),
        (["file,kind", "a.JPEG,x", "b.JPEG,y"], {"split": "train"}, "no column with a name for classes, such as label"),
        (["what,label", "a.JPEG,x", "b.JPEG,y"], {"split": "train"}, "no column with a name for files, such as file_n"),
        (
            ["file,class_id,class_name", "a.JPEG,1,x", "b.JPEG,2,y"],
            {"split": "train"},
            "several columns of classes, cl",
        ),
        (
            ["file,image,label", "a.JPEG,a,x", "b.JPEG,b,y"],
            {"split": "train"},
            "several columns of files, file, image;",
        ),
        (["file,label,label", "a.JPEG,x,x", "b.JPEG,y,y"], {"split": "train"}, "has two columns named 'label'"),
        (["file,label", "a.JPEG,x", "b.JPEG"], {"split": "train"}, "labels.csv line 3 has 1 fields, the first line 2"),
        (["file,label", 'a.JPEG,"x', "b.JPEG,y"], {"split": "train"}, "cannot be read (unexpected end of data)"),
        (["file,label", "a.JPEG,x", "b.JPEG,"], {"split": "train"}, "line 3 has no class for b.JPEG; complete it"),
        (["file,label", "a.JPEG,x", ",y"], {"split": "train"}, "line 3 names no file; complete it, or remove"),
        (["file,label", "a.JPEG,x", "c.JPEG,y"], {"split": "train"}, "line 3 names c.JPEG, which is not below"),
        (
            ["file,label", "a.JPEG,x", "b.JPEG,y", "a,y"],
            {"split": "train"},
            "line 4 lists a, as .* line 2 does; remove",
        ),
        (["file,label", "a.JPEG,x", "b.JPEG,-1"], {"split": "train"}, "no image"),
        (["file,label", "a.JPEG,1", "b.JPEG,-1"], {"split": "train"}, "line 3 has label -1, which means no label"),
        (
            ["file,label", "a.JPEG,1", "b.JPEG,9999999"],
            {"split": "train"},
            "has label 9999999, which is not a class num",
        ),
        (
            ["file,label,split", "a.JPEG,x,train", "b.JPEG,y,fold2"],
            {},
            "line 3 has the split fold2; known are train, v",
        ),
        (
            ["file,label,split", "a.JPEG,x,train", "b.JPEG,X,val"],
            {},
            "has class X, .* 1 classes .*, but 'x' is; correct",
        ),
        (["file,label,split", "a.JPEG,x,train", "b.JPEG,x,val"], {"split": "train"}, "leave out --split train"),
        (
            ["file,label", "a.JPEG,x", "b.JPEG,y"],
            {"label_column": "kind"},
            "no column kind, it has file, label; choose",
        ),
        (["file,label", "a.JPEG,x", "b.JPEG,y"], {"split_column": "part"}, "has no column part, it has file, label"),
    ],
)
def test_tables_that_cannot_be_used_are_refused_by_line(
    tmp_path: Path, lines: list[str], options: dict[str, str], complaint: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number, name in enumerate(("a.JPEG", "b.JPEG")):
        (source / name).write_bytes(jpeg(smooth(9, 9, number)))
    (source / "labels.csv").write_text("\n".join(lines))
    if complaint == "no image":  # texts and numbers: -1 is a text like any other
        assert prepare_here(source, tmp_path / "target", **options)["class_names"] == ["-1", "x"]
        return
    with pytest.raises(ValueError, match=complaint.replace("(", r"\(").replace(")", r"\)")):
        prepare_here(source, tmp_path / "target", **options)
    assert not list((tmp_path / "target").iterdir())


def test_several_tables_or_names_that_could_be_meant_are_refused(tmp_path: Path) -> None:
    images = small_images()
    source = write_table(tmp_path / "source", images)
    (source / "more.csv").write_text((source / "labels.csv").read_text())
    line = refusal(source, tmp_path / "target")
    assert line.endswith(f"list the same images; choose one, such as --labels {source}/labels.csv")
    assert prepare_here(source, tmp_path / "chosen", labels=f"{source}/labels.csv")["splits"]
    (source / "more.csv").unlink()
    (source / "images2").mkdir()
    name = images["train"][SYNSETS[0]][0][0]
    (source / "images2" / name).write_bytes(b"x")
    line = refusal(source, tmp_path / "target")
    assert f"line 2 names {name}, which may be {source}/images/{name} or {source}/images2/{name}; write the" in line


def test_labels_that_are_no_table_are_refused(tmp_path: Path) -> None:
    source = write_table(tmp_path / "source", small_images())
    assert "absent.csv does not exist; give a CSV file" in refusal(
        source, tmp_path / "target", labels=str(tmp_path / "absent.csv")
    )
    assert "is a folder; give a CSV file" in refusal(source, tmp_path / "target", labels=str(tmp_path))
    for content, complaint in ((b"", "is empty"), (b"\xff\xfe\x00", "is not UTF-8 text; save the table as CSV")):
        (tmp_path / "odd.csv").write_bytes(content)
        assert complaint in refusal(source, tmp_path / "target", labels=str(tmp_path / "odd.csv"))


def test_options_of_tables_are_refused_for_other_sources(tmp_path: Path) -> None:
    folders = write_folders(tmp_path / "folders", small_images())
    line = refusal(folders, tmp_path / "target", file_column="file")
    assert line.endswith("has no table of images and classes, which --file-column needs; give its address as --labels")
    archives = write_archives(tmp_path / "archives", small_images())
    assert "which --split-column needs" in refusal(archives, tmp_path / "target", split_column="part")


def test_splits_of_two_kinds_are_refused(tmp_path: Path) -> None:
    images = small_images()
    source = write_folders(tmp_path / "source", {"validation": images["validation"]})
    write_flat(
        source, images, ["file,label", *(f"{name},{label}" for name, label, _ in of_train(images))], folder="train"
    )
    line = refusal(source, tmp_path / "target")
    assert f"{source}/val has class folders, {source}/train has none; give all splits of one kind" in line


def test_a_table_beside_class_folders_does_no_harm(tmp_path: Path) -> None:
    images = small_images()
    source = write_folders(tmp_path / "source", images)
    lines = ["file,label", *(f"{label}/{name},wrong" for name, label, _ in of_train(images))]
    (source / "train.csv").write_text("\n".join(lines))
    assert prepare_here(source, tmp_path / "target")["left_out"] == ["train.csv next to the split folders"]
    (source / "train" / "labels.csv").write_text("\n".join(lines))
    prepare_here(source / "train", tmp_path / "alone", split="train")
    assert sorted(prepared_rows(tmp_path / "alone", "train")) == expected_rows(images, "train")


def test_links_to_folders_of_images_are_followed_once(tmp_path: Path) -> None:
    images = small_images()
    source = write_table(tmp_path / "source", images)
    (source / "images").rename(tmp_path / "elsewhere")
    (source / "images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(source)
    prepare_here(source, tmp_path / "target")
    assert sorted(prepared_rows(tmp_path / "target", "train")) == expected_rows(images, "train")
