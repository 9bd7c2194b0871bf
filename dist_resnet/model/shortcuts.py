"""The six shortcuts h(x) of arXiv:1603.05027, Sec. 3 and Fig. 2, each with the addition.

A shortcut is called as `shortcut(x, residual)` and returns y of Eqn. (1), y = h(x) + s(x) * F(x), for the residual
branch's output F(x). x: float [N, in_width, H, W]; residual and y: float [N, width, H / stride, W / stride].

If width or resolution change, `widening` first brings x to the new shape, by a 1x1 convolution (option B of
arXiv:1512.03385) or zero channels (option A); the shortcut's scale, gate or dropout acts on the result. The paper does
not specify this. ResNet-110 of arXiv:1512.03385 has option A, KaimingHe/resnet-1k-layers (164, 1001) and the ImageNet
networks have B. Only `conv1x1` has a convolution on every shortcut (option C). Gates take x before the widening; their
1x1 convolution has the stride and as many outputs as the channels it multiplies.
"""

import abc
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_resnet import recipe
from dist_resnet.model.depths import layout_of
from dist_resnet.model.placements import PLACEMENTS


@dataclass(frozen=True, kw_only=True)
class Passage:
    """The change of shape from a unit's input to its output."""

    in_width: int
    """Channels of the unit's input."""
    width: int
    """Channels of the unit's output."""
    stride: int
    """Pixels of the input per pixel of the output, on each side."""

    @property
    def changes_shape(self) -> bool:
        """Whether the unit's output differs in shape from its input."""
        return self.in_width != self.width or self.stride != 1


class ZeroPad(nn.Module):
    """Option A: every stride-th pixel, zeros in the added channels; no weights."""

    def __init__(self, passage: Passage) -> None:
        super().__init__()
        self.stride = passage.stride
        self.num_zeros = passage.width - passage.in_width

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.num_zeros))


class Shortcut(nn.Module, abc.ABC):
    """One of Fig. 2's shortcuts; class attributes state what other modules need to know about it."""

    draws_masks: ClassVar[bool] = False
    """Whether a pass in training draws random numbers."""
    is_learned: ClassVar[bool] = False
    """Whether training changes h(x) of units that keep the shape."""

    @staticmethod
    @abc.abstractmethod
    def gradient_scale(model: recipe.Model) -> float | None:
        """The root-mean-square factor by which a shape-keeping h(x) scales gradients at the initial weights; None if
        there is no formula. An f that is not the identity, such as the original unit's ReLU, adds a factor."""

    @abc.abstractmethod
    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """The sum y of Eqn. (1)."""


class Identity(Shortcut):
    """h(x) = x, Fig. 2(a)."""

    @staticmethod
    def gradient_scale(model: recipe.Model) -> float:
        return 1.0

    def __init__(self, passage: Passage, model: recipe.Model) -> None:
        super().__init__()
        self.widening = _widening(passage, model)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.widening(x) + residual


class ConstantScaling(Shortcut):
    """h(x) = shortcut_scale * x, and the branch times residual_scale, Fig. 2(b)."""

    @staticmethod
    def gradient_scale(model: recipe.Model) -> float:
        """
        >>> ConstantScaling.gradient_scale(recipe.Model(depth=110, num_classes=10, shortcut_scale=-0.5))
        0.5
        """
        return abs(model.shortcut_scale)

    def __init__(self, passage: Passage, model: recipe.Model) -> None:
        super().__init__()
        self.widening = _widening(passage, model)
        self.shortcut_scale = model.shortcut_scale
        self.residual_scale = model.residual_scale

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return torch.add(residual * self.residual_scale, self.widening(x), alpha=self.shortcut_scale)


class Gating(Shortcut):
    """h(x) = (1 - g(x)) * x for a learned gate g(x) = sigmoid(W_g x + b_g)."""

    is_learned = True

    @staticmethod
    def gradient_scale(model: recipe.Model) -> float:
        """1 - sigmoid(b_g), as if W_g x were zero."""
        return 1 / (1 + math.exp(model.gate_bias))

    def __init__(self, passage: Passage, model: recipe.Model) -> None:
        super().__init__()
        self.widening = _widening(passage, model)
        self.gate = _gate(passage)


class ExclusiveGating(Gating):
    """h(x) = (1 - g(x)) * x, and the branch times g(x), Fig. 2(c)."""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        # lerp(a, b, g) = (1 - g) * a + g * b in one pass over memory.
        return torch.lerp(self.widening(x), residual, torch.sigmoid(self.gate(x)))


class ShortcutOnlyGating(Gating):
    """h(x) = (1 - g(x)) * x, and the branch unchanged, Fig. 2(d)."""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        # 1 - sigmoid(z) = sigmoid(-z), which keeps small values exact.
        return torch.addcmul(residual, torch.sigmoid(-self.gate(x)), self.widening(x))


class Conv1x1(Shortcut):
    """h(x) = W x, a 1x1 convolution on every shortcut, Fig. 2(e)."""

    is_learned = True

    @staticmethod
    def gradient_scale(model: recipe.Model) -> float | None:
        """sqrt(2), the root of width times the weights' variance, 2 / width, unless BN follows the convolution."""
        return None if PLACEMENTS[model.placement].norm_on_shortcut else math.sqrt(2)

    def __init__(self, passage: Passage, model: recipe.Model) -> None:
        super().__init__()
        self.projection = _projection(passage, model)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.projection(x) + residual


class Dropout(Shortcut):
    """h(x) = dropout(x) at dropout_rate, Fig. 2(f); the identity in evaluation."""

    draws_masks = True

    @staticmethod
    def gradient_scale(model: recipe.Model) -> float:
        """1 / sqrt(1 - rate), because kept values are divided by 1 - rate; the paper does not divide and has 0.5."""
        return 1 / math.sqrt(1 - model.dropout_rate)

    def __init__(self, passage: Passage, model: recipe.Model) -> None:
        super().__init__()
        self.widening = _widening(passage, model)
        self.rate = model.dropout_rate

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return F.dropout(self.widening(x), self.rate, self.training) + residual


SHORTCUTS: dict[recipe.Shortcut, type[Shortcut]] = {
    "identity": Identity,
    "constant_scaling": ConstantScaling,
    "exclusive_gating": ExclusiveGating,
    "shortcut_only_gating": ShortcutOnlyGating,
    "conv1x1": Conv1x1,
    "dropout": Dropout,
}


def build_shortcut(passage: Passage, model: recipe.Model) -> Shortcut:
    """The shortcut of one residual unit, of the kind that the recipe names."""
    return SHORTCUTS[model.shortcut](passage, model)


def _widening(passage: Passage, model: recipe.Model) -> nn.Module:
    if not passage.changes_shape:
        return nn.Identity()
    return _projection(passage, model) if widens_by_projection(model) else ZeroPad(passage)


def widens_by_projection(model: recipe.Model) -> bool:
    """Whether shortcuts widen by a 1x1 convolution (option B) or by zero channels (option A)."""
    if model.widening == "auto":
        return layout_of(model.depth).bottleneck
    return model.widening == "projection"


def _projection(passage: Passage, model: recipe.Model) -> nn.Module:
    projection = nn.Sequential()
    projection.add_module("conv", nn.Conv2d(passage.in_width, passage.width, 1, passage.stride, bias=False))
    if PLACEMENTS[model.placement].norm_on_shortcut:
        projection.add_module("norm", nn.BatchNorm2d(passage.width))
    return projection


def _gate(passage: Passage) -> nn.Conv2d:
    return nn.Conv2d(passage.in_width, passage.width, 1, passage.stride, bias=True)
