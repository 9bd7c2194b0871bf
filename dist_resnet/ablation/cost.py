"""The cost of a sweep's cells, before anything runs."""

import heapq
import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from dist_resnet.ablation.grid import Choice, Images, bases, choose
from dist_resnet.launch.measure import measure_step
from dist_resnet.model.complexity import measure
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.wording import clock

# A backward pass takes about twice the multiply-adds of a forward pass.
_TRAINING_OVER_FORWARD = 3


def listing(recipe: Recipe, choice: Choice, images: Images, execution: Execution) -> str:
    """The chosen cells with their cost in multiply-adds and an estimate of their time on this machine, as text."""
    cells = choose(choice, bases(recipe, choice, images))
    device = torch.device("cuda" if torch.cuda.is_available() and execution.device != "cpu" else "cpu")
    room = _room(execution, device)
    if device.type == "cpu":
        torch.set_num_threads(room.cpus)
    macs = [measure(cell.recipe.model, cell.recipe.augment.size).multiply_adds for cell in cells]
    per_step = [_TRAINING_OVER_FORWARD * recipe.global_batch * each for each in macs]
    probe = min(range(len(cells)), key=lambda index: per_step[index])
    rate = per_step[probe] / measure_step(cells[probe].recipe, execution, device).seconds
    width = max(len(cell.key) for cell in cells)
    lines = [f"{'cell':<{width}}  {'paper':>6}  {'multiply-adds per image':>25}  {'per run':>9}  {'time per run':>12}"]
    costs = {}
    for cell, forward, step in zip(cells, macs, per_step, strict=True):
        cost = costs[cell.recipe.fingerprint()] = step * choice.iterations
        error = "fail" if cell.paper_fail else "" if cell.paper_error is None else f"{cell.paper_error:.2f}"
        numbers = f"{error:>6}  {forward / 1e6:>23.1f} M  {cost / 1e15:>7.2f} P  {clock(cost / rate):>12}"
        lines.append(f"{cell.key:<{width}}  {numbers}")
    total = sum(costs.values()) * choice.seeds
    runs = [cost / rate for cost in costs.values() for _ in range(choice.seeds)]
    at_once = min(room.at_once, len(runs))
    lines += [
        f"{len(cells)} cells, {len(costs)} of them different, {choice.seeds} seeds, {choice.iterations} iterations of "
        f"{recipe.global_batch} images: {total / 1e15:.1f} P multiply-adds; the whole sweep takes "
        f"{clock(wall_seconds(runs, at_once))} with {at_once} runs at once, {clock(total / rate)} one after another",
        f"assumed: {room.assumption}; a run counts {_TRAINING_OVER_FORWARD} forward passes for each image, and no "
        f"evaluations or restarts; times follow from steps of {cells[probe].key} measured just now "
        f"at {rate / 1e9:.1f} G multiply-adds/s ({room.measured_on})",
    ]
    return "\n".join(lines) + "\n"


def wall_seconds(runs: Iterable[float], at_once: int) -> float:
    """The seconds until all runs are done if each starts, in order, as soon as fewer than `at_once` others run.

    >>> wall_seconds([3.0, 2.0, 2.0, 1.0], 2)
    4.0
    """
    free = [0.0] * at_once
    for seconds in runs:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


@dataclass(frozen=True, kw_only=True)
class _Room:
    """The number of runs that this machine takes at once, as `launch.ray.shares` would without a cluster."""

    at_once: int
    cpus: int
    assumption: str
    measured_on: str


def _room(execution: Execution, device: torch.device) -> _Room:
    cpus, cores = execution.cpus_per_worker or 1, os.cpu_count() or 1
    if device.type == "cuda":
        gpus = torch.cuda.device_count()
        assumption = f"this machine's {gpus} GPUs, where runs that share one are together as fast as one alone"
        return _Room(at_once=gpus, cpus=cpus, assumption=assumption, measured_on="cuda")
    each = "1 core" if cpus == 1 else f"{cpus} cores"
    assumption = f"this machine's {cores} cores with no other load, {each} for each run, as fast as alone"
    return _Room(at_once=max(1, cores // cpus), cpus=cpus, assumption=assumption, measured_on=f"cpu, {cpus} threads")
