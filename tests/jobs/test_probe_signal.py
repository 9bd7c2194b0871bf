"""jobs/probe_signal.py as a command; oracle: what its options promise, and the design's exit codes and lines."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from jobs.inside import run_inside
from PIL import Image

from dist_resnet.launch import local
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.registry.publish import publish_run

JOB = Path(__file__).parents[2] / "jobs" / "probe_signal.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(JOB), *arguments], capture_output=True, text=True, check=False, timeout=280
    )


@pytest.mark.slow
def test_all_shortcuts_at_two_depths_are_one_command(images: tuple[str, str], tmp_path: Path):
    chosen = ("--all-shortcuts", "--depths", "8", "11", "--data.train", images[0], "--ghost-batch", "16")
    kept = ("--global-batch", "32", "--execution.storage", str(tmp_path), "--execution.name", "all")
    ended = run(*chosen, *kept)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert result == json.loads((tmp_path / "all" / "signal_propagation.json").read_text())
    assert result["images"] == 16
    kinds = ["identity", "constant_scaling", "exclusive_gating", "shortcut_only_gating", "conv1x1", "dropout"]
    assert [network["label"] for network in result["networks"]] == [f"{kind}_{n}" for kind in kinds for n in (8, 11)]
    assert [network["eqn4_holds"] for network in result["networks"]] == [True] * 2 + [None] * 10
    with Image.open(tmp_path / "all" / "signal_propagation.png") as figure:
        assert figure.format == "PNG"
    assert "Eqn. (4) holds to rounding" in ended.stderr
    again = run(*chosen, *kept)
    assert json.loads(again.stdout) == result
    assert "is finished already" in again.stderr


@pytest.mark.slow
def test_a_run_and_its_registered_model_are_measured_alike_fresh_and_trained(
    recipe: Recipe, execution: Execution, tmp_path: Path
):
    plan = local.prepare_run(recipe, dataclasses.replace(execution, name="training"), job="test")
    local.run(plan)
    store = f"sqlite:///{tmp_path}/runs/mlflow.db"
    model = publish_run(plan.directory.uri, tracking_uri=store).uri
    kept = ("--execution.storage", str(tmp_path), "--execution.tracking.uri", store)
    results = []
    for source in (("--run", plan.directory.uri), ("--model", model)):
        ended = run(*source, *kept, "--execution.name", source[0].strip("-"))
        assert ended.returncode == 0, ended.stderr
        results.append(json.loads(ended.stdout))
    assert results[0] == results[1]
    assert [network["weights"] for network in results[0]["networks"]] == ["fresh", "trained"]
    assert results[0]["networks"][1]["loss"] < results[0]["networks"][0]["loss"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--no-such-option", "1"], "Unrecognized options: --no-such-option"),
        (["--execution.workers", "2"], "Unrecognized options: --execution.workers"),
        (["--run", "a", "--model", "models:/b/1"], "give either --run or --model"),
        (["--run", "a", "--depths", "20"], "--all-shortcuts and --depths are for initial weights"),
        (["--run", "a", "--model.depth", "20", "--seed", "3"], "leave out model.depth, seed"),
        (["--run", "/nowhere"], "/nowhere is not a run"),
        (["--data.train", "/nowhere/*.parquet"], "no Parquet shards"),
        (["--depths", "20", "21"], "no network has 21 layers"),
        (["--batches", "0"], "batches must be at least 1, got 0"),
        (["--execution.tracking.uri", "htp://x"], "a tracking address is"),
    ],
)
def test_bad_input_exits_with_2_and_one_line(
    arguments: list[str], complaint: str, images: tuple[str, str], tmp_path: Path
):
    data = [] if "--data.train" in arguments or "--run" in arguments else ["--data.train", images[0]]
    batch = ["--global-batch", "32"] if data else []
    ended = run_inside("probe_signal", *arguments, *data, *batch, "--execution.storage", str(tmp_path))
    assert ended.returncode == 2
    assert complaint in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_initial_weights_are_refused_for_a_run_or_model():
    ended = run_inside("probe_signal", "--initial.weights", "weights.pth")
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
    assert "--initial.weights is for training; give --run or --model to measure trained weights" in ended.stderr
