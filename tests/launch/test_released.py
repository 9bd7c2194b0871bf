"""Files of released formats. Oracle: the values that the release recorded when it wrote them.

`tests/released/first.frozen`, a zip archive, holds a finished run of ResNet-8, the 136 images that it was trained and
evaluated on, and the data of its package, as commit 1a30ca7 wrote them.
"""

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from dist_resnet.launch import local
from dist_resnet.launch.evaluate import evaluate_trained
from dist_resnet.launch.trained import of_run
from dist_resnet.model import build_model
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.registry import predictor
from dist_resnet.tracking.journal import read_journal
from dist_resnet.tracking.records import Session
from dist_resnet.tracking.run_directory import RunDirectory

FROZEN = Path(__file__).parents[1] / "released" / "first.frozen"


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """The unpacked files; the recipe says where the images are now."""
    with zipfile.ZipFile(FROZEN) as archive:
        archive.extractall(tmp_path / "first")
    recipe = tmp_path / "first" / "run" / "recipe.json"
    recipe.write_text(recipe.read_text().replace('"/images/', f'"{tmp_path}/first/images/'))
    return tmp_path / "first"


@pytest.fixture
def summary(released: Path) -> dict:
    return json.loads((released / "run" / "summary.json").read_text())


def _recipe(released: Path) -> Recipe:
    return Recipe.from_dict(json.loads((released / "run" / "recipe.json").read_text())["recipe"])


def test_a_recipe_has_the_fingerprint_that_it_had(released: Path, summary: dict):
    assert _recipe(released).fingerprint() == summary["fingerprint"]


def test_a_run_is_evaluated_to_its_error(released: Path, summary: dict, execution: Execution):
    found = evaluate_trained(of_run(str(released / "run")), local.settle(execution))
    # Another processor's rounding may change the class of one of the 40 images.
    assert found.metrics["val/top1_error"] == pytest.approx(summary["top1_error"], abs=1 / 40)


def test_a_run_that_was_cut_off_after_its_checkpoint_ends_with_its_weights(
    released: Path, summary: dict, execution: Execution
):
    (released / "run" / "summary.json").unlink()
    journal = released / "run" / "journal" / "000001.jsonl"
    records = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(line for line in records if '"kind": "finished"' not in line))
    here = dataclasses.replace(execution, storage=str(released), name="run")
    ended = local.run(local.prepare_run(_recipe(released), here, job="test"))
    assert (ended["status"], ended["steps"]) == ("finished", summary["steps"])
    assert ended["weights_sha256"] == summary["weights_sha256"]
    sessions = [record for record in read_journal(RunDirectory(str(released / "run"))) if isinstance(record, Session)]
    assert [session.start_step for session in sessions] == [0, summary["steps"]]


def test_a_packages_network_has_the_runs_weights(released: Path):
    shutil.copy(released / "run/checkpoints/step_00000003/model.safetensors", released / "package" / predictor.WEIGHTS)
    network = predictor.load_model(released / "package")
    trained = of_run(str(released / "run"))
    expected = build_model(trained.recipe.model)
    expected.load_state_dict(trained.read_weights())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(images), expected.eval()(images))
