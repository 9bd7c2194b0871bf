"""The services of docker/compose.yaml, run without Docker. Oracle: a run that they train, track and store.

Each is in a network namespace of its own under the service's name, by the commands, environments and files of
compose.yaml and the health check of the Dockerfile. PostgreSQL is Debian's; moto's server stands in for SeaweedFS.
"""

import getpass
import json
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import yaml
from cluster.commands import commands_in
from cluster.hosts import Hosts, reason_against

pytestmark = [pytest.mark.slow, pytest.mark.services, pytest.mark.ray, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
_NAMES = ("head", "worker", "worker-2", "mlflow", "postgres", "s3")
_RAY_FOLDER = Path("/tmp/ray")
_SECONDS_TO_START = 150.0


class _Services:
    """compose.yaml's services with their secrets filled in, and a process in place of each container."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self._hosts, self._folder = hosts, folder
        (make_secrets,) = re.findall(r"\(umask 077; .*> \.env\)", (ROOT / "docker" / "env.example").read_text())
        shutil.copy(ROOT / "docker" / "env.example", folder)
        subprocess.run(["sh", "-c", make_secrets], cwd=folder, check=True)
        self.variables = dict(re.findall(r"(?m)^(\w+)=(.*)$", (folder / ".env").read_text()))
        text = (ROOT / "docker" / "compose.yaml").read_text()
        filled = re.sub(r"\$\{(\w+)(?::[-?][^}]*)?\}", lambda found: self.variables[found[1]], text)
        self._services = yaml.safe_load(filled)["services"]
        self.running: dict[str, subprocess.Popen] = {}

    def environment(self, service: str) -> dict[str, str]:
        """The environment of a service's container, with this machine's paths for the container's."""
        image = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(self._folder)}
        image |= {"PYTHONPATH": str(ROOT), "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        given = self._services[service]["environment"]
        mounts = [mount.split(":") for mount in self._services[service].get("volumes", ())]
        files = {target: str(ROOT / "docker" / source) for source, target, *_ in mounts if source.startswith("./")}
        return image | {name: files.get(value, value) for name, value in given.items()}

    def command(self, service: str) -> list[str]:
        command = self._services[service]["command"]
        return command if isinstance(command, list) else shlex.split(command)

    def start(self, service: str, name: str = "") -> None:
        """Starts a service's command under the name that it has on the network, its own by default."""
        name = name or service
        with (self._folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [*self._entering(name), *self.command(service)],
                env=self.environment(service),
                cwd=self._folder,
                start_new_session=True,
                stdout=log,
                stderr=log,
            )

    def start_s3(self) -> None:
        """Starts moto's server in place of SeaweedFS."""
        command = [*self._entering("s3"), sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", "8333"]
        self.running["s3"] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def run(self, name: str, command: Sequence[str], env: Mapping[str, str], timeout: float = 60) -> str:
        """The output of a command that is run in a service's namespace. Fails if the command does."""
        done = subprocess.run(
            [*self._entering(name), *command],
            env=dict(env),
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}"
        return done.stdout

    def wait_until_healthy(self, service: str, name: str = "") -> None:
        """Waits until the health check of a service, or of its image, succeeds."""
        name = name or service
        test = self._services[service].get("healthcheck", {}).get("test", ["CMD", *_image_health_check()])
        command = [*self._entering(name), *test[1:]]
        _wait_until(
            lambda: not subprocess.run(command, capture_output=True, env=self.environment(service)).returncode,
            lambda: (self._folder / f"{name}.log").read_text()[-3000:],
        )

    def _entering(self, name: str) -> list[str]:
        return self._hosts.entering(_NAMES.index(name), _RAY_FOLDER)


def _image_health_check() -> list[str]:
    (check,) = re.findall(r"HEALTHCHECK .*\\\n +CMD (\[.*\])", (ROOT / "docker" / "Dockerfile").read_text())
    return json.loads(check)


def _wait_until(what: Callable[[], bool], why_not: Callable[[], str]) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while not what():
        assert time.monotonic() < deadline, why_not()
        time.sleep(0.5)


@pytest.fixture
def services() -> Iterator[_Services]:
    reason = reason_against()
    if reason or not shutil.which("wget"):
        pytest.skip(reason or "wget is not installed")
    folder = Path("/tmp") / f"dr{os.getpid()}"
    new = not _RAY_FOLDER.exists()
    with Hosts(len(_NAMES), folder, _NAMES) as hosts:
        made = _Services(hosts, folder)
        yield made
    for process in made.running.values():
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)
    if new:
        shutil.rmtree(_RAY_FOLDER, ignore_errors=True)


@pytest.fixture
def postgres(services: _Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """PostgreSQL as its image sets it up: a user with a password, the files of docker/postgres, scram for hosts."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if Path("/usr/lib/postgresql").is_dir() else []
    if not found or getpass.getuser() != "root" or "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql), or there is no user postgres")
    folder = Path("/tmp") / f"dr-postgres-{os.getpid()}"
    folder.mkdir()
    shutil.copytree(ROOT / "docker" / "postgres", folder / "sql")
    given = services.environment("postgres")
    (folder / "password").write_text(given["POSTGRES_PASSWORD"])
    shutil.chown(folder, "postgres")
    steps = [
        f"{found[-1]}/initdb --pgdata={folder}/data --username={given['POSTGRES_USER']} --auth-local=trust "
        f"--pwfile={folder}/password {given['POSTGRES_INITDB_ARGS']}",
        f"echo host all all all scram-sha-256 >> {folder}/data/pg_hba.conf",
        f"{found[-1]}/pg_ctl --pgdata={folder}/data --wait --log={folder}/log "
        f"--options='-c listen_addresses=* -c unix_socket_directories={folder} -c fsync=off' start",
        f"createdb --host={folder} --username=mlflow {given['POSTGRES_DB']}",
        *(f"psql --host={folder} --username=mlflow --file={file} mlflow" for file in (folder / "sql").iterdir()),
    ]
    user = ["runuser", "-u", "postgres", "--", "sh", "-c"]
    services.run("postgres", [*user, " && ".join(steps)], given)
    yield
    services.run("postgres", [*user, f"{found[-1]}/pg_ctl --pgdata={folder}/data --mode=immediate stop"], given)
    shutil.rmtree(folder, ignore_errors=True)


def test_a_submitted_job_trains_and_is_tracked_and_requests_without_secrets_are_refused(
    services: _Services, postgres: None
):
    services.start_s3()
    make_buckets, bucket_environment = services.command("buckets"), services.environment("buckets")
    listing = ["python", "-c", "import boto3; print(boto3.client('s3').list_buckets()['Buckets'])"]
    _wait_until(lambda: _succeeds(services, "head", listing, bucket_environment), lambda: "no S3")
    services.run("head", make_buckets, bucket_environment)
    services.run("head", make_buckets, bucket_environment)  # again, as after `docker compose up` of an existing cluster
    services.start("mlflow")
    services.wait_until_healthy("mlflow")
    services.start("head")
    services.wait_until_healthy("head")
    for name in ("worker", "worker-2"):
        services.start("worker", name)
    for name in ("worker", "worker-2"):
        services.wait_until_healthy("worker", name)

    head = services.environment("head")
    for url, code in (("http://head:8265/api/jobs/", 401), ("http://mlflow:5000/api/2.0/mlflow/experiments/get", 401)):
        assert _status(services, url, head) == code
    assert _status(services, "http://127.0.0.1:8265/api/gcs_healthz", head) == 200
    stranger = {name: value for name, value in head.items() if name != "RAY_AUTH_TOKEN"} | {"RAY_AUTH_TOKEN": "wrong"}
    assert not _succeeds(services, "worker", ["ray", "status", "--address=head:6379"], stranger)

    (words,) = commands_in((ROOT / "docker" / "compose.yaml").read_text())
    smaller = ["--model.depth", "8", "--epochs", "1", "--execution.cpus-per-worker", "1", "--execution.name", "first"]
    job = ["python", words[0].replace("/app", str(ROOT)), *words[1:], *smaller]
    output = services.run("head", ["ray", "job", "submit", "--", *job], head, timeout=400)
    assert "succeeded" in output, output[-3000:]
    for secret in ("RAY_AUTH_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "POSTGRES_PASSWORD"):
        assert services.variables[secret] not in output
    read = (
        "import boto3, json; from mlflow import MlflowClient; client = MlflowClient('http://mlflow:5000'); "
        "store = boto3.client('s3'); "
        "summary = json.load(store.get_object(Bucket='runs', Key='first/summary.json')['Body']); "
        "run = client.get_run(summary['mlflow_run_id']); "
        "files = store.list_objects_v2(Bucket='mlflow')['Contents']; "
        "print(json.dumps([run.info.status, len(client.get_metric_history(run.info.run_id, 'train/loss')), "
        "summary['steps'], [file['Key'] for file in files]]))"
    )
    status, points, steps, files = json.loads(services.run("head", ["python", "-c", read], head).splitlines()[-1])
    assert status == "FINISHED"
    assert points == steps == 30
    assert any(file.endswith("data/model.safetensors") for file in files)

    targets = json.loads(services.run("head", ["cat", str(_RAY_FOLDER / "prom_metrics_service_discovery.json")], head))
    assert sorted(target.split(":")[0] for entry in targets for target in entry["targets"] if ":8080" in target) == [
        "10.77.0.1",
        "10.77.0.2",
        "10.77.0.3",
    ]
    os.killpg(services.running["worker"].pid, signal.SIGTERM)
    assert services.running["worker"].wait(timeout=90) is not None


def _succeeds(services: _Services, name: str, command: list[str], env: Mapping[str, str]) -> bool:
    try:
        services.run(name, command, env)
    except (AssertionError, subprocess.TimeoutExpired):
        return False
    return True


def _status(services: _Services, url: str, env: Mapping[str, str]) -> int:
    code = (
        "import sys, urllib.error, urllib.request\n"
        "try: print(urllib.request.urlopen(sys.argv[1], timeout=10).status)\n"
        "except urllib.error.HTTPError as error: print(error.code)"
    )
    return int(services.run("head", ["python", "-c", code, url], env))
