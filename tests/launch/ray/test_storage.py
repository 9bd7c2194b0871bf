"""Ray's files on stores that Arrow does not open by address. Oracle: the address, and a run that finishes there."""

import base64
import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from dist_resnet.launch.ray import storage
from dist_resnet.storage.uri import child_uri
from dist_resnet.tracking.run_directory import RunDirectory

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("uri", ["/data/runs/first", "s3://bucket/runs/first?region=eu-west-1", "gs://bucket/runs"])
def test_ray_opens_what_arrow_parses(uri: str):
    assert storage.of(uri) == {"storage_path": uri}


def test_azures_key_is_not_sent_to_other_processes(monkeypatch: pytest.MonkeyPatch):
    key = base64.b64encode(b"nobody's key, for tests").decode()
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "tests")
    monkeypatch.setenv("AZURE_STORAGE_KEY", key)
    options = storage.of("az://bucket/runs/first?blob_storage_authority=127.0.0.1:9&blob_storage_scheme=http")
    assert options["storage_path"] == "bucket/runs/first"
    sent = pickle.dumps(options["storage_filesystem"])
    assert key.encode() not in sent
    assert "_Reopened" in repr(copy.deepcopy(options["storage_filesystem"]).handler.fs)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_job_keeps_its_run_on_azures_store(az: str, tmp_path: Path):
    runs = child_uri(az, "jobs")
    command = [sys.executable, "jobs/cifar_preact164.py", "--demo", "--model.depth", "8", "--epochs", "0.5"]
    done = subprocess.run(
        [*command, "--execution.storage", runs, "--execution.name", "azure"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=880,
    )
    assert done.returncode == 0, done.stderr
    summary = RunDirectory(child_uri(runs, "azure")).read_json("summary.json")
    assert summary is not None, json.dumps(summary)
    assert summary["status"] == "finished"
