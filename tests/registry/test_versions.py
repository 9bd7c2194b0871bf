"""Versions and the champion. Oracle: what MLflow's own client finds, in sqlite."""

import dataclasses
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from registry.conftest import MakeRun

from dist_resnet.recipe import Recipe
from dist_resnet.registry.publish import publish_run
from dist_resnet.registry.versions import Promotion
from dist_resnet.tracking.mlflow.ledger import Ledger
from dist_resnet.tracking.run_directory import RunDirectory


def test_the_champion_has_the_lowest_error_on_the_same_images(recipe: Recipe, make_run: MakeRun, store: str):
    def champion_after(error: float, recipe: Recipe = recipe, promote: Promotion = "better") -> tuple[bool, str]:
        run = make_run(recipe, top1_error=error, name=f"run{error}{promote}{recipe.evaluation.crops}")
        published = publish_run(run, tracking_uri=store, name="contest", promote=promote)
        return published.is_champion, str(MlflowClient(store).get_model_version_by_alias("contest", "champion").version)

    other = dataclasses.replace(
        recipe, evaluation=dataclasses.replace(recipe.evaluation, crops=(24,), shorter_sides=(28,))
    )
    assert champion_after(0.3) == (True, "1")
    assert champion_after(0.4) == (False, "1")
    assert champion_after(0.2) == (True, "3")
    assert champion_after(0.1, other) == (False, "3")
    assert champion_after(0.5, promote="always") == (True, "5")
    assert champion_after(0.01, promote="never") == (False, "5")


@pytest.mark.parametrize(
    "call", ["log_model_artifacts", "finalize_logged_model", "create_model_version", "set_registered_model_alias"]
)
def test_a_failed_registration_leaves_nothing_behind(
    call: str, recipe: Recipe, make_run: MakeRun, store: str, monkeypatch
):
    run, client = make_run(recipe), MlflowClient(store)
    before = {model.model_id for model in _logged_models(client)}

    def fail(*_: object, **__: object) -> None:
        raise MlflowException("no room")

    monkeypatch.setattr(MlflowClient, call, fail)
    with pytest.raises(OSError, match="the registry rejected the model: no room"):
        publish_run(run, tracking_uri=store, name=f"half-{call}")
    assert {model.model_id for model in _logged_models(client)} == before
    assert client.search_model_versions(f"name='half-{call}'") == []


def test_a_registry_that_fails_to_name_the_champion_keeps_it(recipe, make_run: MakeRun, store: str, monkeypatch):
    publish_run(make_run(recipe, top1_error=0.2), tracking_uri=store, name="asked")

    def fail(*_: object) -> None:
        raise MlflowException("timed out")

    monkeypatch.setattr(MlflowClient, "get_model_version_by_alias", fail)
    with pytest.raises(OSError, match="timed out"):
        publish_run(make_run(recipe, top1_error=0.9, name="worse"), tracking_uri=store, name="asked")
    monkeypatch.undo()
    assert str(MlflowClient(store).get_model_version_by_alias("asked", "champion").version) == "1"
    assert len(MlflowClient(store).search_model_versions("name='asked'")) == 1


def test_a_champion_without_an_evaluation_is_replaced_by_the_first_with_one(recipe, make_run: MakeRun, store: str):
    run = Path(make_run(recipe))
    for journal in (run / "journal").iterdir():
        journal.unlink()
    publish_run(str(run), tracking_uri=store, name="unknown", promote="always")
    assert publish_run(make_run(recipe, name="known"), tracking_uri=store, name="unknown").is_champion


def _logged_models(client: MlflowClient) -> list:
    experiment = client.get_experiment_by_name("dist_resnet")
    return client.search_logged_models([experiment.experiment_id]) if experiment else []


def test_a_deleted_experiment_refuses_a_model_with_the_command_that_restores_it(store: str, make_run: MakeRun, recipe):
    client = MlflowClient(store)
    run = make_run(recipe, name="orphan")
    experiment = client.create_experiment("deleted")
    run_id = client.create_run(experiment).info.run_id
    Ledger(RunDirectory(run), store).note_run(run_id)
    client.delete_experiment(experiment)
    with pytest.raises(OSError, match=f"experiments restore --experiment-id {experiment}"):
        publish_run(run, tracking_uri=store, name="orphan")
    assert not [model for model in client.search_registered_models() if model.name == "orphan"]
