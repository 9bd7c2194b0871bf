"""The residual networks of the paper (arXiv:1603.05027): any shortcut, placement and depth.

Importing this package does not import torch, so that a driver can check a recipe with `depths` cheaply.
"""

from typing import TYPE_CHECKING

from dist_resnet.recipe import Model

if TYPE_CHECKING:
    from dist_resnet.model.resnet import ResNet


def build_model(model: Model) -> "ResNet":
    """The network of a recipe: float images [N, 3, H, W] -> logits [N, num_classes], freshly initialized.

    The network is on torch's default device; its initial weights follow torch's current seed. Under
    `torch.device("meta")` it has no memory, for checks and counts. Raises ValueError if no network has `model.depth`
    layers.

    >>> len(build_model(Model(depth=20, num_classes=10)).units)
    9
    """
    # Late, so that importing the package does not import torch.
    import torch

    from dist_resnet.model.initialize import initialize
    from dist_resnet.model.resnet import ResNet

    # Built without memory first, so that modules do not draw initial weights that are overwritten.
    device = torch.get_default_device()
    with torch.device("meta"):
        network = ResNet(model)
    network.to_empty(device=device)
    initialize(network, model.gate_bias)
    return network
