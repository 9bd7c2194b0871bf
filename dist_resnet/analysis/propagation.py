"""Signal and gradient at every residual unit, checked against Eqns. (4), (5), (7) and (8) of arXiv:1603.05027.

x_0 is the input of the first unit and x_{l+1} the output of unit l. The equations hold for units that keep the shape,
so a network is measured span by span: from x_l to x_L of one shape, with only such units between them. A unit that
changes the shape is between two spans; its shortcut is not h(x) = lambda x, and its activation serves both paths.

Everything is float32, where the rounding of an addition is known and small enough to check Eqn. (4). BN is in training
mode: the gradient of a training step matters, and the running statistics of initial weights have seen no image.
"""

import functools
import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dist_resnet.model.resnet import ResNet
from dist_resnet.model.shortcuts import Identity

# Beyond this exponent, powers of two or their inverses are not normal float32 numbers.
_MOST_SHIFT = 100

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Span:
    """Consecutive units that keep the shape, from x_first to x_last."""

    first: int
    last: int

    @property
    def num_units(self) -> int:
        """Number of units between x_first and x_last; 0 if the units on both sides of x_first change the shape."""
        return self.last - self.first


@dataclass(frozen=True, kw_only=True)
class Propagation:
    """The measurements of a network; entry l of each sequence belongs to x_l, of which there is one more than units.

    With several batches, entries are means over them; `sum_error` and `sum_rounding` are maxima.
    """

    spans: tuple[Span, ...]
    """In order; each x_l is in exactly one."""
    loss: float
    """E: the cross-entropy."""
    signal: tuple[float, ...]
    """The mean square of x_l."""
    gradient: tuple[float, ...]
    """The mean square of dE/dx_l."""
    shortcut_gradient: tuple[float, ...]
    """The mean square of the part of dE/dx_l that comes from the end of its span through the shortcuts alone: dE/dx_L
    times the product of the shortcuts' scales, the first term of Eqns. (5) and (8)."""
    sum_error: tuple[float, ...] | None
    """The largest entry of |x_l - x_first - sum of F|, where the sum is over the branches of the span so far; zero by
    Eqn. (4). None unless the shortcuts are the identity."""
    sum_rounding: tuple[float, ...] | None
    """The largest `sum_error` that the rounding of float32 additions can cause."""

    @property
    def sums_hold(self) -> bool | None:
        """Whether Eqn. (4) holds up to rounding at every x_l; None if it does not apply."""
        if self.sum_error is None or self.sum_rounding is None:
            return None
        return all(error <= most for error, most in zip(self.sum_error, self.sum_rounding, strict=True))


def measure(network: ResNet, batches: Iterable[Batch], *, label_smoothing: float = 0.0, seed: int = 0) -> Propagation:
    """Signal and gradient of a network on batches of images, each with its own BN statistics.

    A batch is images, float32 [N, 3, H, W], and labels, int64 [N], on the network's device. `seed` decides dropout's
    masks. Changes BN's running statistics but no weights. Raises ValueError if there is no batch.
    """
    found = [_measure(network, images, labels, label_smoothing, seed) for images, labels in batches]
    if not found:
        raise ValueError("no batch of images to measure; give at least one")
    return Propagation(
        spans=found[0].spans,
        loss=statistics.fmean(each.loss for each in found),
        signal=_entrywise(statistics.fmean, [each.signal for each in found]),
        gradient=_entrywise(statistics.fmean, [each.gradient for each in found]),
        shortcut_gradient=_entrywise(statistics.fmean, [each.shortcut_gradient for each in found]),
        sum_error=_largest([each.sum_error for each in found]),
        sum_rounding=_largest([each.sum_rounding for each in found]),
    )


def spans_of(network: ResNet) -> tuple[Span, ...]:
    """The spans of a network, from first to last."""
    # x_{l+1} begins a span if unit l changes the shape.
    firsts = [0, *(index + 1 for index, unit in enumerate(network.units) if unit.shares_preactivation)]
    lasts = [*(first - 1 for first in firsts[1:]), len(network.units)]
    return tuple(Span(first=first, last=last) for first, last in zip(firsts, lasts, strict=True))


def scale_products(spans: Iterable[Span], scale: float) -> tuple[float, ...]:
    """The product of equal scales from x_l to the end of its span, scale^(L - l), as in Eqns. (7) and (8).

    >>> scale_products([Span(first=0, last=2), Span(first=3, last=4)], 0.5)
    (0.25, 0.5, 1.0, 0.5, 1.0)
    """
    return tuple(_power(scale, span.last - place) for span in spans for place in range(span.first, span.last + 1))


