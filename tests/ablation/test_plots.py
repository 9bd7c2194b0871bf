"""The report's figures. Oracle: PIL opens them and finds the colors of what must be drawn."""

import io
from pathlib import Path

import pytest
from ablation.sweeps import MODEL, cell, write_sweep, write_trial
from PIL import Image

from dist_resnet.ablation import plots
from dist_resnet.ablation.report import write_report
from dist_resnet.ablation.results import Cell, read_sweep
from dist_resnet.tracking.run_directory import RunDirectory

VERMILLION, BLUE = (0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)


def _image(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded)).convert("RGB")


def _colors(encoded: bytes) -> set[tuple[int, int, int]]:
    image = _image(encoded)
    return {color for _, color in image.getcolors(maxcolors=1 << 20)}


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """Four rows: original and full pre-activation finished, one diverged, one not started."""
    directory = RunDirectory(str(tmp_path))
    placements = ("original", "full_preactivation", "bn_after_addition", "relu_before_addition")
    rows = [cell(name, name, model=MODEL | {"placement": name}) for name in placements]
    write_sweep(directory, rows)
    for name in placements[:2]:
        write_trial(directory, name, {32_000: 12.0, 64_000: 7.0}, end="finished")
    write_trial(directory, placements[2], {1000: 70.0}, end="diverged")
    return directory


@pytest.fixture
def cells(directory: RunDirectory) -> list[Cell]:
    return read_sweep(directory).cells


def test_the_report_holds_the_figures_as_they_are_drawn(directory: RunDirectory, cells: list[Cell]):
    files = write_report(directory)
    assert files["errors_2.png"] == plots.errors(cells, "Table 2: placements of BN and ReLU", fails_are_shown=True)
    assert _image(files["curves_2_cifar10_110.png"]).size[0] > 400


def test_errors_show_ours_and_the_published(cells: list[Cell]):
    assert {VERMILLION, BLUE} <= _colors(plots.errors(cells, "Table 2", fails_are_shown=True))
    without = [cells[3]]
    assert BLUE in _colors(plots.errors(without, "Table 2", fails_are_shown=True))


def test_there_is_a_panel_for_each_cell_but_the_baseline(cells: list[Cell]):
    # Three panels stand in one row; four cells without a baseline fill two rows of two.
    in_a_row = _image(plots.training_curves(cells, "Table 2", iterations=64_000)).size
    no_baseline = [*cells[1:], cells[1]]
    assert in_a_row[0] > _image(plots.training_curves(no_baseline, "x", iterations=64_000)).size[0]
    assert in_a_row[1] < _image(plots.training_curves(no_baseline, "x", iterations=64_000)).size[1]


def test_curves_of_the_row_are_drawn_beside_those_of_the_original(cells: list[Cell]):
    assert VERMILLION in _colors(plots.training_curves(cells, "Table 2", iterations=64_000))


def test_a_baseline_alone_has_a_panel_too(cells: list[Cell]):
    assert _image(plots.training_curves(cells[:1], "Table 2", iterations=64_000)).size[0] > 400


@pytest.mark.parametrize(("end", "top"), [("finished", 50.0), (None, 20.0)])
def test_the_axis_of_errors_fits_results_and_not_the_first_errors_of_unfinished_trials(
    directory: RunDirectory, end, top
):
    write_trial(directory, "relu_before_addition", {1000: 42.0}, end=end)
    assert plots._error_limit(read_sweep(directory).cells) == top
