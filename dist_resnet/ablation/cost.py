"""What the cells of a sweep cost, before anything runs."""

import torch

from dist_resnet.ablation.board import clock
from dist_resnet.ablation.grid import Choice, Pictures, bases, choose
from dist_resnet.launch.measure import measure_step
from dist_resnet.model.complexity import measure
from dist_resnet.recipe import Execution, Recipe

# A backward pass takes about twice the multiply-adds of a forward pass.
_TRAINING_OVER_FORWARD = 3


def listing(recipe: Recipe, choice: Choice, pictures: Pictures, execution: Execution) -> str:
    """The cells of a choice with their cost in multiply-adds and an estimate of their time on this machine."""
    cells = choose(choice, bases(recipe, choice, pictures))
    device = torch.device("cuda" if torch.cuda.is_available() and execution.device != "cpu" else "cpu")
    if device.type == "cpu" and execution.cpus_per_worker:
        torch.set_num_threads(execution.cpus_per_worker)
    macs = [measure(cell.recipe.model, cell.recipe.augment.size).multiply_adds for cell in cells]
    per_step = [_TRAINING_OVER_FORWARD * recipe.global_batch * each for each in macs]
    probe = min(range(len(cells)), key=lambda place: per_step[place])
    rate = per_step[probe] / measure_step(cells[probe].recipe, execution, device).seconds
    width = max(len(cell.key) for cell in cells)
    lines = [
        f"{'cell':<{width}}  {'paper':>6}  {'multiply-adds per picture':>25}  {'per run':>9}  {'time per run':>12}"
    ]
    costs = {}
    for cell, forward, step in zip(cells, macs, per_step, strict=True):
        cost = costs[cell.recipe.fingerprint()] = step * choice.iterations
        error = "fail" if cell.paper_fail else "" if cell.paper_error is None else f"{cell.paper_error:.2f}"
        numbers = f"{error:>6}  {forward / 1e6:>23.1f} M  {cost / 1e15:>7.2f} P  {clock(cost / rate):>12}"
        lines.append(f"{cell.key:<{width}}  {numbers}")
    total = sum(costs.values()) * choice.seeds
    threads = "" if device.type == "cuda" else f", {torch.get_num_threads()} threads"
    lines += [
        f"{len(cells)} cells, {len(costs)} of them different, {choice.seeds} seeds, {choice.iterations} iterations of "
        f"{recipe.global_batch} pictures: {total / 1e15:.1f} P multiply-adds, {clock(total / rate)} one after another",
        f"a run counts {_TRAINING_OVER_FORWARD} forward passes for each picture; times follow from steps of "
        f"{cells[probe].key} measured just now at {rate / 1e9:.1f} G multiply-adds/s ({device.type}{threads})",
    ]
    return "\n".join(lines) + "\n"
