"""A real MLflow server over PostgreSQL that keeps artifacts on S3. Oracle: what MLflow's client reads back.

PostgreSQL is Debian's; the S3 server is moto's, on loopback.
"""

import contextlib
import dataclasses
import getpass
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from mlflow import MlflowClient
from moto.server import ThreadedMotoServer

from dist_resnet.launch import local
from dist_resnet.recipe import Execution, Recipe, Tracking
from dist_resnet.registry import pull
from dist_resnet.registry.publish import publish_run
from dist_resnet.tracking.run_directory import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_PASSWORD = "correct horse battery"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a PostgreSQL server started for these tests."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if Path("/usr/lib/postgresql").is_dir() else []
    if not found:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    if getpass.getuser() == "root" and not _has_user("postgres"):
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    folder = Path("/tmp") / f"dr-postgres-{os.getpid()}"
    folder.mkdir()
    # PostgreSQL refuses to run as root.
    user = ["runuser", "-u", "postgres", "--"] if getpass.getuser() == "root" else []
    if user:
        shutil.chown(folder, "postgres")
    port, pg = _free_port(), found[-1]
    _quietly([*user, str(pg / "initdb"), "-D", str(folder / "data"), "--auth=trust", "--username=mlflow"])
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder} -c fsync=off"
    control = [*user, str(pg / "pg_ctl"), "-D", str(folder / "data"), "-w"]
    _quietly([*control, "-l", str(folder / "log"), "-o", options, "start"])
    try:
        _quietly([*user, str(pg / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "mlflow"])
        yield f"postgresql://mlflow@127.0.0.1:{port}/mlflow"
    finally:
        _quietly([*control, "-m", "immediate", "stop"])
        shutil.rmtree(folder, ignore_errors=True)


def _has_user(name: str) -> bool:
    return name in {entry.pw_name for entry in pwd.getpwall()}


def _quietly(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd="/tmp")
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an S3 server with a bucket `models`, which the environment names to MLflow and boto."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    values = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": _PASSWORD, "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (values | {"MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{port}"}).items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="models")
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def server(database: str, bucket: str, tmp_path: Path) -> Iterator[str]:
    """The address of an MLflow server as docs/tracking.md starts it, with basic authentication."""
    port = _free_port()
    (tmp_path / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = sqlite:///{tmp_path}/auth.db\n"
        "admin_username = admin\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = os.environ | {
        "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": _PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": os.urandom(16).hex(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", database, "--artifacts-destination", "s3://models/mlflow"]
    command += ["--app-name", "basic-auth", "--allowed-hosts", f"127.0.0.1:{port},mlflow.example.org"]
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 150
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert time.monotonic() < deadline, (tmp_path / "server.log").read_text()[-3000:]
            assert process.poll() is None, (tmp_path / "server.log").read_text()[-3000:]
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def _status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_a_run_and_its_model_are_stored_on_postgresql_and_s3(
    server: str, bucket: str, recipe: Recipe, execution: Execution, tmp_path: Path, monkeypatch, caplog
):
    assert _status(f"{server}/api/2.0/mlflow/experiments/search?max_results=1") == 401
    assert _status(f"{server}/api/2.0/mlflow/experiments/search?max_results=1", Host="evil.example.com") == 403
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", _PASSWORD)
    execution = dataclasses.replace(execution, tracking=Tracking(uri=server))
    with caplog.at_level("DEBUG", logger="dist_resnet"):
        plan = local.prepare_run(recipe, execution, job="test")
        summary = local.run(plan)
        published = publish_run(plan.directory.uri, tracking_uri=server)
    client = MlflowClient(server)
    run = client.get_run(summary["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2, 3, 4, 5, 6]
    assert "confusion_matrix.png" in [file.path for file in client.list_artifacts(run.info.run_id)]
    version = client.get_model_version(published.name, published.version)
    assert version.run_id == run.info.run_id
    model = pull(f"models:/{published.name}@champion", tracking_uri=server)
    assert sum(parameter.numel() for parameter in model.parameters()) == int(run.data.params["model.parameters"])
    keys = [
        entry["Key"] for entry in boto3.client("s3", endpoint_url=bucket).list_objects_v2(Bucket="models")["Contents"]
    ]
    assert any(key.endswith("data/model.safetensors") for key in keys)

    written = caplog.text + str(run.data.tags) + str(run.data.params) + str(version.tags)
    written += "".join(path.read_text(errors="replace") for path in (tmp_path / "runs").rglob("*.json*"))
    assert not re.search(re.escape(_PASSWORD), written)
    assert RunDirectory(plan.directory.uri).read_json("mlflow.json")["servers"][server]["ended"]
