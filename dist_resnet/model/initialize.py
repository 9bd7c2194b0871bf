"""The initial weights: arXiv:1502.01852 as in KaimingHe/resnet-1k-layers and facebook/fb.resnet.torch."""

import math

import torch
from torch import nn


@torch.no_grad()
def initialize(network: nn.Module, gate_bias: float) -> None:
    """Draws every weight of a network from torch's current seed.

    Convolutions: N(0, sqrt(2 / (k * k * out))). BN: scale 1, shift 0, fresh running statistics. Gates, the only
    convolutions with a bias: `gate_bias` (Sec. 3.1). Classifier: torch's uniform weights, bias 0. Other modules with
    weights: their `reset_parameters`. Raises TypeError if such a module has none: its memory is uninitialized.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            module.weight.normal_(0, math.sqrt(2 / fan_out))
            if module.bias is not None:
                module.bias.fill_(gate_bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            module.reset_parameters()
            module.bias.zero_()
        elif list(module.parameters(recurse=False)) or list(module.buffers(recurse=False)):
            reset = getattr(module, "reset_parameters", None)
            if not callable(reset):
                raise TypeError(f"{type(module).__name__} has weights but no reset_parameters to set them")
            reset()
