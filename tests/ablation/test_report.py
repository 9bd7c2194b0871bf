"""The sweep's report. Oracle: the statistics module and counts by hand on journals written by hand; html.parser."""

import html.parser
import io
import math
import re
import statistics
from pathlib import Path

import pytest
from ablation.sweeps import MODEL, cell, write_sweep, write_trial
from PIL import Image

from dist_resnet.ablation import plots
from dist_resnet.ablation.ranking import agreement, published_orders
from dist_resnet.ablation.report import write_report
from dist_resnet.ablation.results import read_sweep
from dist_resnet.tracking.journal import Journal
from dist_resnet.tracking.records import Session
from dist_resnet.tracking.run_directory import RunDirectory

PREACTIVATION = MODEL | {"placement": "full_preactivation"}


@pytest.fixture(autouse=True)
def _nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take a second each; `test_plots.py` draws them."""
    pixel = io.BytesIO()
    Image.new("RGB", (1, 1)).save(pixel, "png")
    for name in ("errors", "training_curves"):
        monkeypatch.setattr(plots, name, lambda *args, **options: pixel.getvalue())


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(str(tmp_path / "sweep"))


def _write(directory: RunDirectory, results: dict[str, list[float | None]], **facts) -> None:
    """Rows of results, one for each seed, None where the trial diverged; the paper's error of row k is k."""
    cells = []
    for number, (row, errors) in enumerate(results.items()):
        for seed, error in enumerate(errors):
            trial = f"{row}-{seed}"
            cells.append(cell(row, trial, seed=seed, paper_error=float(number)))
            end = "diverged" if error is None else "finished"
            write_trial(directory, trial, {32_000: 50.0, 64_000: error or 90.0}, end=end)
    write_sweep(directory, cells, **facts)


def _row(directory: RunDirectory, name: str) -> list[str]:
    """The columns of a row of the report's tables of errors."""
    text = write_report(directory)["report.md"].decode()
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} | ResNet"))
    return [column.strip() for column in line.strip("|").split("|")]


def test_a_row_gives_median_mean_deviation_and_difference(directory: RunDirectory):
    errors = [6.4, 6.9, 6.1]
    _write(directory, {"first": [1.0], "second": errors})
    columns = _row(directory, "second")
    assert columns[2:6] == [
        "1.00",
        f"{statistics.median(errors):.2f}",
        f"{statistics.mean(errors):.2f} \N{PLUS-MINUS SIGN} {statistics.stdev(errors):.2f}",
        f"+{statistics.median(errors) - 1:.2f}",
    ]
    assert columns[6:] == ["2", "2", "3 of 3"]


def test_diverged_seeds_count_as_the_worst_in_the_median_and_are_told(directory: RunDirectory):
    _write(directory, {"one": [6.0, 7.0, None], "most": [6.0, None, None]})
    assert _row(directory, "one")[3:5] == ["7.00", "6.50 \N{PLUS-MINUS SIGN} 0.71, 1 diverged"]
    assert _row(directory, "most")[3] == "fail"


def test_above_20_percent_fails_and_ranks_last(directory: RunDirectory):
    _write(directory, {"high": [30.0], "low": [6.0], "gone": [None]})
    assert _row(directory, "high")[3] == "fail (30.00)"
    assert [_row(directory, name)[7] for name in ("low", "high", "gone")] == ["1", "2", "2"]


def test_an_error_above_20_percent_is_no_fail_on_cifar_100(directory: RunDirectory):
    write_sweep(directory, [cell("identity", "a", dataset="cifar100", paper_error=24.33)])
    write_trial(directory, "a", {64_000: 25.0}, end="finished")
    assert _row(directory, "identity")[2:4] == ["24.33", "25.00"]


def test_a_published_fail_is_compared_as_one(directory: RunDirectory):
    cells = [cell("plain", "a", paper_error=None, paper_fail=True), cell("identity", "b")]
    for name, error in (("a", 35.0), ("b", 6.5)):
        write_trial(directory, name, {64_000: error}, end="finished")
    write_sweep(directory, cells)
    assert _row(directory, "plain")[2:6] == ["fail", "fail (35.00)", "35.00", "both fail"]
    assert _row(directory, "plain")[6:8] == ["2", "2"]


