"""The learning rate as a pure function of the step."""

import math

from dist_resnet.recipe import Schedule


def num_steps(epochs: float, steps_per_epoch: int) -> int:
    """Optimizer steps of a run of this many epochs, at least one."""
    return max(1, round(epochs * steps_per_epoch))


def learning_rate(schedule: Schedule, step: int, total: int) -> float:
    """The learning rate of the step numbered `step` (from 0) of `total`.

    With p = step / total, w the warm-up and lr the full rate: during the warm-up (p < w) the constant kind gives
    warmup_factor * lr and the linear kind rises from there to lr. Afterwards `step` gives lr * drop_factor ** (drops
    passed), `cosine` lr * (1 + cos(pi q)) / 2 and `linear` lr * (1 - q), with q = (p - w) / (1 - w).

    >>> [learning_rate(Schedule(drops=(0.5, 0.75)), step, 64_000) for step in (0, 32_000, 48_000)]
    [0.1, 0.01, 0.001]
    """
    # To 12 digits, so that a tenth of 0.1 is 0.01 and not 0.010000000000000002.
    return float(f"{schedule.learning_rate * _share(schedule, step, total):.12g}")


def _share(schedule: Schedule, step: int, total: int) -> float:
    """The learning rate as a fraction of the full one."""
    warmup_steps = round(schedule.warmup * total)
    if step < warmup_steps:
        ramp = step / warmup_steps if schedule.warmup_kind == "linear" else 0.0
        return schedule.warmup_factor + (1 - schedule.warmup_factor) * ramp
    if schedule.kind == "step":
        return schedule.drop_factor ** sum(step >= round(drop * total) for drop in schedule.drops)
    passed = (step - warmup_steps) / (total - warmup_steps)
    return (1 + math.cos(math.pi * passed)) / 2 if schedule.kind == "cosine" else 1 - passed
