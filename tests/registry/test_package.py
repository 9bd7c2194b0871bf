"""Packages. Oracle: the trained network's own logits, and MLflow's own test that a program holds no pickle."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import get_args

import mlflow.pytorch
import pytest
import torch
from registry.conftest import trained

from dist_resnet.recipe import Augment, Data, Evaluation, Execution, Model, Placement, Recipe, Shortcut
from dist_resnet.registry import package, predictor

CLASSES = ["cat", "dog", "emu", "fox"]


def _write(recipe: Recipe, execution: Execution, folder: Path) -> tuple[package.Package, torch.nn.Module]:
    state = trained(recipe, execution)
    return package.write(folder / "package", recipe, state.weights(), CLASSES), state.model.eval()


def _images(count: int, side: int = 32) -> torch.Tensor:
    images = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))
    return images.to(memory_format=torch.channels_last)


def _of(depth: int, side: int, **knobs: object) -> Recipe:
    return Recipe(
        model=Model(depth=depth, num_classes=4, **knobs),  # pyrefly: ignore
        data=Data(train="t", validation="v", dataset="imagenet"),
        augment=Augment(kind="scale", size=side, shorter_side=(side, side)),
        evaluation=Evaluation(crops=(side,), shorter_sides=(side,)),
        global_batch=32,
        ghost_batch=8,
    )


@pytest.mark.parametrize(("shortcut", "placement"), list(itertools.product(get_args(Shortcut), get_args(Placement))))
def test_every_network_is_restored_bit_for_bit(shortcut, placement, execution: Execution, tmp_path: Path):
    recipe = _of(8, 32, shortcut=shortcut, placement=placement)
    state = trained(recipe, execution)
    data = tmp_path / "data"
    data.mkdir()
    package.write_data(data, recipe, state.weights(), CLASSES)
    with torch.no_grad():
        assert torch.equal(predictor.load_model(data)(_images(3)), state.model.eval()(_images(3)))


@pytest.mark.parametrize("depth", [8, 50])
def test_the_program_gives_the_networks_logits_for_any_number_of_images(depth, execution: Execution, tmp_path: Path):
    made, model = _write(_of(depth, 32), execution, tmp_path)
    program = torch.export.load(made.folder / "data" / "model.pt2").module()
    for count in (1, 2, 7):
        with torch.no_grad():
            expected = model(_images(count))
            torch.testing.assert_close(program(_images(count)), expected, rtol=1e-4, atol=1e-5)


def test_a_package_has_no_pickle(recipe: Recipe, execution: Execution, tmp_path: Path):
    made, _ = _write(recipe, execution, tmp_path)
    files = [path for path in made.folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors", ".pt2", ".py", ""}
    assert {path.name for path in files if not path.suffix} == {"__pycache__"}
    assert all(path.stat().st_size == 0 for path in files if not path.suffix)
    mlflow.pytorch._validate_pt2_archive_is_pickle_free(str(made.folder / "data" / "model.pt2"))
    names = zipfile.ZipFile(made.folder / "data" / "model.pt2").namelist()
    assert not [name for name in names if name.endswith((".pkl", ".pickle"))]


def test_a_packages_code_runs_without_this_project(recipe: Recipe, execution: Execution, tmp_path: Path):
    made, model = _write(recipe, execution, tmp_path)
    sealed = package.seal(made.folder)
    before = _files(made.folder)
    code = (
        "import sys, importlib; sys.path.insert(0, sys.argv[1] + '/code'); "
        "served = importlib.import_module(sys.argv[2])._load_pyfunc(sys.argv[1] + '/data'); "
        "import numpy as np; print(served.logits(np.zeros((1, 32, 32, 3), np.uint8)).tolist()); "
        "assert not [name for name in sys.modules if name.split('.')[0] == 'dist_resnet'], 'not on its own'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(made.folder), made.loader_module],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
    )
    assert _files(made.folder) == before
    package.check(made.folder, sealed)
    found = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    ours = predictor.Predictor(made.folder / "data").logits(torch.zeros(1, 32, 32, 3, dtype=torch.uint8).numpy())
    torch.testing.assert_close(found, ours)
    assert found.shape == (1, 4)
    assert len(list(model.parameters())) > 0


def test_weights_of_another_network_are_refused(recipe: Recipe, execution: Execution, tmp_path: Path):
    weights = trained(_of(20, 32), execution).weights()
    with pytest.raises(ValueError, match=r"model.safetensors does not match the network in recipe.json"):
        package.write(tmp_path / "package", recipe, weights, CLASSES)


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def _alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _fill(path: Path) -> None:
    path.write_bytes(b"x")


def _plant(path: Path) -> None:
    """Creates a file and its folders, replacing the empty file that keeps Python from doing so."""
    for folder in reversed(path.parents):
        if folder.is_file():
            folder.unlink()
        folder.mkdir(exist_ok=True)
    path.write_bytes(b"planted")


@pytest.mark.parametrize(
    ("name", "act", "complaint"),
    [
        ("data/model.safetensors", _alter, "model.safetensors was altered"),
        ("data/model.pt2", _alter, "model.pt2 was altered"),
        ("data/classes.json", Path.unlink, "lacks data/classes.json"),
        ("manifest.json", _alter, "manifest.json is not the one that the registry recorded"),
        ("manifest.json", Path.unlink, "has no manifest.json"),
        ("MLmodel", _alter, "MLmodel was altered"),
        ("data/more.py", Path.touch, "files that its manifest does not list: data/more.py"),
        ("more.pyc", Path.touch, "files that its manifest does not list: more.pyc"),
        ("{code}/recipe.pyc", Path.touch, r"files that its manifest does not list.*/recipe\.pyc"),
        (
            "{code}/recipe.cpython-311.pyc",
            Path.touch,
            r"files that its manifest does not list.*/recipe\.cpython-311\.pyc",
        ),
        ("{code}/model/so.cpython-311-x86_64-linux-gnu.so", Path.touch, r"files that its manifest does not list.*\.so"),
        ("{code}/model/__pycache__", _fill, r"/model/__pycache__ was altered"),
        (
            "{code}/model/__pycache__/other.cpython-311.pyc",
            _plant,
            r"files that its manifest does not list.*/other\.cpython",
        ),
        (
            "{code}/model/__pycache__/resnet.py",
            _plant,
            r"files that its manifest does not list.*/__pycache__/resnet\.py",
        ),
        (
            "{code}/model/__pycache__/resnet.pyc",
            _plant,
            r"files that its manifest does not list.*/__pycache__/resnet\.pyc",
        ),
        ("{code}/__pycache__/__pycache__/recipe.cpython-311.pyc", _plant, r"files that its manifest does not list"),
    ],
)
def test_a_tampered_package_is_refused_by_name(name, act, complaint, recipe, execution: Execution, tmp_path: Path):
    made, _ = _write(recipe, execution, tmp_path)
    (made.folder / "MLmodel").write_text("flavors: {}")
    sealed = package.seal(made.folder)
    package.check(made.folder, sealed)
    act(made.folder / name.format(code=f"code/{made.loader_module.partition('.')[0]}"))
    with pytest.raises(ValueError, match=complaint):
        package.check(made.folder, sealed)
    with pytest.raises(ValueError, match=complaint):
        package.take(made.folder, tmp_path / "taken", sealed)
    assert not (tmp_path / "taken").exists()


@pytest.mark.parametrize(
    "left",
    [
        "{code}/__pycache__/recipe.cpython-311.pyc",
        "{code}/__pycache__/__init__.cpython-312.opt-2.pyc",
        "{code}/model/__pycache__/resnet.cpython-311.opt-1.pyc",
        "{code}/registry/__pycache__/serve.pypy311-73.pyc",
        "{code}/registry/__pycache__/serve.cpython-314t.pyc",
        "{code}/registry/__pycache__/serve.cpython-311.pyc.140221905",
        ".DS_Store",
        "data/._classes.json",
        "data/Thumbs.db",
        "data/.nfs0000000000a1b2c300000001",
    ],
)
def test_files_added_by_python_and_desktops_are_neither_refused_nor_pulled(
    left, recipe, execution: Execution, tmp_path: Path
):
    made, _ = _write(recipe, execution, tmp_path)
    sealed = package.seal(made.folder)
    recorded = {name for name in _files(made.folder) if (made.folder / name).is_file()}
    code = f"code/{made.loader_module.partition('.')[0]}"
    _plant(made.folder / left.format(code=code))
    package.take(made.folder, tmp_path / "taken", sealed)
    taken = {name for name in _files(tmp_path / "taken") if (tmp_path / "taken" / name).is_file()}
    assert taken == recorded - {str(Path(left.format(code=code)).parent)}
    package.check(tmp_path / "taken", sealed)


def test_a_manifest_that_names_files_elsewhere_takes_none_of_them(recipe, execution: Execution, tmp_path: Path):
    made, _ = _write(recipe, execution, tmp_path)
    (tmp_path / "other.json").write_text("{}")
    sha256 = hashlib.sha256(b"{}").hexdigest()
    (made.folder / "manifest.json").write_text(json.dumps({"../other.json": sha256}))
    sealed = hashlib.sha256((made.folder / "manifest.json").read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=r"lacks \.\./other\.json"):
        package.take(made.folder, tmp_path / "here" / "taken", sealed)
    assert (tmp_path / "other.json").exists()
