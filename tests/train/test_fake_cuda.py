"""Waits and mixed devices on a GPU, without one. Oracle: fake CUDA tensors, which know shapes and devices alone."""

from pathlib import Path

import pytest
from oracle import fake_cuda

pytestmark = pytest.mark.skipif(fake_cuda.reason_against() is not None, reason=str(fake_cuda.reason_against()))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_two_steps_never_wait_for_the_gpu(precision: str, tmp_path: Path):
    assert fake_cuda.trace(f"steps {precision}", tmp_path) == []


def test_a_step_of_two_workers_never_waits_for_the_gpu(tmp_path: Path):
    assert fake_cuda.trace("steps of two workers", tmp_path) == []


def test_steps_with_ghost_batches_together_never_wait_for_the_gpu(tmp_path: Path):
    assert fake_cuda.trace("steps bf16 together", tmp_path) == []


def test_a_checkpoints_copy_never_waits_for_the_gpu(tmp_path: Path):
    assert fake_cuda.trace("checkpoint", tmp_path) == []


def test_an_evaluation_waits_for_the_gpu_at_its_end_alone(tmp_path: Path):
    assert fake_cuda.trace("evaluation", tmp_path) == []


def test_the_loader_never_waits_for_the_gpu(tmp_path: Path):
    assert fake_cuda.trace("loader", tmp_path) == []


def test_images_on_the_gpu_become_batches_without_waits_and_with_few_operations(tmp_path: Path):
    assert fake_cuda.trace("resident", tmp_path) == []
