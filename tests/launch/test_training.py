"""`run_training` as programs and notebooks call it. Oracle: the jobs, MLflow's own client, and a real Ray.

The programs run under `python -c`: like a notebook's, their `__main__` is no file.
"""

import dataclasses
import json
import logging
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from jobs.inside import JOBS, run_inside
from mlflow import MlflowClient

from dist_resnet import cli
from dist_resnet.launch import local
from dist_resnet.launch.training import run_training
from dist_resnet.recipe import Data, Execution, Recipe

PROGRAM = """
import json, logging, sys
from dist_resnet import Execution, Recipe, Tracking, pull, run_training

recipe = Recipe.from_dict(json.loads(sys.argv[1]))
execution = Execution(storage="runs", device="cpu", cpus_per_worker=1, log_every=1, tracking=Tracking(uri="sqlite:///t.db"))
{set_up}
summary = run_training(recipe, execution)
again = run_training(recipe, execution)
network = pull(summary["model_uri"], tracking_uri="sqlite:///t.db")
print(json.dumps([summary, again, sum(p.numel() for p in network.parameters())]))
"""


def _run(program: str, recipe: Recipe, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, json.dumps(recipe.to_dict())]
    environment = os.environ | variables
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=850)


@pytest.mark.ray
def test_a_program_trains_registers_and_pulls_on_the_ray_at_hand(ray_cluster, recipe: Recipe, tmp_path: Path):
    import ray

    address = ray.get_runtime_context().gcs_address
    done = _run(PROGRAM.format(set_up=""), recipe, tmp_path, RAY_ADDRESS=address)
    assert done.returncode == 0, done.stderr
    summary, again, parameters = json.loads(done.stdout)
    assert (summary["status"], summary["steps"]) == ("finished", 6)
    assert summary["model_uri"] == "models:/full_preactivation-resnet8-cifar10/1"
    assert again == summary
    assert parameters > 70_000
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name == f"full_preactivation-resnet8-cifar10-{summary['fingerprint'][:8]}"
    assert json.loads((run / "summary.json").read_text())["model_uri"] == summary["model_uri"]
    tags = MlflowClient(f"sqlite:///{tmp_path}/t.db").get_run(summary["mlflow_run_id"]).data.tags
    assert "version.ray" in tags
    assert "command" not in tags  # `-c` and the recipe would be none that can be given again
    # The log, as a job has it, and progress.
    assert f"INFO driver: using the Ray cluster at {address}" in done.stderr
    assert f"{run.name}: step 6/6" in done.stderr


@pytest.mark.ray
def test_a_program_that_has_set_up_logging_keeps_its_own(ray_cluster, recipe: Recipe, tmp_path: Path):
    import ray

    program = PROGRAM.format(set_up='logging.basicConfig(level="WARNING", filename="own.log")')
    address = ray.get_runtime_context().gcs_address
    done = _run(program, dataclasses.replace(recipe, epochs=1), tmp_path, RAY_ADDRESS=address)
    assert done.returncode == 0, done.stderr
    assert "INFO driver" not in done.stderr


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--data.train", "nowhere/train-*.parquet", "no Parquet shards match"),
        ("--data.train", "caf\udce9/train-*.parquet", r"caf\xe9/train-*.parquet is not UTF-8"),
        ("--execution.workers", "3", "exceeds the 2 ghost batches"),
        ("--execution.storage", "file", "file"),
        ("--execution.tracking.uri", "htp://host", "a tracking address is http://HOST:PORT"),
        ("--model.depth", "21", "21"),
        (
            "--execution.name",
            "ours",
            "no usable Ray cluster at RAY_ADDRESS 127.0.0.1:1025",
        ),  # the last check of all
    ],
)
def test_bad_input_is_a_value_error_in_the_line_of_a_job(option, value, complaint, tmp_path, monkeypatch, images):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1025")
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # the session's Ray is not this program's
    Path("file").touch()
    train, validation = images
    options = {"--data.train": train, "--data.validation": validation, "--execution.storage": "runs"}
    options |= {"--global-batch": "64", "--ghost-batch": "32", "--model.num-classes": "4", option: value}
    arguments = [word for pair in options.items() for word in pair]
    done = run_inside("cifar_preact164", *arguments)
    assert done.returncode == 2
    job = runpy.run_path(str(JOBS / "cifar_preact164.py"))
    recipe, execution, _ = cli.parse(job["RECIPE"], job["EXECUTION"], doc="", arguments=arguments)
    with pytest.raises(ValueError, match=r"^[^\n]+$") as refused:
        run_training(recipe, execution)
    assert f"cifar_preact164.py: {refused.value}\n" == done.stderr
    assert complaint in str(refused.value)
    assert not list(Path("runs").rglob("recipe.json"))


def test_a_finished_run_is_not_trained_again(recipe: Recipe, execution: Execution, caplog):
    """Without Ray: it is not started for what is there."""
    found = local.run(local.prepare_run(recipe, execution, job="test"))
    unregistered = dataclasses.replace(execution, tracking=dataclasses.replace(execution.tracking, register=False))
    caplog.set_level(logging.INFO)
    assert run_training(recipe, unregistered) == found
    assert "is finished already" in caplog.text
    other = dataclasses.replace(
        recipe, data=Data(train=recipe.data.validation, validation=recipe.data.validation, dataset="cifar10")
    )
    with pytest.raises(ValueError, match="used by a run with another recipe|are not those that the run"):
        run_training(other, unregistered)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_ray_of_its_own_is_as_large_as_each_call_needs_whoever_ends_it(recipe: Recipe, tmp_path: Path):
    done = _run(_CALLS, dataclasses.replace(recipe, epochs=1), tmp_path, RAY_ADDRESS="local")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["finished 1 True", "finished 2 True", "finished 2 True", "finished 1 False"]
    assert done.stderr.count("which was started for a smaller run") == 1
    assert done.stderr.count("starting its own Ray") == 3


_CALLS = """
import dataclasses, json, os, sys, threading
import ray
from dist_resnet import Execution, Recipe, Tracking, run_training
from dist_resnet.launch.ray.cluster import own_cluster

recipe = Recipe.from_dict(json.loads(sys.argv[1]))
execution = Execution(storage="runs", device="cpu", cpus_per_worker=1, tracking=Tracking(register=False))
cores = os.cpu_count()

def call(seed, **changes):
    summary = run_training(dataclasses.replace(recipe, seed=seed), dataclasses.replace(execution, **changes))
    print(summary["status"], changes.get("workers", 1), own_cluster(), flush=True)

call(0)
call(1, workers=2, cpus_per_worker=cores)
ray.shutdown()
thread = threading.Thread(target=call, args=(2,), kwargs={"workers": 2})
thread.start()
thread.join()
ray.shutdown()
ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR")
call(3)
"""
