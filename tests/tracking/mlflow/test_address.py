"""Tracking addresses. Oracle: the forms that MLflow knows, and a name that is reserved for not existing (RFC 2606)."""

import contextlib
import importlib.util
import sqlite3
from pathlib import Path

import pytest
from oracle.immutable import immutable

from dist_resnet.tracking import commands
from dist_resnet.tracking.mlflow import address, database
from dist_resnet.tracking.run_directory import RunDirectory


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:5000",
        "https://localhost",
        "http://user:secret@localhost:5000/path",
        "sqlite:////tmp/not-yet.db",
        "postgresql://user:secret@db.example.org/mlflow",
        "postgresql+psycopg2://user@db/mlflow",
    ],
)
def test_a_valid_tracking_address_is_accepted(uri: str):
    address.check(uri)


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("htp://host", "a tracking address is http://HOST:PORT"),
        ("http://", "a tracking address is"),
        ("localhost:5000", "a tracking address is"),
        ("http://host:port", "does not parse"),
        ("http://host:99999", "does not parse"),
        (
            "http://user:secret@host.invalid",
            r"the host of the tracking address http://\*\*\*@host.invalid is not found",
        ),
    ],
)
def test_an_invalid_one_is_refused_in_one_line_without_the_password(uri: str, complaint: str):
    with pytest.raises(ValueError, match=complaint) as caught:
        address.check(uri)
    assert "secret" not in str(caught.value)


@pytest.fixture
def storage(tmp_path: Path, monkeypatch) -> RunDirectory:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "DATABRICKS_HOST", "DATABRICKS_CONFIG_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(tmp_path / "databricks.cfg"))
    return RunDirectory(str(tmp_path / "runs" / "run"))


def _refused(storage: RunDirectory, uri: str, complaint: str, monkeypatch) -> None:
    """An address is refused in one line wherever it comes from, and the line names the variable."""
    for tracking_uri, variable in ((uri, None), (None, "MLFLOW_TRACKING_URI"), (None, "MLFLOW_REGISTRY_URI")):
        with monkeypatch.context() as patch:
            if variable:
                patch.setenv(variable, uri)
            with pytest.raises(ValueError, match=complaint) as caught:
                address.store_of(storage, tracking_uri)
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)
        assert str(caught.value).startswith(f"{variable}: " if variable else "")


@pytest.mark.parametrize(
    "uri", ["./mlruns", "mlruns", "/data/mlruns", "~/mlruns", "file:///data/mlruns", "file:mlruns"]
)
def test_a_folder_is_refused_with_the_command_that_moves_it(uri: str, storage, monkeypatch):
    _refused(storage, uri, f"no longer tracks in folders: `{commands.mlflow()} migrate-filestore`", monkeypatch)


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("localhost:5000", "perhaps http://localhost:5000"),
        ("s3://bucket/mlruns", "a tracking address is"),
        ("uc:http://host", "a tracking address is"),
        ("postgres://user:secret@host/mlflow", "a tracking address is"),
        ("sqlite://", "is a database in memory"),
        ("sqlite:///:memory:", "is a database in memory"),
        ("sqlite:///", "is a database in memory"),
        ("sqlite:/data/mlflow.db", "does not parse"),
        ("sqlite://data/mlflow.db", "has no file after a third slash"),
        ("postgresql+nothing://user:secret@host/mlflow", "names an unknown driver"),
        ("postgresql://user:secret@host.invalid/mlflow", r"the host of .*\*\*\*@host.invalid/mlflow is not found"),
    ],
)
def test_addresses_that_mlflow_cannot_track_in_are_refused(uri: str, complaint: str, storage, monkeypatch):
    _refused(storage, uri, complaint, monkeypatch)


@pytest.mark.parametrize(
    ("scheme", "package"), [("postgresql+psycopg2", "psycopg2"), ("mysql", "MySQLdb"), ("mysql+pymysql", "pymysql")]
)
def test_a_database_without_its_driver_is_refused_by_the_packages_name(scheme, package, storage, monkeypatch):
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    complaint = f"needs the Python package {package}, which is not installed"
    _refused(storage, f"{scheme}://user:secret@127.0.0.1/mlflow", complaint, monkeypatch)


