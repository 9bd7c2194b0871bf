"""Every training job as a user starts it. Oracle: the design's exit codes and lines, and the paper's own settings."""

import dataclasses
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import ray
import torch
from jobs.inside import run_inside
from mlflow import MlflowClient

from dist_resnet.model import build_model
from dist_resnet.model.depths import layout_of
from dist_resnet.storage.lock import lock
from dist_resnet.train.schedule import learning_rate, num_steps

JOBS = Path(__file__).parents[2] / "jobs"
TRAINING = [
    "imagenet_preact200",
    "imagenet_preact200_aspect",
    "imagenet_preact152",
    "cifar_preact164",
    "cifar_preact1001",
    "cifar_preact1001_batch64",
]


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, JOBS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(name: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(JOBS / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.mark.parametrize("name", TRAINING)
def test_a_job_is_a_recipe_that_its_docstring_explains(name):
    job = _load(name)
    assert job.RECIPE.model.depth == int(name.split("preact")[1].split("_")[0])
    assert layout_of(job.RECIPE.model.depth)
    assert f"python jobs/{name}.py --demo" in job.__doc__
    assert "Table" in job.__doc__
    assert "Expected" in job.__doc__


@pytest.mark.parametrize("name", ["cifar_preact164", "cifar_preact1001"])
def test_the_cifar_jobs_take_the_papers_64k_steps_and_rates(name):
    recipe = _load(name).RECIPE
    total = num_steps(recipe.epochs, 50_000 // recipe.global_batch)
    assert total == 64_000
    rates = [learning_rate(recipe.schedule, step, total) for step in (0, 399, 400, 31_999, 32_000, 47_999, 48_000)]
    assert rates == [0.01, 0.01, 0.1, 0.1, 0.01, 0.01, 0.001]
    assert (recipe.optimizer.momentum, recipe.optimizer.weight_decay, recipe.augment.padding) == (0.9, 1e-4, 4)


@pytest.mark.parametrize("name", ["imagenet_preact152", "imagenet_preact200", "imagenet_preact200_aspect"])
def test_the_imagenet_jobs_take_the_papers_batch_and_rates(name):
    recipe = _load(name).RECIPE
    assert (recipe.global_batch, recipe.ghost_batch, recipe.epochs) == (256, 32, 90)
    assert recipe.evaluation.crops == (224, 320)
    steps = 1_281_167 // 256
    rates = [learning_rate(recipe.schedule, epoch * steps, 90 * steps) for epoch in (0, 29, 30, 59, 60, 89)]
    assert rates == [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]


@pytest.mark.parametrize("name", [*TRAINING, "cifar_ablation"])
def test_each_job_follows_the_code_that_its_row_of_the_tables_came_from(name):
    """Oracle: the captions of Tables 4 and 5, and the README of facebook/fb.resnet.torch on what it changed."""
    job = _load(name)
    recipe, torch_code = job.RECIPE, name in ("imagenet_preact200_aspect", "cifar_preact1001_batch64")
    optimizer, model, augment = recipe.optimizer, recipe.model, recipe.augment
    assert (optimizer.momentum, optimizer.weight_decay) == (0.9, 1e-4)
    assert (optimizer.nesterov, optimizer.decay_norm_and_bias) == (torch_code, torch_code)
    assert model.stride_on == ("conv3x3" if name == "imagenet_preact200_aspect" else "conv1x1")
    if name.startswith("imagenet"):
        kind = ("inception", "full") if torch_code else ("scale", "lighting")
        assert (augment.kind, augment.color) == kind
        assert augment.shorter_side == (256, 480)
    else:
        assert (augment.kind, augment.color) == ("pad", "none")
    assert job.EXECUTION.precision == "fp32"


def test_table_4_at_mini_batch_64_takes_200_epochs_without_warm_up():
    recipe = _load("cifar_preact1001_batch64").RECIPE
    steps = 50_000 // 64
    total = num_steps(recipe.epochs, steps)
    assert (total, recipe.global_batch, recipe.ghost_batch) == (200 * steps, 64, 32)
    # That code counts epochs from 1 and drops when the 81st and the 122nd begin.
    rates = [learning_rate(recipe.schedule, epoch * steps + more, total) for epoch, more in ((0, 0), (79, steps - 1))]
    assert rates == [0.1, 0.1]
    rates = [learning_rate(recipe.schedule, epoch * steps, total) for epoch in (80, 120, 121, 199)]
    assert rates == [0.01, 0.01, 0.001, 0.001]


@pytest.mark.parametrize("depth", [20, 110])
def test_the_cifar_job_widens_basic_units_by_zero_channels(depth):
    """Oracle: 269,722 parameters of ResNet-20 with option A (facebook/fb.resnet.torch's count), and by hand for 110."""
    model = dataclasses.replace(_load("cifar_preact164").RECIPE.model, depth=depth, placement="original")
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in build_model(model).parameters())
    n = (depth - 2) // 6
    convs = 9 * (3 * 16 + 2 * n * 16**2 + 16 * 32 + (2 * n - 1) * 32**2 + 32 * 64 + (2 * n - 1) * 64**2)
    norms = 2 * (16 + 2 * n * (16 + 32 + 64))
    assert parameters == convs + norms + 10 * 64 + 10
    assert depth != 20 or parameters == 269_722


@pytest.mark.parametrize(
    "name", [*TRAINING, "evaluate", "prepare_cifar", "probe_signal", "pull_model", "register_model"]
)
def test_help_explains_the_job(name):
    done = run_inside(name, "--help")
    assert done.returncode == 0
    assert f"{name}.py" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--no-such-option", "1"], "Unrecognized options: --no-such-option"),
        (["--data.train", "/nowhere/*.parquet"], "no Parquet shards"),
        (["--model.depth", "21"], "no network has 21 layers"),
        (["--execution.workers", "99"], "execution.workers 99 exceeds the 8 ghost batches"),
        (["--global-batch", "255"], "global_batch 255 is not a multiple of ghost_batch 32"),
    ],
)
def test_bad_input_exits_with_2_and_one_line_before_ray_starts(arguments, complaint, tmp_path):
    started = ray.is_initialized()
    done = run_inside("imagenet_preact200", *arguments, "--execution.storage", str(tmp_path))
    assert done.returncode == 2
    assert complaint in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert ray.is_initialized() == started


