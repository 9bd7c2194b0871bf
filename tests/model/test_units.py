"""Properties of residual units; oracle: Eqns. (4) and (7) and Sec. 4.1 of arXiv:1603.05027, read off with hooks."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from dist_resnet.model import build_model
from dist_resnet.model.resnet import ResNet
from dist_resnet.recipe import Model, Placement, Shortcut


def record(network: ResNet, images: Tensor) -> dict[str, list[Tensor]]:
    """Inputs and outputs of the units, and outputs of their branches, after the forward pass."""
    seen: dict[str, list[Tensor]] = {"input": [], "output": [], "branch": [], "output_copy": [], "branch_copy": []}

    def keep_unit(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen["input"].append(inputs[0])
        seen["output"].append(output)
        seen["output_copy"].append(output.clone())

    def keep_branch(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen["branch"].append(output)
        seen["branch_copy"].append(output.clone())

    for unit in network.units:
        unit.register_forward_hook(keep_unit)
        unit.branch.register_forward_hook(keep_branch)
    network(images)
    return seen


def build(**fields: Any) -> ResNet:
    torch.manual_seed(0)
    network = build_model(Model(depth=20, num_classes=10, **fields))
    network.double()
    return network


def images_of(num: int = 4) -> Tensor:
    return torch.randn(num, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("placement", ["relu_before_addition", "relu_only_preactivation", "full_preactivation"])
def test_the_deep_feature_is_the_shallow_one_plus_all_residuals(placement: Placement):
    # Eqn. (4), x_L = x_l + sum F, if f is the identity; units 3 to 5 are the second stage.
    seen = record(build(placement=placement), images_of())
    for first, last in ((0, 2), (4, 5), (7, 8)):
        total = seen["input"][first] + sum(seen["branch"][first : last + 1])
        torch.testing.assert_close(seen["output"][last], total)


def test_the_gradient_reaches_a_shallow_unit_unweakened():
    # Eqn. (5) with all branches at zero: dE/dx_l = dE/dx_L.
    network = build()
    for unit in network.units:
        nn.init.zeros_(unit.branch.get_parameter("conv2.weight"))
    images = images_of()
    x_l = network.stem(images).detach().requires_grad_()
    network.stages[0](x_l).backward(torch.ones_like(x_l))
    torch.testing.assert_close(x_l.grad, torch.ones_like(x_l))


@pytest.mark.parametrize("scale", [0.5, 0.9, 1.5])
def test_constant_scaling_multiplies_signal_and_gradient_by_the_product_of_scales(scale: float):
    # Eqns. (7) and (8) with all branches at zero, over the three units of a stage.
    network = build(shortcut="constant_scaling", shortcut_scale=scale, residual_scale=1.0)
    for unit in network.units:
        nn.init.zeros_(unit.branch.get_parameter("conv2.weight"))
    x_l = network.stem(images_of()).detach().requires_grad_()
    x_next = network.stages[0](x_l)
    torch.testing.assert_close(x_next, scale**3 * x_l)
    x_next.sum().backward()
    torch.testing.assert_close(x_l.grad, torch.full_like(x_l, scale**3))


def test_constant_scaling_of_one_is_the_identity_shortcut():
    plain, scaled = build(), build(shortcut="constant_scaling", shortcut_scale=1.0, residual_scale=1.0)
    torch.testing.assert_close(scaled(images_of()), plain(images_of()))


def test_gates_with_a_very_negative_bias_leave_the_identity_shortcut():
    plain, gated = build(), build(shortcut="shortcut_only_gating", gate_bias=-60.0)
    gated.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(gated(images_of()), plain(images_of()))


def test_dropout_is_the_identity_shortcut_in_evaluation_only():
    plain, dropped = build().eval(), build(shortcut="dropout").eval()
    torch.testing.assert_close(dropped(images_of()), plain(images_of()))
    assert not torch.allclose(dropped.train()(images_of()), plain.train()(images_of()))


@pytest.mark.parametrize("placement", ["relu_only_preactivation", "full_preactivation"])
def test_every_unit_but_the_first_has_its_own_preactivation(placement: Placement):
    first, *others = build(placement=placement).units
    assert isinstance(first.preactivation, nn.Identity)
    assert not any(isinstance(unit.preactivation, nn.Identity) for unit in others)


def test_the_last_unit_is_followed_by_an_extra_activation_of_the_placements_kind():
    kinds = {
        placement: [type(m) for m in build(placement=placement).head.activation.children()]
        for placement in get_args(Placement)
    }
    assert kinds["full_preactivation"] == [nn.BatchNorm2d, nn.ReLU]
    assert kinds["relu_only_preactivation"] == [nn.ReLU]
    assert kinds["original"] == kinds["bn_after_addition"] == kinds["relu_before_addition"] == []


@pytest.mark.parametrize("placement", get_args(Placement))
@pytest.mark.parametrize("shortcut", get_args(Shortcut))
def test_tensors_seen_by_hooks_are_not_changed_in_place_afterwards(shortcut: Shortcut, placement: Placement):
    seen = record(build(shortcut=shortcut, placement=placement), images_of(2))
    for name in ("output", "branch"):
        assert all(torch.equal(kept, copy) for kept, copy in zip(seen[name], seen[f"{name}_copy"], strict=True))


@pytest.mark.parametrize("placement", get_args(Placement))
def test_gradients_can_be_hooked_at_units_and_branches(placement: Placement):
    network, norms = build(placement=placement), []
    for unit in network.units:
        for module in (unit, unit.branch):
            module.register_full_backward_hook(lambda module, inputs, outputs: norms.append(outputs[0].norm()))
    network(images_of(2)).sum().backward()
    assert len(norms) == 18


def test_only_the_conv1x1_shortcut_has_a_convolution_where_the_shape_stays():
    for shortcut in get_args(Shortcut):
        unit = build(shortcut=shortcut).units[1]
        weights = [name for name, _ in unit.shortcut.named_parameters()]
        gates = ["gate.weight", "gate.bias"]
        expected = {"conv1x1": ["projection.conv.weight"], "exclusive_gating": gates, "shortcut_only_gating": gates}
        assert weights == expected.get(shortcut, [])


def test_the_convolution_that_the_recipe_names_has_the_stride():
    for stride_on, name in (("conv1x1", "conv1"), ("conv3x3", "conv2")):
        with torch.device("meta"):
            unit = build_model(Model(depth=164, num_classes=10, stride_on=stride_on)).units[18]
        strides = {n: m.stride for n, m in unit.branch.named_children() if isinstance(m, nn.Conv2d)}
        assert [n for n, stride in strides.items() if stride == (2, 2)] == [name]
