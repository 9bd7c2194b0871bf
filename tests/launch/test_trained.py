"""Trained weights by their address. Oracle: the state that was saved, and the package that was registered."""

from pathlib import Path

import pytest
import torch
from registry.conftest import trained

from dist_resnet.launch.plan import prepare
from dist_resnet.launch.trained import open_trained
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.registry.publish import publish_run
from dist_resnet.train import checkpoint
from dist_resnet.train.checkpoint import Snapshot


@pytest.fixture
def run(recipe: Recipe, execution: Execution) -> str:
    """A run's directory with checkpoints after steps 1 and 2, whose weights differ."""
    plan = prepare(recipe, execution, job="test")
    plan.claim()
    for step in (1, 2):
        state = trained(recipe, execution, seed=step)
        state.step = step
        checkpoint.save(plan.directory, Snapshot.of(state))
    return plan.directory.uri


@pytest.mark.parametrize(
    ("address", "seed"),
    [
        ("{run}", 2),
        ("{run}/", 2),
        ("{run}/checkpoints/step_00000001", 1),
        ("{run}/checkpoints/step_00000002/", 2),
    ],
)
def test_a_run_gives_its_newest_checkpoint_and_a_checkpoint_itself(run, recipe, execution, address: str, seed: int):
    with open_trained(address.format(run=run)) as found:
        weights = found.read_weights()
        assert found.recipe.model == recipe.model
        assert found.version is None
    for name, tensor in trained(recipe, execution, seed=seed).weights().items():
        assert torch.equal(weights[name], tensor), name


def test_a_registered_model_gives_the_weights_of_its_run_and_its_version(run, tmp_path: Path):
    store = f"sqlite:///{tmp_path}/mlflow.db"
    published = publish_run(run, tracking_uri=store, name="here")
    with open_trained(run) as expected, open_trained("models:/here/1", tracking_uri=store) as found:
        assert found.version == published.uri == "models:/here/1"
        assert found.classes == expected.classes
        assert found.recipe == expected.recipe
        weights = found.read_weights()
        for name, tensor in expected.read_weights().items():
            assert torch.equal(weights[name], tensor), name


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("/nowhere", "/nowhere is not a run"),
        ("/nowhere/checkpoints/step_00000001", "/nowhere is not a run"),
        ("{run}/checkpoints/step_00000009", "has no checkpoint step_00000009"),
    ],
)
def test_an_address_without_weights_is_refused(run, address: str, complaint: str):
    with pytest.raises(FileNotFoundError, match=complaint), open_trained(address.format(run=run)):
        pass
