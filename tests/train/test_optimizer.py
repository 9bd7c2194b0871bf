"""The optimizer. Oracle: the update of SGD with momentum and L2 decay written out in torch tensors."""

import torch

from dist_resnet.recipe import Optimizer
from dist_resnet.train.optimizer import build_optimizer, set_learning_rate


def _model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))


def _step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def test_two_steps_follow_the_momentum_formula():
    model = _model()
    expected = [parameter.detach().clone() for parameter in model.parameters()]
    velocity = [torch.zeros_like(parameter) for parameter in expected]
    optimizer = build_optimizer(Optimizer(momentum=0.9, weight_decay=0.01), model)
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


def test_scales_shifts_and_biases_need_not_decay():
    model = _model()
    optimizer = build_optimizer(Optimizer(weight_decay=0.1, decay_norm_and_bias=False), model)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decays[id(parameter)] for name, parameter in model.named_parameters()} == {
        "0.weight": 0.1,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
    }
