"""Stochastic gradient descent with momentum over a model's parameters."""

from collections.abc import Iterable

import torch

from dist_resnet.recipe import Optimizer

# A group's factor on the learning rate.
_FACTOR = "learning_rate_factor"


def build_optimizer(optimizer: Optimizer, model: torch.nn.Module, *, head_factor: float = 1.0) -> torch.optim.SGD:
    """SGD over the parameters that are trained, by whether they decay. The learning rate is set at every step.

    Weights of convolutions and classifier decay; BN's scale and shift and the classifier's bias only under
    `decay_norm_and_bias`; the biases of gates never: decay alone would take them from -6 to -0.24 within half of the
    paper's iterations and open the gates, whose initial bias Table 1 compares. `head_factor` is a factor on the
    classifier's learning rate.
    """
    gates = {id(module.bias) for module in model.modules() if isinstance(module, torch.nn.Conv2d)}
    groups: dict[tuple[bool, float], list[torch.nn.Parameter]] = {(True, 1.0): [], (False, 1.0): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 or (optimizer.decay_norm_and_bias and id(parameter) not in gates)
            factor = head_factor if name.startswith("head.classifier.") else 1.0
            groups.setdefault((decays, factor), []).append(parameter)
    decayed = [
        {"params": parameters, "weight_decay": optimizer.weight_decay if decays else 0.0, _FACTOR: factor}
        for (decays, factor), parameters in groups.items()
    ]
    return torch.optim.SGD(
        decayed,
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
    """Sets the learning rate of every group, times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group[_FACTOR]
