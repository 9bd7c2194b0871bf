"""Sets prepared from and to object stores; oracle: the images that the test wrote, on real servers on loopback."""

import json
import shutil
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from oracle.sources import (
    WRITERS,
    prepare_here,
    small_images,
    write_folders,
)

from dist_resnet.data.shards.split import open_split
from dist_resnet.storage.uri import child_uri, list_entries, open_uri


def test_a_set_is_prepared_from_s3_to_s3(tmp_path: Path, s3: str) -> None:
    boto3 = pytest.importorskip("boto3")
    local = tmp_path / "source"
    for write in WRITERS:
        shutil.rmtree(local, ignore_errors=True)
        write(local, small_images(per_class=2, validation=1))
        prepare_here(local, tmp_path / write.__name__)
        prefix = f"{tmp_path.name}/{write.__name__}"
        for file in local.rglob("*"):
            if file.is_file():
                boto3.client("s3").upload_file(str(file), "bucket", f"{prefix}/{file.relative_to(local)}")
        target = f"{s3}/{prefix}-prepared"
        mine = prepare_here(f"{s3}/{prefix}", target)
        theirs = json.loads((tmp_path / write.__name__ / "manifest.json").read_text())
        assert mine["splits"] == theirs["splits"]
        listed = boto3.client("s3").list_objects_v2(Bucket="bucket", Prefix=f"{prefix}-prepared/")["Contents"]
        names = {one["Key"].rpartition("/")[2] for one in listed if not one["Key"].endswith("/")}
        assert names == {one.name for one in (tmp_path / write.__name__).iterdir()}
        assert open_split(f"{target}/train-*.parquet").num_images == 10


def test_a_set_is_prepared_on_azures_store(tmp_path: Path, az: str) -> None:
    local, source = tmp_path / "source", child_uri(az, f"{tmp_path.name}/a source")
    write_folders(local, small_images(per_class=2, validation=1))
    filesystem, folder = open_uri(source)
    for file in local.rglob("*"):
        if file.is_file():
            with filesystem.open_output_stream(f"{folder}/{file.relative_to(local)}") as stream:
                stream.write(file.read_bytes())
    target = child_uri(az, f"{tmp_path.name}/target")
    mine, theirs = prepare_here(source, target), prepare_here(local, tmp_path / "theirs")
    assert mine["splits"] == theirs["splits"]
    names = [one.name for one in list_entries(*open_uri(target))]
    assert names == sorted(one.name for one in (tmp_path / "theirs").iterdir())
    assert open_split(child_uri(target, "train-*.parquet")).num_images == 10


def test_class_folders_on_googles_store_need_no_objects_that_stand_for_them(tmp_path: Path, gs: str) -> None:
    local = tmp_path / "source"
    write_folders(local, small_images(per_class=2, validation=1))
    filesystem, bucket = pafs.FileSystem.from_uri(gs)
    for file in local.rglob("*"):
        if file.is_file():
            with filesystem.open_output_stream(f"{bucket}/{tmp_path.name}/{file.relative_to(local)}") as stream:
                stream.write(file.read_bytes())
    mine = prepare_here(f"{gs}/{tmp_path.name}", tmp_path / "mine")
    assert mine["splits"] == prepare_here(local, tmp_path / "theirs")["splits"]
    assert mine["splits"]["train"]["images"] == 10
