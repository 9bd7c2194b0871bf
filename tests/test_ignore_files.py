"""The ignore files. Oracle: git's own word, and what Ray's job client sends to a server that keeps it."""

import http.server
import io
import json
import os
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.hosts import Hosts, reason_against
from ray.job_submission import JobSubmissionClient

REPOSITORY = Path(__file__).parents[1]
# Data, models and what tools leave, as people have them in a clone.
DATA = [
    "cifar10/train-00000-of-00001.parquet",
    "cifar-10-batches-py/data_batch_1",
    "cifar-100-binary/train.bin",
    "cifar-10-python.tar.gz",
    "imagenet/train/n01440764/n01440764_1.JPEG",
    "imagenet/ILSVRC2012_img_train.tar",
    "data/images/0001.jpg",
    "datasets/dogs.zip",
    "train.npz",
    "embeddings.npy",
    "model.pt",
    "weights/best.pth",
    "model.safetensors",
    "last.ckpt",
    "resnet200/data/weights.safetensors",
    "shard-000000.tar",
    "set.beton",
    "photos/cat/1.PNG",
    "photos/cat/2.webp",
    "mlflow.db",
    "mlflow.db-journal",
    "mlruns/0/meta.yaml",
    "mlartifacts/1/model.bin",
    "wandb/run-1/files/output.log",
    "runs/first/recipe.json",
    "first/checkpoints/step_100/model.safetensors",
    "first/journal/00000.jsonl",
    "outputs/2026-01-01/main.log",
    "ray_results/run/result.json",
    "lightning_logs/version_0/events.out.tfevents.1",
    "node_modules/left-pad/index.js",
    ".venv/lib/python3.11/site.py",
    "venv/lib/python3.11/site.py",
    ".env",
    "train.log",
    "jobs/cifar10/test-00000-of-00001.parquet",
    "jobs/imagenet/val/n01440764/a.JPEG",
    "jobs/image.jpeg",
    "jobs/__pycache__/evaluate.cpython-311.pyc",
    "dist_resnet/data/cache/big.arrow",
    "benchmarks/results.npz",
]
# Only for Ray: by no name can it be known that these are data.
UNKNOWN = ["mine/0001", "blob", "annotations.json", "features.xyz", "second-run/ray/state.json"]
OWN_CODE = ["my_job.py", "jobs/my_job.py", "dist_resnet/model/my_shortcut.py", "configs/mine.yaml", "scripts/go.sh"]


def _tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.split("\0") if name and (REPOSITORY / name).exists()]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The repository's files and its user's own."""
    for name in _tracked():
        target = tmp_path / "clone" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, target)
    for name in DATA + UNKNOWN + OWN_CODE:
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clone" / name).write_bytes(b"x")
    with open(os.fsencode(tmp_path / "clone" / "mine") + b"/caf\xe9", "wb"):
        pass
    return tmp_path / "clone"


class _Server(http.server.BaseHTTPRequestHandler):
    """As much of Ray's job server as a submission asks; keeps the package that is sent."""

    packages: list[bytes]

    def do_GET(self) -> None:
        self._answer(200 if self.path == "/api/version" else 404, {"ray_version": "2.60.0", "version": "4"})

    def do_PUT(self) -> None:
        self.packages.append(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(200, {})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, {"submission_id": "one", "job_id": "one"})

    def _answer(self, code: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    _Server.packages = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield serving
        serving.shutdown()


@pytest.mark.parametrize("ignoring_gitignore", ["0", "1"])
def test_ray_sends_the_code_and_no_data(
    clone: Path, server: http.server.ThreadingHTTPServer, ignoring_gitignore: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", ignoring_gitignore)
    client = JobSubmissionClient(f"http://127.0.0.1:{server.server_port}")
    client.submit_job(entrypoint="true", runtime_env={"working_dir": str(clone)})
    (package,) = _Server.packages
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        sent = {name for name in archive.namelist() if not name.endswith("/")}
    code = [name for name in _tracked() if name.endswith((".py", ".toml", ".md", ".sh", ".yaml", ".sbatch", ".json"))]
    code = [name for name in code if not name.startswith(".")]
    assert set(code) | set(OWN_CODE) | {"LICENSE"} <= sent
    assert sent <= set(_tracked()) | set(OWN_CODE)
    assert len(package) < 5e6


def test_git_ignores_data_and_nothing_that_is_tracked(clone: Path):
    _tracked()

    def git(*arguments: str, given: str | None = None) -> str:
        done = subprocess.run(["git", *arguments], cwd=clone, input=given, capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stderr
        return done.stdout

    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--ignored", "--exclude-per-directory=.gitignore"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert (listed.stdout, listed.returncode) == ("", 0)
    git("init", "--quiet")
    ignored = git("check-ignore", "--stdin", given="\n".join(DATA + OWN_CODE)).splitlines()
    assert ignored == DATA


@pytest.mark.slow
@pytest.mark.ray
def test_a_submission_from_a_clone_with_300_mb_of_data_runs(clone: Path, tmp_path: Path):
    if reason := reason_against():
        pytest.skip(reason)
    sizes = {"cifar10/train-00000-of-00001.parquet": 150, "imagenet/a.tar": 100, "mine/0001": 50}
    for name, megabytes in sizes.items():
        (clone / name).write_bytes(os.urandom(megabytes << 20))
    folder = Path("/tmp") / f"dr{os.getpid()}"
    command = ["ray", "job", "submit", "--working-dir", ".", "--", "python", "jobs/cifar_preact164.py", "--help"]
    with Hosts(1, folder) as hosts:
        hosts.start_head(cpus=1)
        job = hosts.popen(0, command, cwd=clone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        said, _ = job.communicate(timeout=200)
    assert job.returncode == 0, said
    assert "--model.depth" in said
    shutil.rmtree(folder, ignore_errors=True)
