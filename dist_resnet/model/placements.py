"""The five orders of BN, ReLU and addition: Fig. 4 of arXiv:1603.05027, as data.

All five have BN and ReLU between two convolutions of a branch, so they differ only in three places:

    x -> before -> conv -> BN -> ReLU -> conv -> end -> (+) -> after
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from torch import nn

from dist_resnet import recipe

Step = Literal["norm", "relu"]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The steps of one placement; see the module's docstring for the three places."""

    before: tuple[Step, ...] = ()
    """The pre-activation f-hat of Eqn. (9), before the first convolution."""
    end: tuple[Step, ...] = ()
    """After the branch's last convolution, before the addition."""
    after: tuple[Step, ...] = ()
    """The activation f of Eqn. (2), after the addition."""

    @property
    def norm_on_shortcut(self) -> bool:
        """Whether BN follows a convolution on the shortcut: only if it also follows the branch's last convolution.

        In 4(a) this is the rule of arXiv:1512.03385, Sec. 3.4, "BN right after each convolution", and the public code
        of facebook/fb.resnet.torch; in 4(e) there is none, as in KaimingHe/resnet-1k-layers.
        """
        return "norm" in self.end


PLACEMENTS: dict[recipe.Placement, Placement] = {
    "original": Placement(end=("norm",), after=("relu",)),  # Fig. 4(a)
    "bn_after_addition": Placement(after=("norm", "relu")),  # Fig. 4(b)
    "relu_before_addition": Placement(end=("norm", "relu")),  # Fig. 4(c)
    "relu_only_preactivation": Placement(before=("relu",), end=("norm",)),  # Fig. 4(d)
    "full_preactivation": Placement(before=("norm", "relu")),  # Fig. 4(e)
}


def build_steps(steps: tuple[Step, ...], width: int, *, input_is_ours: bool) -> nn.Module:
    """A module that applies the steps in order to `width` channels; the identity if there are none.

    A ReLU works in place if nothing else uses its input: after a BN, or if `input_is_ours`.
    """
    if not steps:
        return nn.Identity()
    modules = OrderedDict[str, nn.Module]()
    for step in steps:
        modules[step] = nn.BatchNorm2d(width) if step == "norm" else nn.ReLU(inplace=input_is_ours)
        input_is_ours = True
    return nn.Sequential(modules)