def _measure(network: ResNet, images: Tensor, labels: Tensor, label_smoothing: float, seed: int) -> Propagation:
    network.train()
    spans = spans_of(network)
    lasts, num_points = [span.last for span in spans], len(network.units) + 1

    def run(taps: _Taps) -> float:
        torch.manual_seed(seed)
        return _run(network, images, labels, label_smoothing, taps)

    signal: dict[int, float] = {}
    gradients = _Gradients(keep=lasts)
    sums = _Sums([span.first for span in spans])
    is_identity = all(isinstance(unit.shortcut, Identity) for unit in network.units)

    def see(place: int, x: Tensor) -> None:
        signal[place] = _mean_square(x.detach())
        gradients.watch(place, x)
        if is_identity:
            sums.compare(place, x.detach())

    def on_branch(place: int, branch: Tensor) -> None:
        if is_identity:
            sums.add(place, branch.detach())

    loss = run(_Taps(see=see, on_branch=on_branch))
    # Once more, with the gradient passing through the shortcuts only. At the end of each span it is set to its true
    # value.
    by_shortcuts = _Gradients(given=gradients.kept)
    run(_Taps(see=by_shortcuts.watch, on_branch=lambda _, branch: branch.detach(), holds_gates=True))
    points = range(num_points)
    return Propagation(
        spans=spans,
        loss=loss,
        signal=tuple(signal[place] for place in points),
        gradient=tuple(gradients.mean_squares[place] for place in points),
        shortcut_gradient=tuple(by_shortcuts.mean_squares[place] for place in points),
        sum_error=tuple(sums.errors[place] for place in points) if is_identity else None,
        sum_rounding=tuple(sums.roundings[place] for place in points) if is_identity else None,
    )


@dataclass(frozen=True, kw_only=True)
class _Taps:
    """Callbacks of a forward and backward pass."""

    see: Callable[[int, Tensor], None]
    """Called with l and x_l at every x_l."""
    on_branch: Callable[[int, Tensor], Tensor | None]
    """Called with l and the output of branch l; a returned tensor replaces the output."""
    holds_gates: bool = False
    """Whether gates pass no gradient."""


def _run(network: ResNet, images: Tensor, labels: Tensor, label_smoothing: float, taps: _Taps) -> float:
    """One forward and backward pass; returns the loss."""
    units, see, on_branch = network.units, taps.see, taps.on_branch
    handles = [units[0].register_forward_pre_hook(lambda _, inputs: see(0, inputs[0]))]
    for place, unit in enumerate(units):
        handles.append(unit.branch.register_forward_hook(lambda _, __, output, place=place: on_branch(place, output)))
        handles.append(unit.register_forward_hook(lambda _, __, output, place=place: see(place + 1, output)))
        gate = getattr(unit.shortcut, "gate", None)
        if taps.holds_gates and gate is not None:
            handles.append(gate.register_forward_hook(lambda _, __, output: output.detach()))
    try:
        # With respect to the images only, so that no gradients of weights are computed.
        images = images.detach().requires_grad_()
        loss = F.cross_entropy(network(images), labels, label_smoothing=label_smoothing)
        torch.autograd.grad(loss, images)
    finally:
        for handle in handles:
            handle.remove()
    return float(loss.detach())


class _Gradients:
    """The mean squares of dE/dx_l, taken during the backward pass from the last x_l to the first.

    Each gradient is scaled near 1 by a power of two, which changes none of its digits, and the exponent is kept:
    float32 cannot hold a product such as 0.5^333.
    """

    def __init__(self, *, keep: Collection[int] = (), given: Mapping[int, tuple[Tensor, int]] | None = None) -> None:
        self.mean_squares: dict[int, float] = {}
        self.kept: dict[int, tuple[Tensor, int]] = {}
        """The scaled gradients at the indices in `keep`, with the exponents of their missing powers of two."""
        self._keep, self._given, self._exponent = keep, given or {}, 0

    def watch(self, place: int, x: Tensor) -> None:
        """Registers for the gradient at x_l; a `given` gradient replaces it."""
        x.register_hook(functools.partial(self._take, place))

    def _take(self, place: int, gradient: Tensor) -> Tensor:
        if place in self._given:
            gradient, self._exponent = self._given[place]
        mean_square = _mean_square(gradient)
        self.mean_squares[place] = mean_square * _power(4.0, self._exponent)
        if 0 < mean_square < math.inf:
            shift = round(math.log2(mean_square) / 2)
            shift = min(max(shift, -_MOST_SHIFT), _MOST_SHIFT)
            gradient = gradient * 2.0**-shift
            self._exponent += shift
        if place in self._keep:
            self.kept[place] = (gradient, self._exponent)
        return gradient


class _Sums:
    """Eqn. (4) along each span: compares x_l with x_first plus the branches' outputs, summed in float64."""

    def __init__(self, firsts: Collection[int]) -> None:
        self.errors: dict[int, float] = {}
        self.roundings: dict[int, float] = {}
        self._firsts = firsts

    def add(self, place: int, branch: Tensor) -> None:
        """Adds the output of unit l's branch."""
        if place + 1 not in self._firsts:
            self._sum = self._sum + branch.double()

    def compare(self, place: int, x: Tensor) -> None:
        """Compares x_l with the sum; the first x of a span starts a new sum."""
        if place in self._firsts:
            self._sum, self._rounding = x.double(), torch.zeros_like(x, dtype=torch.float64)
        else:
            # Rounding changes a sum by at most half a unit in the last place of the result.
            self._rounding += x.double().abs() * (torch.finfo(x.dtype).eps / 2)
        self.errors[place] = float((x.double() - self._sum).abs().max())
        self.roundings[place] = float(self._rounding.max())


def _mean_square(x: Tensor) -> float:
    return float(x.double().square().mean())


def _power(base: float, exponent: int) -> float:
    """base^exponent; infinite if it is too large for a float."""
    try:
        return base**exponent
    except OverflowError:
        return math.inf


def _entrywise(reduce: Callable[..., float], sequences: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(reduce(entries) for entries in zip(*sequences, strict=True))


def _largest(sequences: Iterable[tuple[float, ...] | None]) -> tuple[float, ...] | None:
    known = [sequence for sequence in sequences if sequence is not None]
    return _entrywise(max, known) if known else None
