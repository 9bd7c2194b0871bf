"""The optimizer. Oracle: the update of SGD with momentum and L2 decay written out in torch tensors."""

from typing import get_args

import pytest
import torch

from dist_resnet.model import build_model
from dist_resnet.recipe import Model, Optimizer, Shortcut
from dist_resnet.train.optimizer import build_optimizer, set_learning_rate


def _model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4))


def _step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def test_two_steps_follow_the_momentum_formula():
    model = _model()
    expected = [parameter.detach().clone() for parameter in model.parameters()]
    velocity = [torch.zeros_like(parameter) for parameter in expected]
    optimizer = build_optimizer(Optimizer(momentum=0.9, weight_decay=0.01, decay_norm_and_bias=True), model)
    for rate in (0.1, 0.05):
        set_learning_rate(optimizer, rate)
        _step(model, optimizer)
        for parameter, v in zip(expected, velocity, strict=True):
            v.mul_(0.9).add_(1 + 0.01 * parameter)
            parameter.sub_(rate * v)
    for parameter, wanted in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), wanted)


def test_nesterov_looks_one_momentum_ahead():
    model = _model()
    before = model[0].weight.detach().clone()
    optimizer = build_optimizer(Optimizer(momentum=0.5, nesterov=True, weight_decay=0.0), model)
    set_learning_rate(optimizer, 0.1)
    _step(model, optimizer)
    torch.testing.assert_close(model[0].weight.detach(), before - 0.1 * (1 + 0.5 * 1))


@pytest.mark.parametrize("shortcut", get_args(Shortcut))
@pytest.mark.parametrize("everything", [False, True])
def test_weights_always_decay_gate_biases_never_and_the_rest_by_choice(shortcut: Shortcut, everything: bool):
    """Oracle: the names of a network's parameters."""
    model = build_model(Model(depth=8, num_classes=4, shortcut=shortcut))
    optimizer = build_optimizer(Optimizer(weight_decay=0.1, decay_norm_and_bias=everything), model)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        is_weight = name.endswith(("conv.weight", "conv1.weight", "conv2.weight", "classifier.weight", "gate.weight"))
        expected = is_weight or name == "stages.0.units.0.shortcut.projection.weight" or everything
        expected = expected and not name.endswith("gate.bias")
        assert decays[id(parameter)] == (0.1 if expected else 0.0), name


def test_a_gates_bias_does_not_decay():
    model = build_model(Model(depth=8, num_classes=4, shortcut="exclusive_gating", gate_bias=-6.0))
    optimizer = build_optimizer(Optimizer(weight_decay=0.1, decay_norm_and_bias=True), model)
    set_learning_rate(optimizer, 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    biases = [value for name, value in model.named_parameters() if name.endswith("gate.bias")]
    assert biases
    assert all((bias == -6).all() for bias in biases)
