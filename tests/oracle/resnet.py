"""The network of arXiv:1603.05027 as formulas on a state dict: no modules, no convolution or BN kernels.

Written from the paper's figures; it knows nothing of `dist_resnet.model` but the names in the state dict. Every
operation is spelled out: a convolution is a sum of shifted products, BN its mean and variance.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dist_resnet import recipe

EPSILON = 1e-5

# Fig. 4, read from top to bottom: the steps up to the addition, then those behind it.
FIGURE_4 = {
    "original": ("weight BN ReLU weight BN", "ReLU"),
    "bn_after_addition": ("weight BN ReLU weight", "BN ReLU"),
    "relu_before_addition": ("weight BN ReLU weight BN ReLU", ""),
    "relu_only_preactivation": ("ReLU weight BN ReLU weight BN", ""),
    "full_preactivation": ("BN ReLU weight BN ReLU weight", ""),
}
FIGURE_4_BOTTLENECK = {
    "original": ("weight BN ReLU weight BN ReLU weight BN", "ReLU"),
    "bn_after_addition": ("weight BN ReLU weight BN ReLU weight", "BN ReLU"),
    "relu_before_addition": ("weight BN ReLU weight BN ReLU weight BN ReLU", ""),
    "relu_only_preactivation": ("ReLU weight BN ReLU weight BN ReLU weight BN", ""),
    "full_preactivation": ("BN ReLU weight BN ReLU weight BN ReLU weight", ""),
}
# Placements in which every convolution is followed by its own BN, the shortcut's as well (arXiv:1512.03385, Sec. 3.4).
BN_FOLLOWS_EVERY_CONVOLUTION = ("original", "relu_before_addition", "relu_only_preactivation")
# Sec. 4.1: the activation behind the last unit.
EXTRA_ACTIVATION = {"relu_only_preactivation": "ReLU", "full_preactivation": "BN ReLU"}


@dataclass
class Network:
    """A network in formulas: its weights, and how it is put together."""

    state: dict[str, Tensor]
    model: recipe.Model
    num_units: tuple[int, ...]
    widths: tuple[int, ...]
    bottleneck: bool
    imagenet: bool = False
    training: bool = True

    def logits(self, images: Tensor) -> Tensor:
        """Float images [N, 3, H, W] -> logits [N, num_classes]."""
        x = conv(images, self.state["stem.conv.weight"], stride=2 if self.imagenet else 1)
        x = relu(self.norm(x, "stem.norm"))
        if self.imagenet:
            x = max_pool(x)
        for stage, num_units in enumerate(self.num_units):
            for unit in range(num_units):
                x = self.unit(x, stage, unit)
        x = self.steps(x, EXTRA_ACTIVATION.get(self.model.placement, ""), "head.activation.norm")
        means = x.sum(dim=(2, 3)) / (x.shape[2] * x.shape[3])
        return means @ self.state["head.classifier.weight"].T + self.state["head.classifier.bias"]

    def unit(self, x: Tensor, stage: int, unit: int) -> Tensor:
        """Eqns. (1), (2) and (9) for one unit."""
        name = f"stages.{stage}.units.{unit}"
        stride = 2 if stage > 0 and unit == 0 else 1
        width = self.widths[stage]
        changes = stride != 1 or x.shape[1] != width
        before_addition, after_addition = (FIGURE_4_BOTTLENECK if self.bottleneck else FIGURE_4)[self.model.placement]
        pre, weights = before_addition[: before_addition.index("weight")], before_addition.removeprefix("BN ")
        weights = weights.removeprefix("ReLU ")
        if stage == unit == 0:
            pre = ""  # Sec. 4.1: the stem's convolution is activated before the split.
        activated = self.steps(x, pre, f"{name}.preactivation.norm")
        residual = self.branch(activated, weights, name, stride)
        enters = activated if changes else x
        shortcut, scale = self.shortcut(enters, f"{name}.shortcut", width, stride, changes)
        return self.steps(shortcut + scale * residual, after_addition, f"{name}.activation.norm")

    def branch(self, x: Tensor, steps: str, name: str, stride: int) -> Tensor:
        """F: the steps from the first weight to the addition."""
        strided = 2 if self.bottleneck and self.model.stride_on == "conv3x3" else 1
        number = 0
        for step in steps.split():
            if step == "weight":
                number += 1
                weight = self.state[f"{name}.branch.conv{number}.weight"]
                x = conv(x, weight, stride if number == strided else 1)
            else:
                x = self.steps(x, step, f"{name}.branch.norm{number}")
        return x

    def shortcut(self, x: Tensor, name: str, width: int, stride: int, changes: bool) -> tuple[Tensor, Tensor | float]:
        """Fig. 2: h(x), and the factor of the residual branch."""
        kind = self.model.shortcut
        if kind == "conv1x1":
            return self.projection(x, f"{name}.projection", stride), 1.0
        wide = self.widen(x, f"{name}.widening", width, stride) if changes else x
        if kind == "constant_scaling":
            return self.model.shortcut_scale * wide, self.model.residual_scale
        if kind in ("exclusive_gating", "shortcut_only_gating"):
            z = conv(x, self.state[f"{name}.gate.weight"], stride)
            z = z + self.state[f"{name}.gate.bias"].view(1, -1, 1, 1)
            g = 1 / (1 + torch.exp(-z))
            return (1 - g) * wide, g if kind == "exclusive_gating" else 1.0
        if kind == "dropout" and self.training:
            # torch only draws which ones are kept, from the same seed; `requires_grad` picks the same kernel.
            ones = torch.ones(wide.shape, dtype=wide.dtype, requires_grad=True)
            kept = torch.nn.functional.dropout(ones, self.model.dropout_rate) > 0
            return wide * kept / (1 - self.model.dropout_rate), 1.0
        return wide, 1.0

    def widen(self, x: Tensor, name: str, width: int, stride: int) -> Tensor:
        """Options A and B of arXiv:1512.03385."""
        auto = "projection" if self.bottleneck else "zero_pad"
        if self.model.widening == "projection" or (self.model.widening == "auto" and auto == "projection"):
            return self.projection(x, name, stride)
        x = x[:, :, ::stride, ::stride]
        zeros = torch.zeros(x.shape[0], width - x.shape[1], *x.shape[2:], dtype=x.dtype)
        return torch.cat([x, zeros], dim=1)

    def projection(self, x: Tensor, name: str, stride: int) -> Tensor:
        """A 1x1 convolution, with BN where the placement gives each convolution its own."""
        x = conv(x, self.state[f"{name}.conv.weight"], stride)
        return self.norm(x, f"{name}.norm") if self.model.placement in BN_FOLLOWS_EVERY_CONVOLUTION else x

    def steps(self, x: Tensor, steps: str, norm: str) -> Tensor:
        """BN and ReLU as written, the BN under the name `norm`."""
        apply: dict[str, Callable[[Tensor], Tensor]] = {"BN": lambda x: self.norm(x, norm), "ReLU": relu}
        for step in steps.split():
            x = apply[step](x)
        return x

    def norm(self, x: Tensor, name: str) -> Tensor:
        """Batch normalization of arXiv:1502.03167, Algorithm 1; in evaluation with the running statistics."""
        if self.training:
            mean = x.sum(dim=(0, 2, 3), keepdim=True) / (x.numel() / x.shape[1])
            variance = ((x - mean) ** 2).sum(dim=(0, 2, 3), keepdim=True) / (x.numel() / x.shape[1])
        else:
            mean = self.state[f"{name}.running_mean"].view(1, -1, 1, 1)
            variance = self.state[f"{name}.running_var"].view(1, -1, 1, 1)
        scale, shift = (self.state[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias"))
        return scale * (x - mean) / torch.sqrt(variance + EPSILON) + shift


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return torch.where(x > 0, x, torch.zeros_like(x))


def conv(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """A convolution as the sum over its taps of shifted products; zeros around the image, k // 2 wide."""
    size = weight.shape[2]
    out = None
    for taps, shifted in _shifts(x, size, stride, 0.0):
        term = torch.einsum("nchw,oc->nohw", shifted, weight[:, :, taps[0], taps[1]])
        out = term if out is None else out + term
    assert out is not None
    return out


def max_pool(x: Tensor) -> Tensor:
    """The maximum of every 3x3 window, at every second pixel."""
    out = None
    for _, shifted in _shifts(x, 3, 2, -torch.inf):
        out = shifted if out is None else torch.maximum(out, shifted)
    assert out is not None
    return out


def _shifts(x: Tensor, size: int, stride: int, fill: float) -> list[tuple[tuple[int, int], Tensor]]:
    """For each tap of a size x size window, the pixels that it sees."""
    margin = size // 2
    n, c, height, width = x.shape
    frame = torch.full((n, c, height + 2 * margin, width + 2 * margin), fill, dtype=x.dtype)
    frame[:, :, margin : margin + height, margin : margin + width] = x
    return [
        ((i, j), frame[:, :, i : i + height : stride, j : j + width : stride]) for i in range(size) for j in range(size)
    ]
