"""A finished run: its recipe, a checkpoint with random weights and BN statistics, its errors."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from dist_resnet.recipe import Execution, Recipe
from dist_resnet.tracking.journal import Journal
from dist_resnet.tracking.records import Metrics, Session
from dist_resnet.tracking.run_directory import RunDirectory
from dist_resnet.train import checkpoint
from dist_resnet.train.checkpoint import Snapshot
from dist_resnet.train.loop import create_state
from dist_resnet.train.state import TrainState
from dist_resnet.worker import Worker

WORKER = Worker(rank=0, world_size=1, device=torch.device("cpu"))


def trained(recipe: Recipe, execution: Execution, seed: int = 0) -> TrainState:
    """A state as if trained: weights drawn from the seed, BN statistics other than the initial ones."""
    state = create_state(dataclasses.replace(recipe, seed=seed), execution, WORKER)
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in state.model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.2, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0, generator=generator)
    state.step = 6
    return state


MakeRun = Callable[..., str]


@pytest.fixture
def make_run(tmp_path: Path, execution: Execution) -> MakeRun:
    """Writes a finished run and returns its directory."""

    def make(
        recipe: Recipe, *, top1_error: float = 0.3, name: str = "run", seed: int = 0, classes: dict | None = None
    ) -> str:
        directory = RunDirectory(str(tmp_path / "runs" / name))
        recipe = dataclasses.replace(
            recipe, data=dataclasses.replace(recipe.data, train_digest="a" * 64, validation_digest="b" * 64)
        )
        record = {"fingerprint": recipe.fingerprint(), "recipe": recipe.to_dict()}
        directory.write_json("recipe.json", record | ({"classes": classes} if classes is not None else {}))
        journal = Journal(directory)
        journal.append(Session(start_step=0))
        journal.append(Metrics(step=6, values={"val/top1_error": top1_error, "val/top5_error": 0.0, "val/loss": 1.0}))
        journal.commit()
        checkpoint.save(directory, Snapshot.of(trained(recipe, execution, seed)))
        return directory.uri

    return make


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sqlite store with its schema, which takes ten seconds to create."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"
    MlflowClient(uri).search_experiments()
    return uri
