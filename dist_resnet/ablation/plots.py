"""The report's figures: our errors and the published ones, and training curves like Figs. 3 and 6.

Colors are from the Okabe-Ito palette. Marks also differ in shape and lines in dashes, so that color is never needed.
"""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from dist_resnet.ablation.results import Cell
from dist_resnet.paper import FAIL_ABOVE
from dist_resnet.tracking.plots import to_png

BLACK, BLUE, VERMILLION = "#000000", "#0072B2", "#D55E00"
_COLUMNS = 3
_DPI = 120


def errors(cells: Sequence[Cell], title: str, *, fails_are_shown: bool) -> bytes:
    """A PNG with a row for each cell: its published error, its trials' results and their median.

    A "fail" is drawn in a separate column on the right: published ones, diverged trials and, if `fails_are_shown`, our
    errors that the paper would print as "fail". Do not show those of shortened runs, whose errors are still high.
    """
    figure = Figure(figsize=(9, 1.5 + 0.36 * len(cells)), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    shown = [(error, cell) for cell in cells for error in (cell.paper_error, *cell.results) if error is not None]

    def is_inside(error: float, cell: Cell) -> bool:
        return math.isfinite(error) and (error <= cell.fail_above or not fails_are_shown)

    inside = [error for error, cell in shown if is_inside(error, cell)] or [0.0, FAIL_ABOVE]
    room = max(1.0, max(inside) - min(inside))
    fail = max(inside) + 0.12 * room
    has_fails = len(inside) < len(shown)

    for row, cell in enumerate(cells):
        if cell.paper_error is not None:
            # A published "fail" is drawn as one in any case.
            published = cell.paper_error if math.isfinite(cell.paper_error) else fail
            axes.plot(published, row, "D", markersize=8, markerfacecolor="none", color=BLUE, markeredgewidth=1.5)
        if cell.median is not None:
            results = [result if is_inside(result, cell) else fail for result in cell.results]
            if len(results) > 1:
                axes.plot(results, [row] * len(results), "|", markersize=11, color=VERMILLION)
            axes.plot(
                cell.median if is_inside(cell.median, cell) else fail,
                row,
                "o",
                markersize=6,
                color=VERMILLION,
                markeredgecolor="white",
            )
    axes.set_yticks(range(len(cells)), [_label(cell, cells) for cell in cells])
    axes.set_ylim(len(cells) - 0.5, -0.5)
    axes.set_xlim(min(inside) - 0.06 * room, (fail if has_fails else max(inside)) + 0.06 * room)
    # No ticks in the column of fails.
    axes.set_xticks([tick for tick in axes.get_xticks() if axes.get_xlim()[0] <= tick <= max(inside) + 0.02 * room])
    if has_fails:
        axes.axvline(fail - 0.06 * room, color="#777777", linewidth=0.8)
        axes.annotate(
            "fail", (fail, 1), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points", ha="center"
        )
    axes.set_xlabel("test error in %")
    axes.grid(axis="both", alpha=0.25)
    figure.suptitle(title)
    figure.legend(handles=_error_key(cells), loc="outside lower center", ncols=3, frameon=False)
    return to_png(figure)


def training_curves(cells: Sequence[Cell], title: str, *, iterations: int) -> bytes:
    """A PNG with a panel for each cell, as in Figs. 3 and 6: the cell and the original residual unit.

    Dashed: training loss, left axis (logarithmic). Solid: test error, right axis. Every seed has its own line.
    """
    baseline = next((cell for cell in cells if cell.is_baseline), None)
    panels = [cell for cell in cells if cell is not baseline] or list(cells)
    columns = 2 if len(panels) in (2, 4) else min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns + 0.6, 3.1 * rows + 1.1), dpi=_DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    top = _error_limit(cells)
    bottom, high = _loss_limits(cells)
    few = max((len(trial.test_error) for cell in cells for trial in cell.trials), default=0) < 25
    for index, axes in enumerate(grid.flat):
        if index >= len(panels):
            axes.set_axis_off()
            continue
        right = axes.twinx()
        for cell, color in ((baseline, BLACK), (panels[index], VERMILLION)):
            if cell is not None and not (color == VERMILLION and cell is baseline):
                _draw(axes, right, cell, color, marked=few)
        axes.set_yscale("log")
        axes.set_ylim(bottom, high)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        right.set_ylim(0, top)
        right.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlim(0, 1.02 * iterations)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.set_title(_label(panels[index], cells), fontsize=10)
        axes.grid(alpha=0.25)
        if index % columns == 0:
            axes.set_ylabel("training loss")
        if index % columns == columns - 1 or index == len(panels) - 1:
            right.set_ylabel("test error in %")
        if index + columns >= len(panels):
            axes.set_xlabel("iterations")
        if not any(trial.training_loss or trial.test_error for trial in panels[index].trials):
            axes.text(0.5, 0.5, "not started", transform=axes.transAxes, ha="center", color="#555555")
    figure.suptitle(title)
    figure.legend(handles=_curve_key(baseline), loc="outside lower center", ncols=2, frameon=False)
    return to_png(figure)


