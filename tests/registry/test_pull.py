"""Pulling. Oracle: the logits of the published network, and packages damaged by hand."""

import marshal
import sys
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from registry.conftest import MakeRun

from dist_resnet.recipe import Recipe
from dist_resnet.registry import pull, read
from dist_resnet.registry.publish import publish_run
from dist_resnet.registry.pull import download


def test_a_pulled_model_has_the_trained_logits_and_can_train(
    recipe: Recipe, make_run: MakeRun, store: str, tmp_path: Path
):
    published = publish_run(make_run(recipe, seed=3), tracking_uri=store, name="pulled")
    model = pull("models:/pulled@champion", tracking_uri=store)
    served = mlflow.pyfunc.load_model(f"{_location(store, 'pulled', published.version)}")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    images = served._model_impl._normalize(torch.from_numpy(pixels))
    with torch.no_grad():
        assert torch.equal(model(images), served._model_impl.logits(pixels))
    model.train()
    model(images).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    download(published.uri, tmp_path / "here", tracking_uri=store)
    again = read(tmp_path / "here")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again.parameters(), model.parameters(), strict=True))


@pytest.fixture
def _byte_code(monkeypatch) -> None:
    """Python's default byte-code settings, without package modules that another test has loaded."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.startswith("dist_resnet_")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("_byte_code")
def test_loading_by_mlflow_writes_nothing_into_the_store(recipe: Recipe, make_run: MakeRun, store: str):
    published = publish_run(make_run(recipe), tracking_uri=store, name="read-only")
    folder = Path(_location(store, "read-only", published.version).removeprefix("file://"))
    before = _contents(folder)
    mlflow.pyfunc.load_model(str(folder))
    assert _contents(folder) == before


@pytest.mark.usefixtures("_byte_code")
def test_byte_code_in_an_older_package_is_neither_refused_nor_pulled_nor_run(
    recipe: Recipe, make_run: MakeRun, store: str, tmp_path: Path
):
    published = publish_run(make_run(recipe), tracking_uri=store, name="older")
    folder = Path(_location(store, "older", published.version).removeprefix("file://"))
    for guard in folder.rglob("__pycache__"):
        guard.unlink()  # earlier versions of this project had none
    before = _contents(folder)
    mlflow.pyfunc.load_model(str(folder))
    written = [name for name in _contents(folder) if name.endswith(".pyc")]
    assert len(written) > 10
    planted = compile(f"open({str(tmp_path / 'ran')!r}, 'w')", "planted", "exec")
    for name in written:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:16] + marshal.dumps(planted))
    pull(published.uri, tracking_uri=store)
    download(published.uri, tmp_path / "here", tracking_uri=store)
    assert _contents(tmp_path / "here") == before
    assert not (tmp_path / "ran").exists()


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _location(store: str, name: str, version: str) -> str:
    return MlflowClient(store).get_model_version_download_uri(name, version)


def test_a_tampered_version_is_refused_and_not_left_behind(
    recipe: Recipe, make_run: MakeRun, store: str, tmp_path: Path
):
    published = publish_run(make_run(recipe), tracking_uri=store, name="tampered")
    weights = Path(_location(store, "tampered", published.version).removeprefix("file://"), "data/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors was altered"):
        download(published.uri, tmp_path / "here", tracking_uri=store)
    with pytest.raises(ValueError, match=r"model.safetensors was altered"):
        pull(published.uri, tracking_uri=store)
    assert not (tmp_path / "here").exists()
    assert [path for path in tmp_path.iterdir() if path.name != "runs"] == []


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ("models:/nobody@champion", r"the registry has no models:/nobody@champion.*; the registry has .*"),
        ("models:/known/99", r"the registry has no models:/known/99"),
        ("models:/known@gone", r"the registry has no models:/known@gone"),
        ("models:/known", r"a model is models:/NAME/VERSION or models:/NAME@ALIAS, got 'models:/known'"),
        ("known@champion", r"a model is models:/NAME/VERSION"),
        ("models:/known/latest", r"a model is models:/NAME/VERSION"),
    ],
)
def test_an_unknown_model_is_refused_in_one_line(model, complaint, recipe: Recipe, make_run: MakeRun, store: str):
    if not MlflowClient(store).search_registered_models("name='known'"):
        publish_run(make_run(recipe), tracking_uri=store, name="known")
    with pytest.raises(ValueError, match=complaint):
        pull(model, tracking_uri=store)


def test_a_foreign_version_is_not_considered_verified(store: str, tmp_path: Path):
    client = MlflowClient(store)
    client.create_registered_model("foreign")
    (tmp_path / "model").mkdir()
    client.create_model_version("foreign", f"{tmp_path}/model")
    with pytest.raises(ValueError, match="no tag manifest_sha256 to verify it by"):
        pull("models:/foreign/1", tracking_uri=store)


def test_a_store_that_does_not_exist_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="there is no tracking store"):
        pull("models:/any/1", tracking_uri=f"sqlite:///{tmp_path}/none.db")
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(ValueError, match="no tracking server is given"):
        pull("models:/any/1")
