"""Addresses. Oracle: the rules of URIs as urllib has them, and what real servers on loopback then show."""

import os
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from dist_resnet.storage.uri import (
    ADDRESSES,
    SCHEMES,
    absolute_uri,
    check_no_password,
    child_uri,
    list_entries,
    name_of,
    open_uri,
    parent_uri,
    uri_of,
    without_credentials,
)


def test_messages_quote_every_kind_of_storage():
    assert ADDRESSES == "a local path, s3://bucket/path, gs://bucket/path or az://container/path"
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        open_uri("ftp://host/runs")
    assert str(caught.value) == f"ftp://host/runs cannot be opened (unknown scheme ftp://); give {ADDRESSES}"
    for scheme in SCHEMES[1:]:
        for name in scheme.names:
            with pytest.raises(ValueError, match=f"is an incomplete URI; give {ADDRESSES}$"):
                absolute_uri(f"{name}:/bucket")


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("{root}/a b/50%", "{root}/a b/50%"),
        ("file://{root}/a%20b/50%25", "{root}/a b/50%"),
        ("FILE://{root}/a b", "{root}/a b"),
        ("file://{root}/a%20b/set*/x [1]%25-*.parquet", "{root}/a b/set*/x [1]%-*.parquet"),
        ("file://{root}/*/a%20b", "{root}/*/a b"),
        ("file:///*", "/*"),
        ("{root}/a://b", "{root}/a:/b"),
    ],
)
def test_a_path_and_a_uri_of_the_same_disk_open_alike(tmp_path: Path, uri: str, path: str):
    filesystem, opened = open_uri(uri.format(root=tmp_path))
    assert isinstance(filesystem, pafs.LocalFileSystem)
    assert opened == path.format(root=tmp_path)


def test_wildcards_spaces_and_options_of_a_uri_come_apart(s3: str):
    for uri in (f"{s3}/a b/*/c%20d-[0-9].parquet?region=us-east-1", f"{s3}/a%20b/*/c d-[0-9].parquet"):
        filesystem, path = open_uri(uri)
        assert (filesystem.type_name, path) == ("s3", "bucket/a b/*/c d-[0-9].parquet")


def test_children_parents_and_names_belong_together():
    for folder in ("/runs", "s3://bucket/runs", "az://runs/a%20b?blob_storage_authority=127.0.0.1:1"):
        for name in ("first", "a run", "50%", "what?", "a#b", "[x]", "*", "réseau"):
            child = child_uri(folder, name)
            assert (parent_uri(child), name_of(child)) == (folder, name)
            assert absolute_uri(child) == child


@pytest.mark.parametrize("store", ["local", "s3", "gs", "az"])
def test_the_entries_of_a_folder_are_alike_on_every_store(store: str, tmp_path: Path, request: pytest.FixtureRequest):
    root = str(tmp_path) if store == "local" else child_uri(request.getfixturevalue(store), "entries")
    filesystem, folder = open_uri(root)
    for name in ("file", "a b/file", "deep/er/file"):
        if store == "local":
            os.makedirs(os.path.dirname(f"{folder}/{name}"), exist_ok=True)
        with filesystem.open_output_stream(f"{folder}/{name}") as stream:
            stream.write(b"four")
    found = [(one.name, one.kind.name, one.size) for one in list_entries(filesystem, folder)]
    assert found == [("a b", "Directory", 0), ("deep", "Directory", 0), ("file", "File", 4)]
    files = list_entries(filesystem, folder, folders=False)
    assert [one.name for one in files if one.kind == pafs.FileType.File] == ["file"]
    assert list_entries(filesystem, f"{folder}/nowhere") == []
    if store != "gs":  # whose anonymous access is part of its address
        shown = uri_of(filesystem, f"{folder}/a b")
        assert shown == root.partition("?")[0].rstrip("/") + ("/a b" if store == "local" else "/a%20b")


def _azure(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name in ("ACCOUNT", "KEY", "SAS_TOKEN"):
        monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)


@pytest.mark.parametrize(
    "uri",
    [
        "az://runs/a%20b",
        "abfs://runs/a b",
        "abfss://runs@account.dfs.core.windows.net/a%20b",
        "abfs://runs@account.dfs.core.chinacloudapi.cn/a%20b",
        "az://runs/a b?blob_storage_authority=127.0.0.1:1&blob_storage_scheme=http",
    ],
)
def test_addresses_of_azure_open_with_the_environments_key(uri: str, monkeypatch: pytest.MonkeyPatch):
    _azure(monkeypatch, ACCOUNT="account", KEY="a2V5")
    filesystem, path = open_uri(uri)
    assert (filesystem.type_name, path) == ("abfs", "runs/a b")


@pytest.mark.parametrize(
    ("uri", "variables", "complaint"),
    [
        ("az://runs/a", {}, r"az://runs/a cannot be opened \(set AZURE_STORAGE_ACCOUNT, or give abfs://"),
        (
            "az://me:secret@runs/a",
            {"ACCOUNT": "a"},
            r"^az://\*\*\*@runs/a cannot be opened \(an address must not contain a key",
        ),
        ("az://runs/a?sas_token=secret", {"ACCOUNT": "a"}, r"a\?sas_token=\*\*\* cannot .*unknown option sas_token"),
        ("az://runs/a?x=1", {"ACCOUNT": "a"}, "unknown option x; the options are blob_storage_authority and"),
        (
            "az://runs/a?blob_storage_authority=127.0.0.1:1&blob_storage_scheme=http",
            {"ACCOUNT": "a"},
            "cannot be opened .set AZURE_STORAGE_KEY or .*, or log in: .*Bearer token authentication is not permitted",
        ),
    ],
)
def test_what_lacks_of_an_address_of_azure_is_said_and_no_secret(uri, variables, complaint, monkeypatch):
    _azure(monkeypatch, **variables)
    with pytest.raises(ValueError, match=complaint) as caught:
        open_uri(uri)
    assert "secret" not in str(caught.value)
    assert str(caught.value).endswith(f"; give {ADDRESSES}")


@pytest.mark.parametrize(
    ("uri", "shown", "variables"),
    [
        ("s3://me:secret@bucket/runs", "s3://***@bucket/runs", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("s3://bucket?secret_key=secret", "s3://bucket?secret_key=***", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("az://me:secret@runs", "az://***@runs", "AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY"),
        ("abfs://runs@a.net/?sig=secret", "abfs://runs@a.net/?sig=***", "AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY"),
    ],
)
def test_a_secret_in_an_address_is_refused_with_where_it_belongs(uri: str, shown: str, variables: str):
    with pytest.raises(ValueError, match="^storage contains a password, ") as caught:
        check_no_password("storage", uri)
    assert str(caught.value).endswith(
        f"a password, {shown}; leave it out and give credentials in environment variables, such as {variables}"
    )
    check_no_password("storage", "abfs://runs@account.dfs.core.windows.net/first?blob_storage_authority=127.0.0.1:1")


def test_a_container_before_an_account_is_no_user():
    uri = "abfss://runs@account.dfs.core.windows.net/first"
    assert without_credentials(f"kept at {uri}") == f"kept at {uri}"
    assert without_credentials("gs://me@bucket, https://token@host") == "gs://***@bucket, https://***@host"