def test_the_shell_sees_the_same_of_bad_input(tmp_path):
    done = _run("imagenet_preact200", "--execution.workers", "99", "--execution.storage", str(tmp_path))
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "execution.workers 99 exceeds the 8 ghost batches" in done.stderr


@pytest.mark.slow
@pytest.mark.ray
def test_a_small_demo_through_the_whole_job_trains_and_is_evaluated_to_the_same_error(tmp_path):
    storage = str(tmp_path)
    options = ("--demo", "--model.depth", "8", "--epochs", "3", "--execution.storage", storage)
    done = _run("cifar_preact164", *options, "--execution.name", "small")
    assert done.returncode == 0, done.stderr
    assert "finished: 90 steps" in done.stderr
    assert re.search(r"look at it: .*\bmlflow ui --backend-store-uri sqlite:", done.stderr), done.stderr
    again = _run("cifar_preact164", *options, "--execution.name", "small")
    assert again.returncode == 0
    assert "is finished already" in again.stderr
    evaluated = _run("evaluate", "--run", f"{storage}/small", "--batch", "100", "--device", "cpu")
    assert evaluated.returncode == 0, evaluated.stderr
    summary = json.loads((tmp_path / "small" / "summary.json").read_text())
    assert json.loads(evaluated.stdout)["val/top1_error"] == pytest.approx(summary["top1_error"])
    assert summary["top1_error"] < 0.5
    store = f"sqlite:///{storage}/mlflow.db"
    options = (
        "--model",
        "models:/full_preactivation-resnet8-cifar10@champion",
        "--tracking-uri",
        store,
        "--workers",
        "2",
    )
    registered = _run("evaluate", *options, "--batch", "100", "--device", "cpu")
    assert registered.returncode == 0, registered.stderr
    assert json.loads(registered.stdout)["val/top1_error"] == pytest.approx(summary["top1_error"])
    tags = MlflowClient(store).get_model_version_by_alias("full_preactivation-resnet8-cifar10", "champion").tags
    assert tags["run_directory"] == f"{storage}/small"
    recorded = [value for key, value in tags.items() if key.startswith("evaluation.") and key.endswith(".top1_error")]
    assert [float(value) for value in recorded] == [pytest.approx(summary["top1_error"])]
    pulled = _run("pull_model", *options[:4], "--target", f"{storage}/pulled")
    assert pulled.returncode == 0, pulled.stderr
    assert summary["weights_sha256"] in pulled.stdout


@pytest.mark.parametrize(
    ("name", "arguments", "complaint"),
    [
        ("register_model", ["--run", "/nowhere"], "/nowhere is not a run"),
        ("pull_model", ["--model", "models:/a/1", "--target", "x"], "no tracking server is given"),
        ("pull_model", ["--model", "m", "--target", "x", "--tracking-uri", "htp://x"], "a tracking address is"),
        ("pull_model", ["--model", "m", "--target", "x", "--tracking-uri", "http://h.invalid"], "is not found"),
        ("pull_model", ["--model", "m", "--target", ".", "--tracking-uri", "http://localhost"], ". exists already"),
        ("evaluate", [], "give either --run or --model"),
        ("evaluate", ["--run", "/nowhere"], "/nowhere is not a run"),
    ],
)
def test_bad_input_to_the_registry_jobs_exits_with_2_and_one_line(name, arguments, complaint, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    done = run_inside(name, *arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_run_that_another_process_works_on_is_refused_before_ray_starts(images: tuple[str, str], tmp_path: Path):
    (tmp_path / "run").mkdir()
    unlock, started = lock(str(tmp_path / "run")), ray.is_initialized()
    done = run_inside(
        *("cifar_preact164", "--data.train", images[0], "--data.validation", images[1], "--model.num-classes", "4"),
        *("--global-batch", "32", "--ghost-batch", "8"),
        *("--execution.storage", str(tmp_path), "--execution.name", "run"),
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(
        f"cifar_preact164.py: {tmp_path}/run is being worked on by process {os.getpid()} on {socket.gethostname()}, "
    )
    assert done.stderr.count("\n") == 1
    assert ray.is_initialized() == started
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]
    unlock()


def test_an_address_that_no_job_can_use_is_refused_before_a_run_is_begun(
    monkeypatch, images: tuple[str, str], tmp_path: Path
):
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:10001")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # the session's may be there
    done = run_inside(
        *("cifar_preact164", "--data.train", images[0], "--data.validation", images[1], "--model.num-classes", "4"),
        *("--global-batch", "32", "--ghost-batch", "8"),
        *("--execution.storage", str(tmp_path / "runs"), "--execution.name", "run"),
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("cifar_preact164.py: RAY_ADDRESS ray://127.0.0.1:10001 is for Ray Client")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs" / "run").exists()
