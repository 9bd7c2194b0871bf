"""The time and memory of a recipe's step on a device, measured on random images."""

import gc
import time
from dataclasses import dataclass

import numpy as np
import torch

from dist_resnet.data.input.batch import Batch
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.train.loop import create_state
from dist_resnet.train.step import TrainStep
from dist_resnet.worker import Worker


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """The cost of one optimizer step on one device."""

    seconds: float
    """Wall-clock time, without the first step."""
    memory_bytes: int
    """Peak memory that torch reserved on the GPU, in training and in evaluation; 0 on the CPU."""


def measure_step(recipe: Recipe, execution: Execution, device: torch.device, *, num_steps: int = 2) -> StepCost:
    """The cost of a step, measured over a few on random images; on a GPU also of one forward pass of an evaluation."""
    cuda = device.type == "cuda"
    # Reference cycles may hold an earlier measurement's tensors.
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    worker = Worker(rank=0, world_size=1, device=device)
    state = create_state(recipe, execution, worker)
    step = TrainStep(recipe, execution, worker, state)
    batches = [_random_batch(recipe.ghost_batch, recipe, ghost, device) for ghost in range(recipe.num_ghost_batches)]
    step(batches, 0.0)
    _wait_for(device)
    start = time.perf_counter()
    for _ in range(num_steps):
        step(batches, 0.0)
    _wait_for(device)
    seconds = (time.perf_counter() - start) / num_steps
    if not cuda:
        return StepCost(seconds=seconds, memory_bytes=0)
    state.model.eval()
    with torch.no_grad():
        state.model(_random_batch(execution.performance.evaluation_batch, recipe, 0, device).images)
    return StepCost(seconds=seconds, memory_bytes=torch.cuda.max_memory_reserved(device))


def _random_batch(num_images: int, recipe: Recipe, ghost: int, device: torch.device) -> Batch:
    size = recipe.augment.size
    images = torch.randn(num_images, 3, size, size, device=device)
    labels = torch.zeros(num_images, dtype=torch.int64, device=device)
    return Batch(images, labels, np.arange(num_images), ghost, torch.ones(num_images, device=images.device))


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
