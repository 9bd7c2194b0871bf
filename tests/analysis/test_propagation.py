"""Signal and gradient at every unit.

Oracles: the formulas of tests/oracle/resnet.py in float64 with autograd's gradients, networks whose every number is a
short binary fraction that one adds up by hand, and Eqns. (4), (7) and (8) themselves.
"""

import math
from typing import Any, get_args

import pytest
import torch
from oracle.resnet import Network, conv
from torch import Tensor, nn

from dist_resnet.analysis.propagation import Span, measure, scale_products, spans_of
from dist_resnet.model import build_model, shortcuts
from dist_resnet.model.initialize import initialize
from dist_resnet.model.resnet import ResNet
from dist_resnet.model.shortcuts import Passage, build_shortcut
from dist_resnet.recipe import Model, Shortcut

SHORTCUTS = get_args(Shortcut)
# Depth -> units in each stage, widths, bottleneck, spans of x_l of one shape; counted by hand.
LAYOUTS = {
    14: ((2, 2, 2), (16, 32, 64), False, [(0, 2), (3, 4), (5, 6)]),
    29: ((3, 3, 3), (64, 128, 256), True, [(0, 0), (1, 3), (4, 6), (7, 9)]),
}


class Recorded(Network):
    """The formulas, keeping every x_l, and every h(x) with the x it was given."""

    def logits(self, images: Tensor) -> Tensor:
        self.xs: list[Tensor] = []
        self.shortcuts: list[tuple[str, Tensor, Tensor]] = []
        return super().logits(images)

    def unit(self, x: Tensor, stage: int, unit: int) -> Tensor:
        if not self.xs:
            self.xs.append(x)
        self.xs.append(super().unit(x, stage, unit))
        return self.xs[-1]

    def shortcut(self, x: Tensor, name: str, width: int, stride: int, changes: bool) -> tuple[Tensor, Tensor | float]:
        h, scale = super().shortcut(x, name, width, stride, changes)
        self.shortcuts.append((name, x, h))
        return h, scale

    def by_shortcut(self, unit: int, gradient: Tensor) -> Tensor:
        """What a gradient behind a unit of Eqn. (9) becomes ahead of it, by the shortcut alone."""
        name, x, h = self.shortcuts[unit]
        if "gating" in self.model.shortcut:
            z = conv(x.detach(), self.state[f"{name}.gate.weight"]) + self.state[f"{name}.gate.bias"].view(1, -1, 1, 1)
            return gradient * (1 - 1 / (1 + torch.exp(-z)))
        return torch.autograd.grad(h, x, gradient, retain_graph=True)[0]


def network_of(**fields: Any) -> ResNet:
    torch.manual_seed(0)
    return build_model(Model(num_classes=5, **fields))


def batch_of(size: int = 8, number: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(number, 3, size, size, generator=generator)
    return images, torch.randint(0, 5, (number,), generator=generator)


def formulas_of(network: ResNet, model: Model) -> Recorded:
    num_units, widths, bottleneck, _ = LAYOUTS[model.depth]
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    return Recorded(state, model, num_units, widths, bottleneck)


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """The mean over the images, written out."""
    targets = torch.full_like(logits, smoothing / logits.shape[1])
    targets[torch.arange(len(labels)), labels] += 1 - smoothing
    return -(targets * (logits - logits.exp().sum(dim=1, keepdim=True).log())).sum(dim=1).mean()


def mean_square(x: Tensor) -> float:
    return float((x**2).mean())


@pytest.mark.parametrize("depth", LAYOUTS)
@pytest.mark.parametrize("placement", ["full_preactivation", "original"])
@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_signal_and_gradient_are_those_of_the_formulas(shortcut: Shortcut, placement: Any, depth: int):
    network = network_of(depth=depth, shortcut=shortcut, placement=placement, gate_bias=-1.0).double()
    model = Model(depth=depth, num_classes=5, shortcut=shortcut, placement=placement)
    images, labels = batch_of()
    found = measure(network, [(images.double(), labels)], label_smoothing=0.1, seed=7)

    formulas = formulas_of(network, model)
    torch.manual_seed(7)  # For dropout.
    loss = cross_entropy(formulas.logits(images.double().requires_grad_()), labels, 0.1)
    gradients = torch.autograd.grad(loss, formulas.xs, retain_graph=True)
    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-9)
    assert found.signal == pytest.approx([mean_square(x.detach()) for x in formulas.xs], rel=1e-9)
    assert found.gradient == pytest.approx([mean_square(gradient) for gradient in gradients], rel=1e-7)
    if placement == "full_preactivation":
        check_shortcut_gradient(found.shortcut_gradient, formulas, gradients)


