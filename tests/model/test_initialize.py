"""Initial weights; oracle: N(0, sqrt(2 / (k * k * out))) of arXiv:1502.01852, and fb.resnet.torch for the rest."""

import math

import pytest
import torch
from torch import nn

from dist_resnet.model import build_model
from dist_resnet.model.initialize import initialize
from dist_resnet.recipe import Model

MODEL = Model(depth=20, num_classes=10, shortcut="exclusive_gating", gate_bias=-7.0)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([parameter.flatten() for parameter in build_model(MODEL).parameters()])

    assert torch.equal(weights(5), weights(5))
    assert not torch.equal(weights(5), weights(6))


def test_convolutions_are_normal_with_the_deviation_of_he():
    torch.manual_seed(0)
    for name, module in build_model(MODEL).named_modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            num = module.weight.numel()
            assert module.weight.std().item() == pytest.approx(expected, rel=4 / math.sqrt(2 * num)), name
            assert abs(module.weight.mean().item()) < 4 * expected / math.sqrt(num), name


def test_only_gates_have_a_convolution_bias_and_it_is_the_recipes():
    for name, module in build_model(MODEL).named_modules():
        if isinstance(module, nn.Conv2d):
            assert (module.bias is not None) == name.endswith("gate")
            assert module.bias is None or torch.equal(module.bias, torch.full_like(module.bias, -7.0))


def test_norms_start_neutral_and_the_classifier_without_bias():
    network = build_model(MODEL)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert type(module) is nn.BatchNorm2d
            assert module.weight.eq(1).all()
            assert module.bias.eq(0).all()
    assert network.head.classifier.bias.eq(0).all()
    assert network.head.classifier.weight.abs().max() <= 1 / math.sqrt(64)


def test_a_network_that_gets_its_memory_later_starts_with_the_same_weights():
    with torch.device("meta"):
        network = build_model(MODEL)
    network.to_empty(device="cpu")
    torch.manual_seed(0)
    initialize(network, MODEL.gate_bias)
    torch.manual_seed(0)
    expected = build_model(MODEL).state_dict()
    assert expected.keys() == network.state_dict().keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())


class _Scale(nn.Module):
    """Multiplies by one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(()))


class _ScaleOfTwo(_Scale):
    def reset_parameters(self) -> None:
        nn.init.constant_(self.scale, 2.0)


def test_weights_that_nothing_sets_are_refused_and_reset_parameters_is_used():
    network = nn.Sequential(_ScaleOfTwo())
    initialize(network, 0.0)
    assert network[0].scale == 2.0
    with pytest.raises(TypeError, match="_Scale has weights but no reset_parameters"):
        initialize(nn.Sequential(_Scale()), 0.0)
