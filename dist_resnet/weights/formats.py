"""The names under which programs store the weights of the same networks, as one table.

A format names every tensor of this project's networks; the inverse reads its files. A new format is a new entry.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from dist_resnet.wording import some

Weights = dict[str, torch.Tensor]

CLASSIFIER = "head.classifier."


def _as_given(name: str) -> str:
    return name


def _accept(_: Mapping[str, torch.Tensor]) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Format:
    """A program's names for a network's tensors."""

    title: str
    """The program, for messages."""
    marker: str
    """A tensor that only its files have."""
    theirs: Callable[[str], str] = _as_given
    """Its name for a tensor, given ours."""
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of the recipe's model that every network of the program has."""
    depths: tuple[int, ...] | None = None
    """Depths that the program has; None for all."""
    classifier_axes: int = 0
    """Axes of size 1 that its classifier's weight has beyond ours."""
    check: Callable[[Mapping[str, torch.Tensor]], None] = _accept
    """Raises ValueError for weights, by our names, with which its network and ours compute different logits."""


_PUBLISHED = {"shortcut": "identity", "stride_on": "conv3x3", "widening": "projection"}
_DEPTHS = (50, 101, 152)


def _renamed(name: str, rules: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]) -> str:
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


def _torchvision(name: str) -> str:
    """
    >>> _torchvision("stages.0.units.2.branch.norm3.bias"), _torchvision("stages.1.units.0.shortcut.widening.norm.bias")
    ('layer1.2.bn3.bias', 'layer2.0.downsample.1.bias')
    """
    return _renamed(
        name,
        (
            (r"^stem\.conv", "conv1"),
            (r"^stem\.norm", "bn1"),
            (r"^stages\.(\d+)\.units", lambda stage: f"layer{int(stage[1]) + 1}"),
            (r"\.branch\.norm", ".bn"),
            (r"\.branch\.conv", ".conv"),
            (r"\.shortcut\.widening\.conv", ".downsample.0"),
            (r"\.shortcut\.widening\.norm", ".downsample.1"),
            (r"^head\.classifier", "fc"),
        ),
    )


def _timm(name: str) -> str:
    """
    >>> _timm("stages.0.units.2.branch.norm1.weight"), _timm("stem.norm.bias"), _timm("head.activation.norm.bias")
    ('stages.0.blocks.2.norm2.weight', 'stages.0.blocks.0.norm1.bias', 'norm.bias')
    """
    return _renamed(
        name,
        (
            (r"^stem\.norm", "stages.0.blocks.0.norm1"),
            (r"\.units\.", ".blocks."),
            (r"\.preactivation\.norm", ".norm1"),
            (r"\.branch\.norm(\d)", lambda norm: f".norm{int(norm[1]) + 1}"),
            (r"\.branch\.conv", ".conv"),
            (r"\.shortcut\.widening\.conv", ".downsample.conv"),
            (r"^head\.activation\.norm", "norm"),
            (r"^head\.classifier", "head.fc"),
        ),
    )


def _pools_the_same(weights: Mapping[str, torch.Tensor]) -> None:
    """Raises ValueError unless the norm before the max-pooling keeps the order of its inputs."""
    scales = weights["stem.norm.weight"]
    wrong = (~(scales > 0)).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(scales)} scales of the first norm are not positive (channel {wrong[0]}: "
            f"{scales[wrong[0]]:.4g}); timm pools before this norm and this project after it, which is the same only "
            "for positive scales, so no network of the other computes with these weights"
        )


OURS = Format(title="this project", marker="stages.0.units.0.branch.conv1.weight")
TORCHVISION = Format(
    title="torchvision",
    marker="layer1.0.conv1.weight",
    theirs=_torchvision,
    model={**_PUBLISHED, "placement": "original"},
    depths=_DEPTHS,
)
TIMM = Format(
    title="timm",
    marker="stages.0.blocks.0.conv1.weight",
    theirs=_timm,
    model={**_PUBLISHED, "placement": "full_preactivation"},
    depths=_DEPTHS,
    classifier_axes=2,
    check=_pools_the_same,
)
FORMATS = {"dist_resnet": OURS, "torchvision": TORCHVISION, "timm": TIMM}


def recognize(state: Mapping[str, torch.Tensor]) -> Format:
    """The format of a state dict. Raises ValueError if it has none of the table's."""
    found = next((one for one in FORMATS.values() if one.marker in state), None)
    if found is None:
        raise ValueError(
            f"its {len(state)} tensors ({some(list(state))}) are not named as in this project, torchvision's resnet50, "
            "101 or 152, or timm's resnetv2_50, 101 or 152"
        )
    return found