def check_shortcut_gradient(found: tuple[float, ...], formulas: Recorded, gradients: tuple[Tensor, ...]) -> None:
    """Insists that what comes by the shortcuts is dE/dx_L of the span's end, led back unit by unit."""
    for first, last in LAYOUTS[formulas.model.depth][3]:
        gradient = gradients[last]
        assert found[last] == pytest.approx(mean_square(gradient), rel=1e-7)
        for unit in reversed(range(first, last)):
            gradient = formulas.by_shortcut(unit, gradient)
            assert found[unit] == pytest.approx(mean_square(gradient), rel=1e-7)


@pytest.mark.parametrize("depth", LAYOUTS)
def test_spans_hold_every_x_once_and_end_where_the_shape_changes(depth: int):
    spans = spans_of(network_of(depth=depth))
    assert [(span.first, span.last) for span in spans] == LAYOUTS[depth][3]
    assert [span.num_units for span in spans] == [last - first for first, last in LAYOUTS[depth][3]]


def test_identity_shortcuts_bring_the_gradient_of_the_end_unchanged():
    found = measure(network_of(depth=20), [batch_of()])
    for span in found.spans:
        assert found.shortcut_gradient[span.first : span.last + 1] == (found.gradient[span.last],) * (
            span.num_units + 1
        )


@pytest.mark.parametrize("scale", [0.5, 1.5, -0.25, 1e-9])
def test_constant_scaling_brings_it_times_the_product_of_the_scales_even_where_float32_holds_no_such_number(
    scale: float,
):
    found = measure(network_of(depth=56, shortcut="constant_scaling", shortcut_scale=scale), [batch_of()])
    # Eqn. (8): nine units of the first stage, eight of the second and of the third. 1e-9^9 is 1e-81.
    for first, last in ((0, 9), (10, 18), (19, 27)):
        for place in range(first, last + 1):
            expected = found.gradient[last] * scale ** (2 * (last - place))
            assert found.shortcut_gradient[place] == pytest.approx(expected, rel=1e-4, abs=0.0)


def test_products_of_scales_are_powers_that_begin_anew_in_each_span():
    spans = [Span(first=0, last=3), Span(first=4, last=4), Span(first=5, last=6)]
    assert scale_products(spans, 3.0) == (27.0, 9.0, 3.0, 1.0, 1.0, 3.0, 1.0)
    assert scale_products([Span(first=0, last=2000)], 3.0)[0] == math.inf
    assert scale_products([Span(first=0, last=2000)], 0.3)[0] == 0.0


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_the_scale_of_a_gradient_is_what_a_fresh_shortcut_does_to_a_random_gradient(shortcut: Shortcut):
    model = Model(depth=20, num_classes=5, shortcut=shortcut, gate_bias=-0.5, shortcut_scale=-0.7, dropout_rate=0.3)
    torch.manual_seed(0)
    unit = build_shortcut(Passage(in_width=256, width=256, stride=1), model)
    initialize(unit, model.gate_bias)
    # Zeros, for the formula leaves W_g x out.
    x = torch.zeros(4, 256, 16, 16, requires_grad=True)
    gradient = torch.randn(x.shape)
    (back,) = torch.autograd.grad(unit(x, torch.zeros_like(x)), x, gradient)
    assert math.sqrt(mean_square(back) / mean_square(gradient)) == pytest.approx(
        shortcuts.SHORTCUTS[shortcut].gradient_scale(model), rel=0.01
    )


def test_a_convolution_that_bn_follows_has_no_formula():
    fields: dict[str, Any] = {"depth": 20, "num_classes": 5, "shortcut": "conv1x1"}
    scale = shortcuts.Conv1x1.gradient_scale
    assert scale(Model(placement="bn_after_addition", **fields)) == pytest.approx(math.sqrt(2))
    assert scale(Model(placement="original", **fields)) is None