def test_shortened_runs_are_told_first_and_their_high_errors_are_no_fails(directory: RunDirectory):
    _write(directory, {"high": [45.0], "low": [40.0]}, iterations=1000)
    lines = write_report(directory)["report.md"].decode().splitlines()
    assert lines[2].startswith("> **Shortened runs: 1,000 iterations; the paper has 64,000.")
    assert _row(directory, "high")[3] == "45.00"


def test_a_full_and_complete_sweep_carries_no_notice(directory: RunDirectory):
    _write(directory, {"identity": [6.6]})
    assert not [line for line in write_report(directory)["report.md"].decode().splitlines() if line.startswith(">")]


def test_a_sweep_half_way_says_so_and_counts_only_what_is_over(directory: RunDirectory):
    names = ("done", "running", "waiting")
    write_sweep(directory, [cell("identity", name, seed=seed) for seed, name in enumerate(names)], seeds=[0, 1, 2])
    write_trial(directory, "done", {64_000: 6.5}, end="finished")
    write_trial(directory, "running", {1000: 60.0, 2000: 50.0})
    text = write_report(directory)["report.md"].decode()
    assert "Incomplete: 1 of 3 trials are over, 1 have started, 1 have not." in text
    assert "at step 2,000 of 64,000" in text
    assert _row(directory, "identity")[3:5] == ["6.50", "6.50"]
    assert _row(directory, "identity")[8] == "1 of 3"


def test_curves_that_end_early_are_told_to_be_of_unfinished_or_stopped_trials(directory: RunDirectory):
    write_sweep(directory, [cell("identity", "a"), cell("other", "b")])
    write_trial(directory, "a", {64_000: 6.5}, end="finished")
    write_trial(directory, "b", {64_000: 6.5}, end="finished")
    told = "Curves that end before the axis belong to trials that are unfinished or were stopped early."
    assert told not in write_report(directory)["report.md"].decode()
    write_trial(directory, "b", {1000: 60.0})
    assert told in write_report(directory)["report.md"].decode()


def test_every_commit_and_precision_that_ran_is_told(directory: RunDirectory):
    write_sweep(directory, [cell("identity", "a"), cell("identity", "b", seed=1)])
    for name, commit, precision in (("a", "c0ffee", "bf16"), ("b", "facade", "fp32")):
        write_trial(directory, name, {1000: 60.0})
        journal = Journal(RunDirectory(directory.child(name)))
        journal.append(Session(start_step=1000, total_steps=64_000, commit=commit, precision=precision))
        journal.commit()
    rows = dict(
        [column.strip() for column in line.strip("|").split("|")]
        for line in write_report(directory)["report.md"]
        .decode()
        .split("## What was run")[1]
        .split("##")[0]
        .splitlines()
        if line.startswith("|")
    )
    assert (rows["commit"], rows["precision"]) == ("c0ffee; facade", "bf16; fp32")


def test_trials_that_were_stopped_early_are_told_and_left_out(directory: RunDirectory):
    write_sweep(directory, [cell("identity", name, seed=seed) for seed, name in enumerate(("done", "behind"))])
    write_trial(directory, "done", {64_000: 6.5}, end="finished")
    write_trial(directory, "behind", {1000: 60.0})
    directory.write_json("behind/summary.json", {"status": "stopped", "top1_error": 0.6})
    text = write_report(directory)["report.md"].decode()
    assert "1 trials were stopped early because of their error" in text
    assert "Not complete" not in text
    assert "stopped early at step 1,000" in text
    assert _row(directory, "identity")[3] == "6.50"


def test_a_sweep_before_its_first_trial_has_a_report(directory: RunDirectory):
    write_sweep(directory, [cell("identity", "waiting")])
    assert {"report.md", "report.html", "errors_2.png"} <= set(write_report(directory))
    assert _row(directory, "identity")[3:6] == ["\N{EN DASH}"] * 3


