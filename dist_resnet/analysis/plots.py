"""The figure of a probe: signal, gradient and the gradient's part through the shortcuts, a panel for each network.

Colors are from the Okabe-Ito palette. Lines also differ in dashes, so that color is never needed.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from dist_resnet.analysis.propagation import Propagation
from dist_resnet.tracking.plots import to_png

BLACK, BLUE, VERMILLION, GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"
_DPI = 96
# Curves leave the panel beyond these ratios; a note gives their extremes.
_LEAST, _MOST = 1e-36, 1e36
_NARROWEST = (1e-2, 1e2)
_STYLES: dict[str, dict[str, Any]] = {
    "signal": {"color": BLUE, "linestyle": "-", "linewidth": 1.4},
    "gradient": {"color": VERMILLION, "linestyle": "-", "linewidth": 1.4},
    "shortcuts": {"color": BLACK, "linestyle": "--", "linewidth": 1.1},
    "formula": {"color": GREEN, "linestyle": ":", "linewidth": 2.2},
}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The content of a panel."""

    title: str
    found: Propagation
    formula_gradient: tuple[float, ...] | None
    """`found.shortcut_gradient` by formula; None if there is no formula."""


def propagation(rows: Sequence[Sequence[Panel]], title: str) -> bytes:
    """A PNG with the panels of each row side by side.

    Signals are relative to that of x_0, gradients to dE/dx_L of the last unit, all as mean squares, on a logarithmic
    axis that panels of the same depth share. Thin vertical lines mark units that change the shape.
    """
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(max(6.5, 3.2 * columns), 1.7 * len(rows) + 1.1), dpi=_DPI, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    curves = [[_curves(panel) for panel in row] for row in rows]
    limits: dict[int, tuple[float, float]] = {}
    for each in itertools.chain.from_iterable(curves):
        limits[len(each["signal"])] = _widened(limits.get(len(each["signal"]), _NARROWEST), each)
    for row, axes_of_row, curves_of_row in zip(rows, grid, curves, strict=True):
        for index, axes in enumerate(axes_of_row):
            if index < len(row):
                drawn = curves_of_row[index]
                _draw(axes, row[index], drawn, limits[len(drawn["signal"])])
            else:
                axes.set_axis_off()
        axes_of_row[0].set_ylabel("mean square", fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("residual unit l", fontsize=9)
    figure.suptitle(title, fontsize=11)
    figure.legend(handles=_key(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return to_png(figure)


def _curves(panel: Panel) -> dict[str, list[float]]:
    """The curves of a panel in drawing order, each relative to its unit."""
    found = panel.found
    units = {"formula": found.gradient[-1], "signal": found.signal[0], "gradient": found.gradient[-1]}
    values = {
        "formula": panel.formula_gradient or (),
        "signal": found.signal,
        "gradient": found.gradient,
        "shortcuts": found.shortcut_gradient,
    }
    units["shortcuts"] = units["gradient"]
    return {
        name: [value / units[name] if units[name] else math.nan for value in sequence]
        for name, sequence in values.items()
    }


def _widened(limits: tuple[float, float], curves: dict[str, list[float]]) -> tuple[float, float]:
    """The limits widened to the signal and the gradient, within a panel's ratios."""
    values = [value for name in ("signal", "gradient", "shortcuts") for value in curves[name]]
    shown = [min(max(value, _LEAST), _MOST) for value in values if not math.isnan(value)]
    return min([limits[0], *(value / 3 for value in shown)]), max([limits[1], *(3 * value for value in shown)])


def _draw(axes: Axes, panel: Panel, curves: dict[str, list[float]], limits: tuple[float, float]) -> None:
    axes.set_yscale("log")
    axes.set_ylim(*limits)
    spans = panel.found.spans
    for span in spans[1:]:
        axes.axvline(span.first - 0.5, color="#bbbbbb", linewidth=0.6)
    for name, values in curves.items():
        # The part through the shortcuts starts again in each span.
        pieces = [(0, len(values))] if name in ("signal", "gradient") else [(s.first, s.last + 1) for s in spans]
        for first, stop in pieces if values else ():
            axes.plot(range(first, stop), values[first:stop], **_STYLES[name])
    axes.set_xlim(0, len(curves["signal"]) - 1)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(LogLocator(numticks=5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.25)
    axes.set_title(panel.title, fontsize=9)
    axes.tick_params(labelsize=8)
    if beyond := _beyond(curves):
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}
        corner = {"transform": axes.transAxes, "ha": "right", "va": "bottom"}
        axes.text(0.98, 0.04, beyond, fontsize=7.5, bbox=box, **corner)


def _beyond(curves: dict[str, list[float]]) -> str:
    """The extremes of the curves that leave the panel, one a line."""
    lines = []
    for name, label in (("signal", "x_l"), ("gradient", "dE/dx_l"), ("shortcuts", "shortcuts alone")):
        values = curves[name]
        if any(not math.isfinite(value) for value in values):
            lines.append(f"{label}: not finite")
            continue
        if max(values) > _MOST:
            lines.append(f"{label}: up to {_power_of_ten(max(values))}")
        if min(values) < _LEAST:
            lines.append(f"{label}: down to {_power_of_ten(min(values))}")
    return "\n".join(lines)


def _power_of_ten(value: float) -> str:
    return f"1e{round(math.log10(value))}" if value else "0"


def _key() -> list[Line2D]:
    labels = {
        "signal": "x_l, over that of x_0",
        "gradient": "dE/dx_l, over that of dE/dx_L",
        "shortcuts": "its part through the shortcuts alone: Eqns. (5), (8)",
        "formula": "the same by formula",
    }
    return [Line2D([], [], label=label, **_STYLES[name]) for name, label in labels.items()]
