"""The pages on what sweeps gave. Oracle: rows by hand for journals by hand; PIL opens the figures."""

import io
from pathlib import Path

import pytest
from ablation.sweeps import MODEL, cell, write_sweep, write_trial
from PIL import Image

from dist_resnet.ablation import plots
from dist_resnet.ablation.pages import BEGIN, END, insert, readers_page, record_page
from dist_resnet.ablation.record import Record, read_record
from dist_resnet.tracking.run_directory import RunDirectory

IMAGES = "CIFAR-10 without loss"
NONE, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


def _sweep(path: Path, errors: dict[str, float | None], iterations: int = 64_000) -> RunDirectory:
    """Rows SHORTCUT-PLACEMENT of the replication with their errors in percent, None where a trial is half-way."""
    sweep = RunDirectory(str(path))
    entries = []
    for row, error in errors.items():
        shortcut, placement = row.split("-")
        model = MODEL | {"shortcut": shortcut, "placement": placement}
        published = {"identity-original": 8.56, "identity-full_preactivation": 8.08}.get(row)
        key = f"replication/{row}/20"
        entries.append(cell(row, row, table="replication", key=key, depth=20, paper_error=published, model=model))
        curve = {iterations // 2: 20.0, iterations: error} if error is not None else {iterations // 2: 12.0}
        write_trial(sweep, row, curve, end="finished" if error is not None else None)
    write_sweep(sweep, entries, iterations=iterations)
    return sweep


def _page(record: Record) -> tuple[str, dict[str, bytes]]:
    return readers_page(record, images=IMAGES, data_file="results/data.json", figures="images")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take a second each."""
    pixel = io.BytesIO()
    Image.new("RGB", (1, 1)).save(pixel, "png")
    monkeypatch.setattr(plots, "training_curves", lambda *_, **__: pixel.getvalue())


ROWS = {"identity-original": 8.5, "identity-full_preactivation": 8.9, "conv1x1-original": None}


@pytest.mark.usefixtures("undrawn")
def test_full_runs_stand_beside_the_published_numbers(tmp_path: Path):
    text, _ = _page(read_record([_sweep(tmp_path / "full", ROWS)]))
    lines = text.splitlines()
    # write_trial's training loss is 100 / step.
    assert f"| original (identity) | 8.50 | {NONE} | 8.50 | 8.56 | {MINUS}0.06 | 0.0016 | 1 of 1 |" in lines
    assert f"| identity, full pre-activation | 8.90 | {NONE} | 8.90 | 8.08 | +0.82 | 0.0016 | 1 of 1 |" in lines
    assert f"| 1x1 convolution | {NONE} | {NONE} | {NONE} | {NONE} | {NONE} | {NONE} | 0 of 1 |" in lines
    assert "More than 0.6 points from the published error: identity, full pre-activation (+0.82)." in lines


@pytest.mark.usefixtures("undrawn")
def test_statements_are_decided_or_named_as_open(tmp_path: Path):
    text, _ = _page(read_record([_sweep(tmp_path / "full", ROWS)]))
    (row,) = [line for line in text.splitlines() if line.startswith("| Full pre-activation has a lower test error")]
    assert "| does not hold | identity, full pre-activation: 8.90 %; original (identity): 8.50 % |" in row
    (still_open,) = [line for line in text.splitlines() if line.startswith("Open, because networks are missing")]
    assert "With the original unit, 1x1 convolution shortcuts" in still_open


@pytest.mark.usefixtures("undrawn")
def test_an_unfinished_trial_is_listed_with_how_far_it_is_and_has_no_result(tmp_path: Path):
    record = read_record([_sweep(tmp_path / "full", ROWS)])
    row = "| conv1x1-original | unfinished | 32,000 of 64,000 | 12.00 | 0 |"
    page = record_page(record, title="Title", images=IMAGES, files=("data.json",))
    for text in (_page(record)[0], page):
        assert text.splitlines().count(row) == 1
    results = page.split("## Results")[1].split("## How")[0]
    assert "conv1x1" not in results
    assert "| replication/identity-original/20 | 64,000 | 0 | 8.50 | 8.50 | 8.56 | 0.0016 |" in results


@pytest.mark.usefixtures("undrawn")
def test_shortened_runs_are_not_compared_with_published_numbers(tmp_path: Path):
    text, _ = _page(read_record([_sweep(tmp_path / "short", ROWS, iterations=8000)]))
    assert "Shortened from 64,000 iterations" in text
    assert f"| original (identity) | 8.50 | {NONE} | 8.50 | 0.0125 | 1 of 1 |" in text
    assert "published error" not in text


@pytest.mark.usefixtures("undrawn")
def test_the_longest_runs_come_first_and_each_figure_says_its_images_and_length(tmp_path: Path):
    short = _sweep(tmp_path / "short", ROWS, iterations=8000)
    text, figures = _page(read_record([short, _sweep(tmp_path / "full", ROWS)]))
    assert text.index("## ResNet-20, 64,000 iterations") < text.index("## ResNet-20, 8,000 iterations")
    lengths, kinds = (64_000, 8000), ("shortcuts", "placements")
    names = {f"results_resnet20_{length}_{kind}.png" for length in lengths for kind in kinds}
    assert set(figures) == names
    for name in names:
        (line,) = [line for line in text.splitlines() if line.endswith(f"](images/{name})")]
        assert IMAGES in line
        assert ("64,000 iterations" in line) == ("64000" in name)


@pytest.mark.usefixtures("undrawn")
def test_a_comparison_without_a_curve_has_no_figure(tmp_path: Path):
    _, figures = _page(read_record([_sweep(tmp_path / "full", {"identity-original": 8.5})]))
    assert figures == {}


def test_the_figures_are_drawn(tmp_path: Path):
    _, figures = _page(read_record([_sweep(tmp_path / "full", ROWS)]))
    for content in figures.values():
        assert Image.open(io.BytesIO(content)).size[0] > 400


@pytest.mark.usefixtures("undrawn")
def test_trials_on_other_shards_are_told(tmp_path: Path):
    first, second = _sweep(tmp_path / "full", ROWS), _sweep(tmp_path / "short", ROWS, iterations=8000)
    write_trial(second, "identity-original", {4000: 20.0, 8000: 8.5}, end="finished", train="c" * 64)
    record = read_record([first, second])
    for text in (_page(record)[0], record_page(record, title="Title", images=IMAGES, files=("data.json",))):
        assert "did not all use the same shards" in text


def test_only_what_stands_between_the_markers_is_replaced():
    page = f"# By hand\n\n{BEGIN}\nold\n{END}\n\nThe end.\n"
    once = insert(page, "new\n")
    assert once == f"# By hand\n\n{BEGIN}\n\nnew\n\n{END}\n\nThe end.\n"
    assert insert(once, "new\n") == once


@pytest.mark.parametrize("page", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_page_without_its_markers_is_refused(page):
    with pytest.raises(ValueError, match="must have the lines"):
        insert(page, "new")
