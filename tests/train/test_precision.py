"""Precision. Oracle: this CPU's flags as the kernel reports them, and torch's own settings read back."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_resnet.data.input.decoders import InputOptions
from dist_resnet.data.loader import EvaluationImages
from dist_resnet.launch import local
from dist_resnet.model import build_model
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.tracking.journal import history, read_journal
from dist_resnet.train import checkpoint
from dist_resnet.train.precision import check_precision, configure_backend
from dist_resnet.worker import Worker

CPU_INFO = Path("/proc/cpuinfo")


def test_bf16_causes_a_warning_only_on_a_cpu_without_such_instructions(execution: Execution, caplog):
    if not CPU_INFO.exists():
        pytest.skip("the kernel reports no flags of the CPU here")
    has_bf16 = "bf16" in CPU_INFO.read_text()
    with caplog.at_level(logging.WARNING):
        check_precision(dataclasses.replace(execution, precision="bf16"))
    assert ("has no bf16 instructions" in caplog.text) == (not has_bf16)
    caplog.clear()
    check_precision(execution)
    check_precision(dataclasses.replace(execution, precision="bf16", device="gpu"))
    assert not caplog.text


@pytest.mark.parametrize(("precision", "rounds"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_gpus_round_fp32_only_at_tf32(execution: Execution, precision: Any, rounds: bool):
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        configure_backend(dataclasses.replace(execution, precision=precision))
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (rounds, rounds)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def test_a_run_in_bf16_is_evaluated_in_fp32(recipe: Recipe, execution: Execution):
    plan = local.prepare_run(recipe, dataclasses.replace(execution, precision="bf16"), job="test")
    local.run(plan)
    ((*_, said),) = history(read_journal(plan.directory))["val/loss"][-1:]
    found = checkpoint.latest(plan.directory)
    assert found is not None
    kept = checkpoint.read(plan.directory, found.folder)
    assert kept is not None
    model = build_model(recipe.model).eval()
    model.load_state_dict(kept.weights)
    worker = Worker(rank=0, world_size=1, device=torch.device("cpu"))
    images = EvaluationImages(recipe, plan.validation, worker, InputOptions.of(execution))
    with torch.no_grad():
        batches = list(images.center_crops(32, 32))
        logits, labels = torch.cat([model(each.images) for each in batches]), torch.cat([b.labels for b in batches])
        loss = torch.nn.functional.cross_entropy(logits, labels).item()
        with torch.autocast("cpu", torch.bfloat16):
            low = torch.cat([model(each.images) for each in batches]).float()
    assert said == pytest.approx(loss, rel=1e-5)
    assert torch.nn.functional.cross_entropy(low, labels).item() != pytest.approx(loss, rel=1e-5)
