"""The README's commands. Oracle: the jobs' own command lines, and the slow test runs the first as written."""

import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cluster.hosts import Hosts, reason_against
from mlflow import MlflowClient
from PIL import Image

from dist_resnet import cli

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [command for block in BLOCKS for line in block.splitlines() for command in line.split(" && ")]
JOBS = [command for command in COMMANDS if "jobs/" in command]


@pytest.mark.parametrize("command", JOBS)
def test_a_job_in_the_readme_exists_and_takes_the_options_given(command, capsys):
    words = shlex.split(command)
    words = [word.removeprefix("$PWD/") for word in words]
    (position,) = [number for number, word in enumerate(words) if word.startswith("jobs/")]
    path, arguments = REPOSITORY / words[position], words[position + 1 :]
    assert path.exists()
    if "preact" not in path.name or "--help" in arguments:
        done = subprocess.run(
            [sys.executable, str(path), "--help"], capture_output=True, text=True, check=True, timeout=60
        )
        assert all(word in done.stdout for word in arguments if word.startswith("--"))
        return
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    cli.parse(job.RECIPE, job.EXECUTION, doc=job.__doc__, arguments=arguments)


def test_the_two_commands_of_the_start_are_there():
    assert "uv run jobs/imagenet_preact200.py --demo" in COMMANDS
    assert "uv run pytest" in COMMANDS


def test_every_link_and_every_room_of_the_tree_exists():
    tree = re.search(r"## The tree\n\n```\n(.*?)```", README, flags=re.DOTALL)
    assert tree is not None
    rooms = [line.split()[0] for line in tree.group(1).splitlines()]
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    for name in rooms + links:
        assert (REPOSITORY / name).exists(), name


def test_it_is_short():
    assert README.count("\n") < 250


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_first_command_trains_the_whole_resnet_200(tmp_path):
    command = [sys.executable, "jobs/imagenet_preact200.py", "--demo", "--execution.storage", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=1780)
    assert done.returncode == 0, done.stderr
    (summary,) = tmp_path.glob("imagenet_preact200-demo-*/summary.json")
    values = json.loads(summary.read_text())
    assert values["status"] == "finished"
    assert values["top1_error"] < 0.5
    assert re.search(r"look at it: .*\bmlflow ui --backend-store-uri sqlite:", done.stderr), done.stderr


@pytest.mark.slow
@pytest.mark.services
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_three_nodes_on_one_machine_train_track_and_register(monkeypatch):
    """In a network namespace, where the ports of the README are free."""
    if reason := reason_against():
        pytest.skip(reason)
    (block,) = [block for block in BLOCKS if "ray start --head" in block]
    # Looking at it lasts until it is ended, and `ray stop` would end every Ray of the machine.
    lines = [line for line in block.splitlines() if not line.startswith((". .venv", "mlflow ui", "ray stop"))]
    for name in [name for name in os.environ if name.startswith("RAY_AUTH") or name == "RAY_API_SERVER_ADDRESS"]:
        monkeypatch.delenv(name)
    folder = Path("/tmp") / f"dr{os.getpid()}"
    log = folder / "log"
    with Hosts(1, folder) as hosts, (folder / "log").open("wb") as output:
        environment = dict(os.environ) | {"HOME": str(folder)}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        command = [*hosts.entering(0, Path("/tmp/ray")), "bash", "-euc", "\n".join(lines)]
        # Nodes outlive the shell that starts them, so that a pipe would have no end.
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=output, stderr=output, timeout=400)
        text = log.read_text()
        assert done.returncode == 0, text[-3000:]

        def said(*words: str, code: int, **variables: str) -> str:
            entering = hosts.entering(0, Path("/tmp/ray"))
            given = environment | variables
            done = subprocess.run(
                [*entering, sys.executable, *words],
                cwd=REPOSITORY,
                env=given,
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == code, done.stderr
            return done.stdout + done.stderr

        listed = said("jobs/runs.py", "list", code=0, RAY_AUTH_MODE="token")
        assert re.search(r"^first: finished, 2 workers, step 60/60", listed, flags=re.MULTILINE), listed
        refused = said("jobs/runs.py", "list", code=0)
        assert "only what the directory says: Ray's job server refuses this process" in refused
        assert "Traceback" not in refused
        client = MlflowClient(f"sqlite:///{folder}/dist_resnet/mlflow.db")
        version = client.get_model_version_by_alias("full_preactivation-resnet164-cifar10", "champion")
        assert version.run_id is not None
        assert client.get_run(version.run_id).info.status == "FINISHED"
        assert len(client.get_metric_history(version.run_id, "train/loss")) == 60
        assert "on 2 workers" in text
        assert not re.search(r"WARNING driver|Traceback", text), text[-3000:]
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_the_lines_of_python_train_register_and_classify(tmp_path: Path):
    """On a Ray of their own, in an empty home; only the file that is classified is given."""
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    Image.new("RGB", (64, 48), "brown").save(tmp_path / "dog.jpg")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    done = subprocess.run(
        [sys.executable, "-c", block],
        cwd=tmp_path,
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=880,
    )
    assert done.returncode == 0, done.stderr
    (answer,) = ast.literal_eval(done.stdout)
    assert len(answer["names"]) == 3
    assert answer["error"] is None