def test_databricks_is_refused_without_credentials_and_accepted_with_them(storage, monkeypatch, tmp_path: Path):
    for uri, profile in (("databricks", "DEFAULT"), ("databricks://team", "team")):
        with pytest.raises(ValueError, match=f"set DATABRICKS_HOST and .* or add the profile {profile} to"):
            address.store_of(storage, uri)
    (tmp_path / "databricks.cfg").write_text("[team]\nhost = https://example.org\ntoken = secret\n")
    assert address.store_of(storage, "databricks://team") == "databricks://team"
    monkeypatch.setenv("DATABRICKS_HOST", "https://example.org")
    assert address.store_of(storage, "databricks") == "databricks"


def test_a_file_that_is_not_a_database_is_refused(storage, monkeypatch, tmp_path: Path):
    (tmp_path / "notes.db").write_text("no database " * 100)
    _refused(storage, f"sqlite:///{tmp_path}/notes.db", "is not a sqlite database", monkeypatch)
    # The one next to the runs, too.
    store = Path(storage.parent.uri, "mlflow.db")
    store.parent.mkdir()
    store.write_text("no database " * 100)
    with pytest.raises(ValueError, match=f"{store} is not a sqlite database .* --execution.tracking.uri"):
        address.store_of(storage, None)


def test_unwritable_files_and_folders_are_refused_by_path(storage, monkeypatch, tmp_path: Path):
    file, folder = tmp_path / "store.db", tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    for path in (file, folder / "store.db"):
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE anything (value)")
    read_only = f"sqlite:///file:{folder}/store.db?mode=ro&uri=true"
    _refused(storage, read_only, f"{folder}/store.db cannot be written", monkeypatch)
    _refused(storage, f"sqlite:///{folder}", f"{folder} cannot be written", monkeypatch)
    _refused(storage, f"sqlite:///{file}/store.db", f"{file}/store.db cannot be written", monkeypatch)
    with immutable(file, folder):
        for path in (file, folder / "store.db", folder / "new.db", folder / "new" / "new.db"):
            _refused(storage, f"sqlite:///{path}", f"{path} cannot be written", monkeypatch)
        # A run that resumes does not depend on its tracking.
        assert address.store_of(storage, f"sqlite:///{file}", resolve=False)


@pytest.mark.parametrize("name", ["what?", "a%20b", "50%", "a#b", "my runs"])
def test_the_store_next_to_the_runs_works_in_folders_of_any_name(name: str, monkeypatch, tmp_path: Path):
    monkeypatch.delenv(address.VARIABLE, raising=False)
    uri = address.store_of(RunDirectory(str(tmp_path / name / "run")), None)
    database.connect(uri)
    assert (tmp_path / name / "mlflow.db").is_file()
    assert database.sqlite_file(uri) == tmp_path / name / "mlflow.db"
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_check_does_not_change_a_store(storage, tmp_path: Path):
    file = tmp_path / "store.db"
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA user_version = 7")
    before = file.read_bytes()
    for uri in (f"sqlite:///{file}", f"sqlite:///{tmp_path}/new/store.db"):
        assert address.store_of(storage, uri) == uri
    assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store.db"]


def test_a_store_that_another_process_writes_is_accepted(tmp_path: Path):
    with contextlib.closing(sqlite3.connect(tmp_path / "store.db")) as writer:
        writer.execute("CREATE TABLE anything (value)")
        writer.execute("BEGIN EXCLUSIVE")
        database.check_sqlite(f"sqlite:///{tmp_path}/store.db", to_write=True, lock_seconds=0.1)


def test_runs_on_an_object_store_are_tracked_in_the_home_directory(tmp_path: Path, monkeypatch):
    monkeypatch.delenv(address.VARIABLE, raising=False)
    for name, value in {"HOME": str(tmp_path), "AZURE_STORAGE_ACCOUNT": "account", "AZURE_STORAGE_KEY": "a2V5"}.items():
        monkeypatch.setenv(name, value)
    options = "?blob_storage_authority=127.0.0.1:1&blob_storage_scheme=http"
    for uri in ("az://runs/run", f"az://runs/run{options}", "abfs://runs@account.dfs.core.windows.net/run"):
        assert address.store_of(RunDirectory(uri), None) == f"sqlite:///{tmp_path}/dist_resnet/mlflow.db"
