"""Parameters and multiply-adds of the networks, counted from the real modules, with the published figures.

    python -m dist_resnet.model.complexity --depths 110 164 1001

Networks are built on torch's meta device, so nothing is computed.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from dist_resnet import paper, recipe
from dist_resnet.model.depths import layout_of
from dist_resnet.model.resnet import ResNet

DEPTHS = (20, 56, 110, 164, 1001, 50, 101, 152, 200)


@dataclass(frozen=True, kw_only=True)
class Complexity:
    """A network's size and cost."""

    parameters: int
    """Learned numbers."""
    norm_parameters: int
    """Parameters that are BN's scales and shifts, which some published counts leave out."""
    multiply_adds: int
    """Multiply-adds of convolutions and classifier in one forward pass of one image."""


def measure(model: recipe.Model, size: int) -> Complexity:
    """The complexity of a recipe's network for images of `size` x `size` pixels."""
    with torch.device("meta"):
        network = ResNet(model).eval()
        image = torch.empty(1, 3, size, size)
    multiply_adds = 0

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        # Each output of a convolution or classifier is the scalar product with one row of its weight.
        nonlocal multiply_adds
        multiply_adds += output.numel() * module.get_parameter("weight")[0].numel()

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(image)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    return Complexity(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        norm_parameters=sum(parameter.numel() for norm in norms for parameter in norm.parameters()),
        multiply_adds=multiply_adds,
    )


def table(depths: Sequence[int], **fields: Any) -> str:
    """A table of the complexity at each depth, with 10 classes at 32 pixels or 1000 at 224.

    `fields` are further fields of `recipe.Model`, such as `placement`.
    """
    lines = [
        f"{'depth':>5}  {'units':<10}  {'pixels':>6}  {'parameters':>11}  {'without BN':>11}  {'published':>9}  "
        f"{'multiply-adds':>14}  {'published':>13}"
    ]
    for depth in depths:
        layout = layout_of(depth)
        num_classes, size = (1000, 224) if layout.stem == "imagenet" else (10, 32)
        cost = measure(recipe.Model(depth=depth, num_classes=num_classes, **fields), size)
        published = f"{paper.MILLION_PARAMETERS[depth]} M" if depth in paper.MILLION_PARAMETERS else ""
        low, high = paper.BILLION_MULTIPLY_ADDS.get(depth, ("", ""))
        lines.append(
            f"{depth:>5}  {'bottleneck' if layout.bottleneck else 'basic':<10}  {size:>6}  "
            f"{cost.parameters / 1e6:>9.2f} M  {(cost.parameters - cost.norm_parameters) / 1e6:>9.2f} M  "
            f"{published:>9}  {cost.multiply_adds / 1e9:>12.2f} G  {f'{low} to {high} G' if low else '':>13}"
        )
    return "\n".join(line.rstrip() for line in lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the table for the command line's depths."""
    parser = argparse.ArgumentParser(
        prog="python -m dist_resnet.model.complexity",
        description="Parameters and multiply-adds of each depth, with the published figures.",
    )
    parser.add_argument(
        "--depths", type=int, nargs="+", default=DEPTHS, help="depths to count (default: all published)"
    )
    for name, values in (("shortcut", recipe.Shortcut), ("placement", recipe.Placement)):
        default = recipe.Model.__dataclass_fields__[name].default
        parser.add_argument(f"--{name}", choices=get_args(values), default=default, help=f"default: {default}")
    options = parser.parse_args(arguments)
    try:
        sys.stdout.write(table(options.depths, shortcut=options.shortcut, placement=options.placement))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