class Constant(nn.Module):
    """A branch that gives the same number everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.value)


class Plus(nn.Module):
    """An activation that is not the identity."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 2.0**-6


def three_units() -> ResNet:
    """ResNet-20 whose first stage adds 1/4, 1/2 and 1/8 to an x_0 of 1."""
    network = network_of(depth=20)
    network.stem = nn.Sequential(network.stem, _Ones())
    for unit, value in zip(network.units, (0.25, 0.5, 0.125), strict=False):
        unit.branch = Constant(value)
    return network


class _Ones(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0 + 1


def test_eqn_4_added_up_by_hand():
    found = measure(three_units(), [batch_of()])
    assert found.signal[:4] == (1.0, 1.25**2, 1.75**2, 1.875**2)
    assert found.sum_error is not None
    assert found.sum_error[:4] == (0.0, 0.0, 0.0, 0.0)
    # Half a unit in the last place of 1.25, 1.75 and 1.875, each at most 2^-24 times the number.
    assert found.sum_rounding is not None
    assert found.sum_rounding[:4] == (0.0, 1.25 * 2**-24, 3.0 * 2**-24, 4.875 * 2**-24)


def test_eqn_4_is_off_by_what_an_activation_behind_the_addition_does():
    network = three_units()
    network.units[1].activation = Plus()
    found = measure(network, [batch_of()])
    assert found.sum_error is not None
    assert found.sum_error[:4] == (0.0, 0.0, 2.0**-6, 2.0**-6)
    assert found.sums_hold is False


@pytest.mark.parametrize("placement", ["relu_before_addition", "relu_only_preactivation", "full_preactivation"])
def test_eqn_4_holds_to_rounding_where_f_is_the_identity(placement: Any):
    found = measure(network_of(depth=38, placement=placement), [batch_of(), batch_of(seed=2)])
    assert found.sums_hold is True
    # It is a real sum, with real rounding.
    assert found.sum_error is not None
    assert max(found.sum_error) > 0


@pytest.mark.parametrize("placement", ["original", "bn_after_addition"])
def test_eqn_4_does_not_hold_where_f_is_no_identity(placement: Any):
    found = measure(network_of(depth=14, placement=placement), [batch_of()])
    assert found.sums_hold is False
    assert found.sum_error is not None
    assert max(found.sum_error) > 0.1


@pytest.mark.parametrize("shortcut", [shortcut for shortcut in SHORTCUTS if shortcut != "identity"])
def test_eqn_4_says_nothing_of_other_shortcuts(shortcut: Shortcut):
    found = measure(network_of(depth=8, shortcut=shortcut), [batch_of()])
    assert (found.sum_error, found.sum_rounding, found.sums_hold) == (None, None, None)


def test_several_batches_give_means_and_the_largest_errors():
    network, batches = network_of(depth=14), [batch_of(seed=1), batch_of(seed=2)]
    both, *each = (measure(network, chosen) for chosen in (batches, batches[:1], batches[1:]))
    for name in ("signal", "gradient", "shortcut_gradient"):
        pairs = zip(*(getattr(one, name) for one in each), strict=True)
        assert getattr(both, name) == pytest.approx([sum(pair) / 2 for pair in pairs], rel=1e-12)
    assert both.sum_error == tuple(map(max, zip(*(one.sum_error or () for one in each), strict=True)))


def test_weights_hooks_and_gradients_are_left_as_they_were():
    network = network_of(depth=8, shortcut="shortcut_only_gating")
    before = {name: tensor.clone() for name, tensor in network.named_parameters()}
    measure(network, [batch_of()])
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.named_parameters())
    assert all(tensor.grad is None for tensor in network.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_hooks_are_taken_off_where_a_pass_fails():
    network = network_of(depth=8)
    with pytest.raises(IndexError, match="out of bounds"):
        measure(network, [(batch_of()[0], torch.full((4,), 5))])
    assert not any(module._forward_hooks for module in network.modules())


def test_no_batch_at_all_is_an_error():
    with pytest.raises(ValueError, match="no batch of images to measure"):
        measure(network_of(depth=8), [])
