"""Signal and gradient at every residual unit, and what Eqns. (4), (5), (7) and (8) of arXiv:1603.05027 say of them.

x_0 is what the first unit takes and x_{l+1} what unit l gives. The equations speak of units that keep the shape, so a
network is looked at span by span: x_l up to x_L of one shape, with nothing between them but such units. A unit that
changes the shape stands between two spans; its shortcut is not h(x) = lambda x, and its activation serves both paths.

Everything is measured in float32, where the rounding of an addition is known and small enough to check Eqn. (4)
against, and with BN in training mode: it is a training step whose gradient matters, and the running statistics of
fresh weights know nothing of the images yet.
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

# Powers of two beyond these, and their inverses, are no normal float32.
_MOST_SHIFT = 100

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Span:
    """Units in a row that keep the shape: they lead from x_first to x_last."""

    first: int
    last: int

    @property
    def num_units(self) -> int:
        """How many units lead from x_first to x_last; none where every unit beside x_first changes the shape."""
        return self.last - self.first


@dataclass(frozen=True, kw_only=True)
class Propagation:
    """What was measured of a network; entry l of each sequence belongs to x_l, of which there is one more than units.

    With several batches, entries are means over them, but for the last two, which are the largest.
    """

    spans: tuple[Span, ...]
    """In order; each x_l is in one of them."""
    loss: float
    """E: the cross-entropy."""
    signal: tuple[float, ...]
    """The mean square of x_l."""
    gradient: tuple[float, ...]
    """The mean square of dE/dx_l."""
    shortcut_gradient: tuple[float, ...]
    """The mean square of the part of dE/dx_l that the shortcuts alone bring from the end of its span: dE/dx_L times
    the product of the shortcuts' scales, the first term of Eqns. (5) and (8)."""
    sum_error: tuple[float, ...] | None
    """The largest entry of |x_l - x_first - sum of F|, the sum over the branches from the span's first x on: what
    Eqn. (4) says is zero. None where the shortcuts are not the identity."""
    sum_rounding: tuple[float, ...] | None
    """The largest `sum_error` that float32's rounding of the additions can have made."""

    @property
    def sums_hold(self) -> bool | None:
        """Whether Eqn. (4) holds to rounding at every x_l; None where it does not apply."""
        if self.sum_error is None or self.sum_rounding is None:
            return None
        return all(error <= most for error, most in zip(self.sum_error, self.sum_rounding, strict=True))


def measure(network: ResNet, batches: Iterable[Batch], *, label_smoothing: float = 0.0, seed: int = 0) -> Propagation:
    """Signal and gradient of a network on batches of images, each with BN statistics of its own.

    A batch is images, float32 [N, 3, H, W], and labels, int64 [N], on the network's device. `seed` is that of
    dropout's masks. Weights stay as they are; BN's running statistics do not. Raises ValueError where there is no
    batch.
    """
    found = [_measure(network, images, labels, label_smoothing, seed) for images, labels in batches]
    if not found:
        raise ValueError("no batch of images to measure on; give at least one")
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
    # x_{l+1} begins a span where unit l changes the shape.
    firsts = [0, *(place + 1 for place, unit in enumerate(network.units) if unit.shares_preactivation)]
    lasts = [*(first - 1 for first in firsts[1:]), len(network.units)]
    return tuple(Span(first=first, last=last) for first, last in zip(firsts, lasts, strict=True))


def scale_products(spans: Iterable[Span], scale: float) -> tuple[float, ...]:
    """The product of equal scales from x_l to the end of its span, as Eqns. (7) and (8) have it: scale^(L - l).

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
    # The same once more, with nothing but the shortcuts for the gradient to pass. At the end of each span it is set
    # to what it was in truth.
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
    """What is called during a pass."""

    see: Callable[[int, Tensor], None]
    """With l and x_l, at every x_l."""
    on_branch: Callable[[int, Tensor], Tensor | None]
    """With l and the output of branch l, which what it returns replaces."""
    holds_gates: bool = False
    """Whether no gradient passes gates."""


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
        # Only gradients on the way to the images are computed; those of the weights are not asked for.
        images = images.detach().requires_grad_()
        loss = F.cross_entropy(network(images), labels, label_smoothing=label_smoothing)
        torch.autograd.grad(loss, images)
    finally:
        for handle in handles:
            handle.remove()
    return float(loss.detach())


class _Gradients:
    """The mean squares of dE/dx_l, taken as the backward pass goes by from the last x_l to the first.

    On the way each gradient is brought near 1 by a power of two, which changes none of its digits, and the exponent is
    kept: a product such as 0.5^333 is far below what float32 can hold.
    """

    def __init__(self, *, keep: Collection[int] = (), given: Mapping[int, tuple[Tensor, int]] | None = None) -> None:
        self.mean_squares: dict[int, float] = {}
        self.kept: dict[int, tuple[Tensor, int]] = {}
        """The gradients at the places of `keep`, and the exponents of the powers of two that they lack."""
        self._keep, self._given, self._exponent = keep, given or {}, 0

    def watch(self, place: int, x: Tensor) -> None:
        """Has the gradient at x_l taken; where it is among those `given`, those take its place."""
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
    """Eqn. (4) along each span: x_first and the branches' outputs since then, added up in float64, beside x_l."""

    def __init__(self, firsts: Collection[int]) -> None:
        self.errors: dict[int, float] = {}
        self.roundings: dict[int, float] = {}
        self._firsts = firsts

    def add(self, place: int, branch: Tensor) -> None:
        """Takes the output of unit l's branch in."""
        if place + 1 not in self._firsts:
            self._sum = self._sum + branch.double()

    def compare(self, place: int, x: Tensor) -> None:
        """Compares x_l with the sum; the first of a span begins a new one."""
        if place in self._firsts:
            self._sum, self._rounding = x.double(), torch.zeros_like(x, dtype=torch.float64)
        else:
            # A sum is off by no more than half a unit in the last place of what it is rounded to.
            self._rounding += x.double().abs() * (torch.finfo(x.dtype).eps / 2)
        self.errors[place] = float((x.double() - self._sum).abs().max())
        self.roundings[place] = float(self._rounding.max())


def _mean_square(x: Tensor) -> float:
    return float(x.double().square().mean())


def _power(base: float, exponent: int) -> float:
    """base^exponent, infinite where it is too large for a float."""
    try:
        return base**exponent
    except OverflowError:
        return math.inf


def _entrywise(reduce: Callable[..., float], sequences: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(reduce(entries) for entries in zip(*sequences, strict=True))


def _largest(sequences: Iterable[tuple[float, ...] | None]) -> tuple[float, ...] | None:
    known = [sequence for sequence in sequences if sequence is not None]
    return _entrywise(max, known) if known else None
