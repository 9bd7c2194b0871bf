"""The training curve. Oracle: PIL opens the PNG and finds the curves' colors in it."""

import io

from PIL import Image

from dist_resnet.tracking.plots import training_curve


def _colors(encoded: bytes) -> set[tuple[int, int, int]]:
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    return {color for _, color in image.getcolors(maxcolors=1 << 20)}


def test_the_curve_shows_training_and_validation():
    points = {
        "train/loss": [(step, 0.0, 1.0 / step) for step in range(1, 100)],
        "train/top1_error": [(step, 0.0, 0.5) for step in range(1, 100)],
        "val/loss": [(50, 0.0, 0.4), (99, 0.0, 0.2)],
        "val/top1_error": [(50, 0.0, 0.4), (99, 0.0, 0.2)],
    }
    colors = _colors(training_curve(points, "run"))
    assert (0x00, 0x72, 0xB2) in colors
    assert (0xD5, 0x5E, 0x00) in colors


def test_a_run_without_an_evaluation_also_has_a_curve():
    colors = _colors(training_curve({"train/loss": [(1, 0.0, 1.0), (2, 0.0, 0.5)]}, "run"))
    assert (0xD5, 0x5E, 0x00) not in colors
