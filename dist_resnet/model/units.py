"""The residual unit, Eqns. (1), (2) and (9) of arXiv:1603.05027: shortcut, residual branch and activations.

activated = f-hat(x)                         preactivation; the identity in placements 4(a) to 4(c)
y = h(x) + F(activated)                      shortcut, branch
next x = f(y)                                activation; the identity in placements 4(c) to 4(e)
"""

from collections import OrderedDict

from torch import Tensor, nn

from dist_resnet import recipe
from dist_resnet.model.placements import PLACEMENTS, Placement, build_steps
from dist_resnet.model.shortcuts import Passage, build_shortcut


class ResidualUnit(nn.Module):
    """One residual unit: float [N, in_width, H, W] -> [N, width, H / stride, W / stride].

    `preactivation`, `branch` (F without its pre-activation), `shortcut` (h and the addition) and `activation` can be
    hooked; the unit's and the branch's output are never changed in place. `is_first` marks the network's first unit,
    whose pre-activation is the stem's BN and ReLU (Sec. 4.1).
    """

    def __init__(self, passage: Passage, model: recipe.Model, *, bottleneck: bool, is_first: bool) -> None:
        super().__init__()
        placement = PLACEMENTS[model.placement]
        self.preactivation = build_steps(() if is_first else placement.before, passage.in_width, input_is_ours=False)
        build_branch = build_bottleneck_branch if bottleneck else build_basic_branch
        self.branch = build_branch(passage, model, placement)
        self.shortcut = build_shortcut(passage, model)
        self.activation = build_steps(placement.after, passage.width, input_is_ours=True)
        # If the shape changes, one pre-activation serves both paths. Bottleneck units follow the paper's appendix:
        # projection shortcuts "are also with pre-activation".
        # Departs from the paper: for basic units, whose shortcuts have no projection, Eqn. (9) activates only the
        # branch; this follows the public code of facebook/fb.resnet.torch.
        self.shares_preactivation = passage.changes_shape

    def forward(self, x: Tensor) -> Tensor:
        activated = self.preactivation(x)
        y = self.shortcut(activated if self.shares_preactivation else x, self.branch(activated))
        return self.activation(y)


def build_basic_branch(passage: Passage, model: recipe.Model, placement: Placement) -> nn.Module:
    """F of a basic unit: two 3x3 convolutions, the first with the stride."""
    convs = [
        convolution(passage.in_width, passage.width, 3, passage.stride),
        convolution(passage.width, passage.width, 3),
    ]
    return _join(convs, placement)


def build_bottleneck_branch(passage: Passage, model: recipe.Model, placement: Placement) -> nn.Module:
    """F of a bottleneck unit: 1x1 to a quarter of the width, 3x3, 1x1 back; `stride_on` says which has the stride."""
    inner = passage.width // 4
    first, second = (passage.stride, 1) if model.stride_on == "conv1x1" else (1, passage.stride)
    convs = [
        convolution(passage.in_width, inner, 1, first),
        convolution(inner, inner, 3, second),
        convolution(inner, passage.width, 1),
    ]
    return _join(convs, placement)


def convolution(in_width: int, width: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the resolution except for its stride; without bias, as BN follows."""
    return nn.Conv2d(in_width, width, size, stride, padding=size // 2, bias=False)


def _join(convs: list[nn.Conv2d], placement: Placement) -> nn.Sequential:
    """The convolutions with BN and ReLU between them and the placement's end: conv1, norm1, relu1, conv2, ..."""
    branch = OrderedDict[str, nn.Module]()
    for number, conv in enumerate(convs, start=1):
        branch[f"conv{number}"] = conv
        for step in placement.end if number == len(convs) else ("norm", "relu"):
            module = nn.BatchNorm2d(conv.out_channels) if step == "norm" else nn.ReLU(inplace=True)
            branch[f"{step}{number}"] = module
    return nn.Sequential(branch)
