"""Plots of a run's metrics as PNG files."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

_MOST_LABELS = 40

History = dict[str, list[tuple[int, float, float]]]


def training_curve(history: History, title: str) -> bytes:
    """A PNG of training and validation loss and error over the steps.

    `history` maps keys such as `train/loss` to (step, time, value); missing keys are not plotted.
    """
    figure = Figure(figsize=(9, 4), dpi=120, layout="constrained")
    loss, error = figure.subplots(1, 2)
    for axes, name in ((loss, "loss"), (error, "top1_error")):
        _draw(axes, history.get(f"train/{name}", []), "training", "#0072B2", ".3")
        _draw(axes, history.get(f"val/{name}", []), "validation", "#D55E00", None)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    loss.set_ylabel("cross-entropy")
    error.set_ylabel("top-1 error")
    error.set_ylim(0, 1)
    if error.get_legend_handles_labels()[0]:
        error.legend(frameon=False)
    figure.suptitle(title)
    return to_png(figure)


def confusion_matrix(counts: np.ndarray, class_names: Sequence[str], title: str) -> bytes:
    """A PNG of the confusion matrix: `counts` int [classes, classes], by label, then by predicted class."""
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    figure = Figure(figsize=(8, 7), dpi=120, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    if len(class_names) <= _MOST_LABELS:
        axes.set_xticks(range(len(class_names)), class_names, rotation=90)
        axes.set_yticks(range(len(class_names)), class_names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("class")
    axes.set_title(title)
    figure.colorbar(image, label="share of the class's images")
    return to_png(figure)


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def _draw(axes, points: list[tuple[int, float, float]], label: str, color: str, faint: str | None) -> None:
    """Draws a faint line with a running mean over 2 % of the points or, if `faint` is None, joined markers."""
    if not points:
        return
    steps, values = [point[0] for point in points], [point[2] for point in points]
    window = max(1, len(values) // 50)
    if faint is None:
        axes.plot(steps, values, "o-", color=color, label=label, markersize=4)
        return
    axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
    means = [sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))]
    axes.plot(steps, means, color=color, label=label)
