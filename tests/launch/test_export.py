"""Exported models. Oracle: torchvision's and timm's networks, onnxruntime, and the weights of the run."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from jobs.inside import run_inside
from registry.conftest import trained

from dist_resnet.launch.export import export
from dist_resnet.launch.plan import prepare
from dist_resnet.launch.trained import of_run
from dist_resnet.model import build_model
from dist_resnet.recipe import Execution, Initial, Model, Recipe
from dist_resnet.train import checkpoint
from dist_resnet.train.checkpoint import Snapshot


def _run(recipe: Recipe, execution: Execution) -> str:
    plan = prepare(recipe, execution, job="test")
    plan.claim()
    checkpoint.save(plan.directory, Snapshot.of(trained(recipe, execution)))
    return plan.directory.uri


def _network(run: str) -> torch.nn.Module:
    found = of_run(run)
    network = build_model(found.recipe.model).eval()
    network.load_state_dict(found.read_weights())
    return network


def _images(number: int = 2) -> torch.Tensor:
    return torch.randn(number, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_torchvisions_network_loads_the_file_and_has_our_logits(recipe: Recipe, execution: Execution, tmp_path: Path):
    run = _run(replace(recipe, model=Model(depth=50, num_classes=4, placement="original")), execution)
    theirs = torchvision.models.resnet50(num_classes=4).eval()
    for name in ("a.pth", "a.safetensors"):
        found = export(run, str(tmp_path / name), "torchvision")
        assert found.size_bytes == (tmp_path / name).stat().st_size
        read = torch.load(tmp_path / name) if name == "a.pth" else safetensors.torch.load_file(tmp_path / name)
        theirs.load_state_dict(read, strict=True)
        assert torch.equal(theirs(_images()), _network(run)(_images()))
    with pytest.raises(ValueError, match=r"a.pth exists already; give a --target that does not exist"):
        export(run, str(tmp_path / "a.pth"), "torchvision")
    with pytest.raises(ValueError, match="timm has no such network: this one has placement original instead of full"):
        export(run, str(tmp_path / "b.pth"), "timm")
    assert not (tmp_path / "b.pth").exists()


def test_timms_network_loads_the_file_and_has_our_logits(recipe: Recipe, execution: Execution, tmp_path: Path):
    timm = pytest.importorskip("timm", reason="timm is not installed: uv sync")
    run = _run(replace(recipe, model=Model(depth=50, num_classes=4)), execution)
    export(run, str(tmp_path / "a.safetensors"), "timm")
    theirs = timm.create_model("resnetv2_50", num_classes=4, checkpoint_path=str(tmp_path / "a.safetensors")).eval()
    torch.testing.assert_close(theirs(_images()), _network(run)(_images()), rtol=1e-4, atol=1e-4)


def test_a_file_of_ours_starts_a_run_with_its_classes(recipe: Recipe, execution: Execution, tmp_path: Path):
    run = _run(recipe, execution)
    export(run, str(tmp_path / "a.safetensors"), "safetensors")
    plans = [
        prepare(replace(recipe, initial=Initial(weights=source)), replace(execution, name="new"), job="test")
        for source in (run, str(tmp_path / "a.safetensors"))
    ]
    assert plans[0].recipe.initial.head == "keep"
    assert plans[0].recipe.fingerprint() == plans[1].recipe.fingerprint()
    other = replace(recipe, model=replace(recipe.model, shortcut="dropout"))
    with pytest.raises(ValueError, match="they have shortcut identity, not dropout"):
        prepare(replace(other, initial=plans[1].recipe.initial), replace(execution, name="other"), job="test")


def test_an_onnx_file_has_our_logits_for_any_number_of_images_and_says_how_to_prepare_them(
    recipe: Recipe, execution: Execution, tmp_path: Path
):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: uv sync --extra onnx")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: uv sync --extra onnx")
    run = _run(recipe, execution)
    found = export(run, str(tmp_path / "a.onnx"), "onnx")
    session = runtime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    for number in (1, 7):
        (logits,) = session.run(["logits"], {"images": _images(number).numpy()})
        np.testing.assert_allclose(logits, _network(run)(_images(number)).detach().numpy(), rtol=1e-4, atol=1e-5)
    about = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    assert about["classes"] == found.about["classes"]
    assert about["crop"] == 32
    assert "onnxruntime" in found.checked


def test_the_job_prints_what_the_file_is_and_refuses_another_ending(
    recipe: Recipe, execution: Execution, tmp_path: Path
):
    run = _run(recipe, execution)
    done = run_inside(
        "export_model", "--run", run, "--format", "safetensors", "--target", str(tmp_path / "a.safetensors")
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["file"] == str(tmp_path / "a.safetensors")
    assert found["checked"].endswith("tensors, read back bit for bit")
    done = run_inside("export_model", "--run", run, "--format", "onnx", "--target", str(tmp_path / "a.pth"))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "the file of --format onnx ends in .onnx, got" in done.stderr
