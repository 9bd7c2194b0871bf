"""Stochastic gradient descent with momentum over a model's parameters."""

from collections.abc import Iterable

import torch

from dist_resnet.recipe import Optimizer


def build_optimizer(optimizer: Optimizer, model: torch.nn.Module) -> torch.optim.SGD:
    """SGD over parameters that decay and parameters that do not. The learning rate is set at every step.

    Weights of convolutions and classifier decay; BN's scale and shift and the classifier's bias only under
    `decay_norm_and_bias`; the biases of gates never: decay alone would take them from -6 to -0.24 within half of the
    paper's iterations and open the gates, whose initial bias Table 1 compares.
    """
    gates = {id(module.bias) for module in model.modules() if isinstance(module, torch.nn.Conv2d)}
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        decays = parameter.ndim >= 2 or (optimizer.decay_norm_and_bias and id(parameter) not in gates)
        groups[decays].append(parameter)
    return torch.optim.SGD(
        [
            {"params": groups[True], "weight_decay": optimizer.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=0.0,
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov,
        fused=True,
    )


# What each optimizer keeps for a parameter. A checkpoint holds these and no others.
_SLOTS: dict[type[torch.optim.Optimizer], frozenset[str]] = {torch.optim.SGD: frozenset({"momentum_buffer"})}


def check_slots(optimizer: torch.optim.Optimizer, slots: Iterable[str]) -> None:
    """Raises ValueError if the optimizer does not keep one of these slots for its parameters."""
    known = _SLOTS.get(type(optimizer), frozenset())
    if unknown := sorted(set(slots) - known):
        raise ValueError(
            f"{type(optimizer).__name__} keeps {', '.join(sorted(known)) or 'no known state'} for each parameter, not "
            f"{', '.join(unknown)}: the state belongs to another optimizer, or _SLOTS lacks it"
        )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