def _draw(left: Axes, right: Axes, cell: Cell, color: str, *, marked: bool) -> None:
    for trial in cell.trials:
        if trial.training_loss:
            left.plot(*zip(*trial.training_loss, strict=True), "--", color=color, linewidth=1.0, alpha=0.8)
        if trial.test_error:
            curve = zip(*trial.test_error, strict=True)
            right.plot(*curve, "-", color=color, linewidth=1.6, marker="o" if marked else None, markersize=3)
        if trial.state == "diverged":
            cross = {"markeredgewidth": 2, "clip_on": False, "transform": right.get_xaxis_transform()}
            right.plot(trial.steps, 0.96, "x", color=color, **cross)


def _error_limit(cells: Sequence[Cell]) -> float:
    """The paper's 20 %, or more if finished runs are above it. Early errors are always above it and do not count."""
    with_curve = [trial for cell in cells for trial in cell.trials if trial.test_error]
    finished = [trial for trial in with_curve if trial.state == "finished"]
    ends = [trial.test_error[-1][1] for trial in finished or with_curve]
    reached = max(ends, default=FAIL_ABOVE)
    return FAIL_ABOVE if reached <= FAIL_ABOVE else min(100.0, 10.0 * math.ceil(reached / 10 + 0.5))


def _loss_limits(cells: Sequence[Cell]) -> tuple[float, float]:
    """A range of losses that shows all curves except their initial overshoot."""
    losses = [loss for cell in cells for trial in cell.trials for _, loss in trial.training_loss if 0 < loss < math.inf]
    if not losses:
        return 0.01, 3.0
    return min(losses) / 1.3, min(max(losses), 5.0) * 1.15


def _error_key(cells: Sequence[Cell]) -> list[Line2D]:
    key = [Line2D([], [], marker="o", color=VERMILLION, linestyle="", label="ours, median")]
    if any(len(cell.results) > 1 for cell in cells):
        key.append(Line2D([], [], marker="|", markersize=11, color=VERMILLION, linestyle="", label="ours, each seed"))
    if any(cell.paper_error is not None for cell in cells):
        key.append(
            Line2D(
                [], [], marker="D", markerfacecolor="none", color=BLUE, linestyle="", label="published", markersize=8
            )
        )
    return key


def _curve_key(baseline: Cell | None) -> list[Line2D]:
    pairs = [(VERMILLION, "the panel's row")] if baseline is None else []
    if baseline is not None:
        pairs = [(BLACK, "original residual unit"), (VERMILLION, "the panel's row")]
    return [
        Line2D([], [], color=color, linestyle=line, label=f"{who}: {what}")
        for color, who in pairs
        for line, what in (("--", "training loss (left)"), ("-", "test error (right)"))
    ]


def _label(cell: Cell, cells: Sequence[Cell]) -> str:
    """The row's name, with depth and data set if the figure has several."""
    label = cell.row
    if len({other.depth for other in cells}) > 1:
        label += f", {cell.depth} layers"
    if len({other.dataset for other in cells}) > 1:
        label += f", {cell.dataset}"
    return label


def _thousands(value: float, _: object) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