def test_what_was_run_is_told(directory: RunDirectory):
    _write(directory, {"identity": [6.6]}, hardware={"machine": "x86_64"})
    text = write_report(directory)["report.md"].decode()
    for fact in ("c0ffee", "machine: x86\\_64", "CPU, 1 threads each", "a" * 64, "b" * 64, "9" * 12, "1,234"):
        assert fact in text, fact


def test_trials_on_other_shards_are_told(directory: RunDirectory):
    write_sweep(directory, [cell("identity", "a"), cell("identity", "b", seed=1)])
    write_trial(directory, "a", {64_000: 6.5}, end="finished")
    write_trial(directory, "b", {64_000: 6.5}, end="finished", train="c" * 64)
    assert "did not all use the same shards" in write_report(directory)["report.md"].decode()


class _Page(html.parser.HTMLParser):
    """Collects text and attributes, and checks that tags close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_escaped_and_needs_nothing_else(directory: RunDirectory):
    row = '<script src="https://example.org/x.js">1 | 2 & 3</script>'
    write_sweep(directory, [cell(row, "a")])
    write_trial(directory, "a", {64_000: 6.5}, end="finished")
    files = write_report(directory)
    source = files["report.html"].decode()
    page = _Page(source)
    assert page.open == []
    assert row in page.text
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert len(page.links) == len([name for name in files if name.endswith(".png")])
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "@import" not in source
    assert "url(" not in source
    assert "\\<script" in files["report.md"].decode()


def test_the_markdown_refers_to_the_figures_that_are_there(directory: RunDirectory):
    _write(directory, {"identity": [6.6], "other": [7.0]})
    files = write_report(directory)
    named = re.findall(r"!\[.*?\]\((.*?)\)", files["report.md"].decode())
    assert sorted(named) == sorted(name for name in files if name.endswith(".png"))
    for name, content in files.items():
        assert directory.read(f"report/{name}") == content


def test_a_trial_may_serve_two_tables(directory: RunDirectory):
    write_sweep(directory, [cell("original", "a"), cell("identity", "a", table="1")])
    write_trial(directory, "a", {64_000: 6.5}, end="finished")
    sweep = read_sweep(directory)
    assert [found.results for found in sweep.cells] == [[6.5], [6.5]]
    assert len(sweep.trials) == 1


def test_a_folder_without_a_sweep_is_an_error(directory: RunDirectory):
    with pytest.raises(FileNotFoundError, match=r"no sweep.json under .*sweep; run jobs/cifar_ablation.py first"):
        write_report(directory)


def test_agreement_counts_the_pairs_that_the_published_order_tells_apart():
    published = {"a": 1.0, "b": 2.0, "c": math.inf, "d": math.inf, "e": 3.0}
    # a<b agrees, a<c agrees, a<d opposed, b<c agrees, b<d opposed; c and d are equal; e is not in ours.
    found = agreement(published, {"a": 5.0, "b": 6.0, "c": 7.0, "d": 4.0})
    assert (found.agreeing, found.opposed, found.tied) == (3, 2, 0)
    assert found.tau == pytest.approx(1 / 5)
    assert agreement(published, {"c": 1.0, "d": 2.0}) is None


def test_20_layers_are_ranked_against_110_and_against_the_replication(directory: RunDirectory):
    rows = {"original": MODEL, "pre": PREACTIVATION, "conv": MODEL | {"shortcut": "conv1x1"}}
    cells = [cell(row, row, depth=20, paper_error=None, model=model) for row, model in rows.items()]
    write_sweep(directory, cells)
    for row, error in (("original", 8.6), ("pre", 8.1), ("conv", 8.4)):
        write_trial(directory, row, {64_000: error}, end="finished")
    orders = published_orders(read_sweep(directory).cells)
    assert list(orders["the paper's errors of the same rows at 110 layers"].values()) == [6.61, 6.37, 12.22]
    text = write_report(directory)["report.md"].decode()
    # At 110 layers pre < original < conv; the replication has conv < original, and pre < original.
    assert "same rows at 110 layers in 2 of 3 pairs (Kendall's tau +0.33)" in text
    assert "replication's ranking of shortcuts in 1 of 1 pairs" in text
    assert "replication's ranking of placements in 1 of 1 pairs" in text
