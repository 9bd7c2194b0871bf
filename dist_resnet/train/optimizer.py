"""Stochastic gradient descent with momentum over a model's parameters."""

import torch

from dist_resnet.recipe import Optimizer


def build_optimizer(optimizer: Optimizer, model: torch.nn.Module) -> torch.optim.SGD:
    """SGD over two groups: parameters of two and more dimensions, and vectors (BN's scale and shift, biases).

    The vectors decay only under `decay_norm_and_bias`. The learning rate is set at every step.
    """
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    return torch.optim.SGD(
        [
            {"params": matrices, "weight_decay": optimizer.weight_decay},
            {"params": vectors, "weight_decay": optimizer.weight_decay if optimizer.decay_norm_and_bias else 0.0},
        ],
        lr=0.0,
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
