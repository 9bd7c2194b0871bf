"""The figure of a probe: signal, gradient and what the shortcuts alone bring of it, a panel for each network.

Colours are of the Okabe-Ito palette, and nothing is told by colour alone: lines differ in dashes.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from dist_resnet.analysis.propagation import Propagation

BLACK, BLUE, VERMILLION, GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"
_DPI = 100
# Beyond these ratios curves leave the panel, and a note says how far they go.
_LEAST, _MOST = 1e-12, 1e12
_STYLES = {
    "signal": {"color": BLUE, "linestyle": "-", "linewidth": 1.4},
    "gradient": {"color": VERMILLION, "linestyle": "-", "linewidth": 1.4},
    "shortcuts": {"color": BLACK, "linestyle": "--", "linewidth": 1.1},
    "formula": {"color": GREEN, "linestyle": ":", "linewidth": 2.2},
}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What one panel shows."""

    title: str
    found: Propagation
    formula_gradient: tuple[float, ...] | None
    """What `found.shortcut_gradient` is by formula, where there is one."""


def propagation(rows: Sequence[Sequence[Panel]], title: str) -> bytes:
    """A PNG with the panels of each row side by side.

    Signals are relative to that of x_0, gradients to dE/dx_L of the last unit, all as mean squares, on one logarithmic
    axis that all panels share. Thin upright lines stand where units change the shape.
    """
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(3.6 * columns + 0.5, 1.75 * len(rows) + 1.1), dpi=_DPI, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False, sharey=True)
    for row, axes_of_row in zip(rows, grid, strict=True):
        for place, axes in enumerate(axes_of_row):
            if place < len(row):
                _draw(axes, row[place])
            else:
                axes.set_axis_off()
        axes_of_row[0].set_ylabel("mean square")
    for axes in grid[-1]:
        axes.set_xlabel("l")
    figure.suptitle(title, fontsize=10)
    figure.legend(handles=_key(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return _png(figure)


def _draw(axes: Axes, panel: Panel) -> None:
    found = panel.found
    last = found.gradient[-1]
    axes.set_yscale("log")
    axes.set_ylim(_LEAST, _MOST)
    for span in found.spans[1:]:
        axes.axvline(span.first - 0.5, color="#bbbbbb", linewidth=0.6)
    curves = [("signal", found.signal, found.signal[0]), ("gradient", found.gradient, last)]
    curves.append(("shortcuts", found.shortcut_gradient, last))
    if panel.formula_gradient is not None:
        curves.insert(0, ("formula", panel.formula_gradient, last))
    for name, values, unit in curves:
        points = [value / unit if unit else math.nan for value in values]
        for span in found.spans if name in ("shortcuts", "formula") else [None]:
            # What comes by the shortcuts begins anew in each span.
            places = range(len(points)) if span is None else range(span.first, span.last + 1)
            axes.plot(places, [points[place] for place in places], **_STYLES[name])
    axes.set_xlim(0, len(found.signal) - 1)
    axes.yaxis.set_major_locator(LogLocator(numticks=5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.25)
    axes.set_title(panel.title, fontsize=9)
    axes.tick_params(labelsize=8)
    if beyond := _beyond(found):
        axes.text(0.98, 0.05, beyond, transform=axes.transAxes, ha="right", va="bottom", fontsize=7, color="#333333")


def _beyond(found: Propagation) -> str:
    """How far the curves go that leave the panel."""
    last = found.gradient[-1]
    ratios = {
        "signal": [value / found.signal[0] if found.signal[0] else math.nan for value in found.signal],
        "gradient": [value / last if last else math.nan for value in found.gradient],
    }
    lines = []
    for name, values in ratios.items():
        if any(not math.isfinite(value) for value in values):
            lines.append(f"{name}: not finite")
        elif max(values) > _MOST:
            lines.append(f"{name} up to {max(values):.0e}")
        elif min(values) < _LEAST:
            lines.append(f"{name} down to {min(values):.0e}")
    return "\n".join(lines)


def _key() -> list[Line2D]:
    labels = {
        "signal": "x_l",
        "gradient": "dE/dx_l",
        "shortcuts": "of that, by the shortcuts alone (Eqns. (5), (8))",
        "formula": "the same by formula",
    }
    return [Line2D([], [], label=label, **_STYLES[name]) for name, label in labels.items()]


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
