"""Rows of gpu_evidence.py: the largest batches that fit on the card, and how many images the input gives."""

import functools
import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import clock
import psutil
import subject
import torch
from gpu_setting import Setting
from gpu_steps import empty

from dist_resnet.recipe import Decode, Execution, Performance, Recipe

Line = dict[str, Any]
_MIB = 2**20


def memory(setting: Setting, depth: int) -> list[Line]:
    """The largest batch of a network in bf16, with and without recomputation."""
    if depth == 200:
        recipe_of = functools.partial(subject.imagenet_recipe, depth=setting.sized(200, 8), size=setting.sized(224, 32))
    else:
        recipe_of = functools.partial(subject.cifar_recipe, depth=setting.sized(depth, 8))
    return [_largest(setting, recipe_of, depth, recompute) for recompute in (False, True)]


def _largest(setting: Setting, recipe_of: Callable[..., Recipe], depth: int, recompute: bool) -> Line:
    """Predicted from two batches and tried, in steps of 5 % less until it fits."""
    execution = Execution(
        precision=_precision(setting), performance=Performance(recompute=recompute, cuda_graphs=False)
    )
    few, more = setting.sized((16, 48), (2, 4))
    low, high = (_peak(recipe_of(batch=batch), execution) for batch in (few, more))
    each = max((high - low) / (more - few), 1.0)
    room = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else high
    batch = int((room - low) / each + few) if torch.cuda.is_available() else more
    while batch > more and not _fits(recipe_of(batch=batch), execution):
        batch = max(more, int(0.95 * batch))
    name = f"ResNet-{depth}, {'recomputed' if recompute else 'kept'}"
    return {"what": name, "largest batch": batch, "MiB per image": each / _MIB}


def _fits(recipe: Recipe, execution: Execution) -> bool:
    try:
        _peak(recipe, execution)
    except torch.OutOfMemoryError:
        return False
    return True


def _peak(recipe: Recipe, execution: Execution) -> int:
    """Bytes in use at most in two steps; on the CPU those of the process after them."""
    empty()
    step, _ = subject.step_on_random_images(recipe, execution)
    for _ in range(2):
        step()
    subject.wait()
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else psutil.Process().memory_info().rss


def images(setting: Setting, decode: Decode) -> list[Line]:
    """Images/s of the input alone, and what of ResNet-50's speed is left with it."""
    if decode != "pillow":
        importlib.import_module("nvidia.dali")
    recipe = subject.imagenet_recipe(
        setting.full_size_images(),
        depth=setting.sized(50, 8),
        size=setting.sized(224, 32),
        batch=setting.sized(32, 4),
    )
    execution = Execution(
        precision=_precision(setting),
        decode_on=decode,
        cpus_per_worker=os.cpu_count(),
        performance=Performance(deterministic=False, prefetch=setting.sized(4, 1)),
    )
    rate = functools.partial(
        clock.rate, count=setting.sized(100, 2), warm_up=setting.sized(clock.WARM_UP, 1), wait=subject.wait
    )
    source = subject.training_images(recipe, execution)
    try:
        alone = rate(subject.step_sizes(source))
        with_input = rate(_trained(recipe, execution, source))
    finally:
        source.close()
    without = rate(_on_random_images(recipe, execution))
    return [
        {
            "what": f"decoded on {decode}",
            "input alone, images/s": alone.images_per_second,
            "CPU-ms per image": alone.cpu_ms,
            "ResNet-50 on it, images/s": with_input.images_per_second,
            "ResNet-50 without input, images/s": without.images_per_second,
            "lost to waiting, %": 100 * (1 - with_input.images_per_second / without.images_per_second),
        }
    ]


def _precision(setting: Setting) -> Any:
    return setting.sized("bf16", "fp32")  # CPUs without bf16 take seconds a step.


def _trained(recipe: Recipe, execution: Execution, source: subject.TrainingImages) -> Iterator[int]:
    step, _ = subject.training_step(recipe, execution)
    batches = subject.endless(source)
    while True:
        step(batches, subject.LEARNING_RATE)
        yield recipe.global_batch


def _on_random_images(recipe: Recipe, execution: Execution) -> Iterator[int]:
    step, _ = subject.step_on_random_images(recipe, execution)
    while True:
        step()
        yield recipe.global_batch
