"""Frozen layers: no gradients, no weight decay, and BN with its running statistics."""

import torch

from dist_resnet.model.depths import layout_of
from dist_resnet.model.resnet import ResNet
from dist_resnet.recipe import Freeze, Model


def check_part(model: Model, part: Freeze) -> None:
    """Raises ValueError if the network has no such part."""
    stages = _stages(len(layout_of(model.depth).num_units))
    if part not in ("none", "stem", "all-but-head", *stages):
        raise ValueError(
            f"initial.freeze {part}: the network of depth {model.depth} has the stages 1 .. {len(stages)}; give "
            f"--initial.freeze stem, {', '.join(stages)} or all-but-head"
        )


def freeze(network: torch.nn.Module, part: Freeze) -> None:
    """Takes the part's parameters out of training."""
    for module in _frozen(network, part):
        module.requires_grad_(False)


def train_mode(network: torch.nn.Module, part: Freeze) -> None:
    """Puts the network in training mode, but its frozen part in evaluation mode."""
    network.train()
    for module in _frozen(network, part):
        module.eval()


def _frozen(network: torch.nn.Module, part: Freeze) -> list[torch.nn.Module]:
    """The modules of a part, which begins with the first layer."""
    if part == "none":
        return []
    assert isinstance(network, ResNet)
    if part == "all-but-head":
        return [network.stem, network.stages, network.head.activation]
    names = _stages(len(network.stages))
    return [network.stem, *network.stages[: names.index(part) + 1 if part in names else 0]]


def _stages(number: int) -> list[str]:
    return [f"stage{stage}" for stage in range(1, number + 1)]
