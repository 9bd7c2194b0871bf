"""A sweep's report, at any time: our errors next to the published ones, cell by cell."""

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from dist_resnet import paper
from dist_resnet.ablation import plots
from dist_resnet.ablation.document import Block, Figure, Heading, Paragraph, Table, to_html, to_markdown
from dist_resnet.ablation.ranking import agreement, published_orders, ranks
from dist_resnet.ablation.results import Cell, Sweep, Trial, read_sweep
from dist_resnet.data.datasets import DATASETS
from dist_resnet.tracking.run_directory import RunDirectory

FOLDER = "report"
PLUS_MINUS, NONE, MINUS = "\N{PLUS-MINUS SIGN}", "\N{EN DASH}", "\N{MINUS SIGN}"

_TITLES = {
    "1": "Table 1: shortcuts",
    "2": "Table 2: placements of BN and ReLU",
    "3": "Table 3: original and pre-activation units",
    "replication": "Depth 20, with a public replication",
    "full": "All pairs of shortcut and placement",
}
_DATASET_NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet"}


def write_report(directory: RunDirectory) -> dict[str, bytes]:
    """Writes the report of the sweep in `directory`, finished or not, to `report/`.

    Returns the files by name: `report.md`, the self-contained `report.html`, and PNG figures. Raises FileNotFoundError
    if `directory` holds no sweep.
    """
    sweep = read_sweep(directory)
    blocks = _blocks(sweep, directory.name)
    files = {block.name: block.content for block in blocks if isinstance(block, Figure)}
    files |= {"report.md": to_markdown(blocks).encode(), "report.html": to_html(blocks).encode()}
    for name, content in files.items():
        directory.write(f"{FOLDER}/{name}", content)
    return files


def _blocks(sweep: Sweep, name: str) -> list[Block]:
    blocks: list[Block] = [Heading(f"Ablation sweep {name}", 1)]
    blocks += [Paragraph(text, notice=True) for text in _notices(sweep)]
    blocks.append(
        Paragraph(
            'Errors are top-1 test errors in percent, at the end of training. "fail" is an error above 20 % or a loss '
            "that is no longer finite. Ours is the median of the finished seeds, followed by their mean and sample "
            "standard deviation; the difference is our median minus the published number."
        )
    )
    blocks += [Heading("What was run"), _facts(sweep)]
    for table in dict.fromkeys(cell.table for cell in sweep.cells):
        cells = [cell for cell in sweep.cells if cell.table == table]
        blocks += [Heading(_title(table)), *_table_blocks(sweep, table, cells)]
    return [*blocks, Heading("Trials"), _trial_table(sweep)]


def _notices(sweep: Sweep) -> Iterable[str]:
    """What a reader must know before the numbers."""
    if sweep.is_short:
        yield (
            f"Shortened runs: {sweep.iterations:,} iterations; the paper has {paper.CIFAR_ITERATIONS:,}. Errors are "
            'not comparable with the published ones; only diverged runs are marked "fail".'
        )
    trials = sweep.trials
    counts = {
        state: sum(trial.state == state for trial in trials) for state in ("unfinished", "not started", "diverged")
    }
    if counts["unfinished"] or counts["not started"]:
        done = sum(trial.is_over for trial in trials)
        yield (
            f"Incomplete: {done} of {len(trials)} trials are over, {counts['unfinished']} have started, "
            f"{counts['not started']} have not. Medians, ranks and counts are of the results so far; ranks, also the "
            "published ones, are among the rows with a result and change with further results."
        )
    if stopped := sum(trial.state == "stopped early" for trial in trials):
        yield f"{stopped} trials were stopped early because of their error: they have no result, and medians omit them."
    for dataset in dict.fromkeys(cell.dataset for cell in sweep.cells):
        of_dataset = {trial.data for cell in sweep.cells if cell.dataset == dataset for trial in cell.trials}
        if len(of_dataset - {(None, None)}) > 1:
            yield f"The trials on {_dataset(dataset)} did not all use the same shards; see their digests."


def _facts(sweep: Sweep) -> Table:
    trials, facts = sweep.trials, sweep.facts
    done = sum(trial.is_over for trial in trials)
    diverged = sum(trial.state == "diverged" for trial in trials)
    rows = [
        ("iterations", f"{sweep.iterations:,}; the paper: {paper.CIFAR_ITERATIONS:,}"),
        ("mini-batch", _text(facts.get("global_batch"))),
        ("seeds", _text(facts.get("seeds"))),
        (
            "cells and trials",
            f"{len(sweep.cells)} cells, {len(trials)} trials: {done} over, {diverged} of them diverged",
        ),
    ]
    for dataset in dict.fromkeys(cell.dataset for cell in sweep.cells):
        digests = {trial.data for cell in sweep.cells if cell.dataset == dataset for trial in cell.trials}
        seen = [
            f"training {train or NONE}, test {test or NONE}"
            for train, test in sorted(digests - {(None, None)}, key=str)
        ]
        rows.append((f"{_dataset(dataset)} shards, digest", "; ".join(seen) or NONE))
    devices = sorted({trial.device for trial in trials if trial.device})
    rows += [
        ("precision", "; ".join(sorted({trial.precision for trial in trials if trial.precision})) or NONE),
        ("hardware", _text(facts.get("hardware"))),
        ("trained on", "; ".join(devices) or NONE),
        ("commit", "; ".join(_commits(sweep)) or NONE),
        ("started", _text(facts.get("created"))),
    ]
    return Table(("", ""), rows, numbers_from=2)


def _commits(sweep: Sweep) -> list[str]:
    """The commit that began the sweep, and others that trials ran."""
    ran = [trial.commit for trial in sweep.trials if trial.commit and "unknown" not in trial.commit]
    return list(dict.fromkeys([commit for commit in (sweep.facts.get("commit"), *ran) if commit]))


def _table_blocks(sweep: Sweep, table: str, cells: Sequence[Cell]) -> Iterable[Block]:
    groups = _groups(cells)
    rows = [row for group in groups for row in _rows(sweep, group)]
    head = (
        "row",
        "network",
        "published",
        "ours",
        f"mean {PLUS_MINUS} std",
        "difference",
        "rank published",
        "rank ours",
    )
    yield Table((*head, "seeds done"), rows, numbers_from=2)
    for group in groups:
        yield from (Paragraph(text) for text in _agreements(group))
    slug = re.sub(r"\W+", "_", table).strip("_").lower()
    short = f", {sweep.iterations:,} iterations" if sweep.is_short else ""
    image = plots.errors(cells, _title(table) + short, fails_are_shown=not sweep.is_short)
    yield Figure(f"errors_{slug}.png", image, f"{_title(table)}: our test errors and the published ones{short}.")
    for group in groups:
        title = f"{_title(table)}, {_network(group[0])}{short}"
        image = plots.training_curves(group, title, iterations=sweep.iterations)
        caption = f"{title}. Dashed: training loss (left axis). Solid: test error (right axis). Cross: diverged."
        if any(trial.state in ("unfinished", "stopped early") for cell in group for trial in cell.trials):
            caption += " Curves that end before the axis belong to trials that are unfinished or were stopped early."
        yield Figure(f"curves_{slug}_{group[0].dataset}_{group[0].depth}.png", image, caption)


def _rows(sweep: Sweep, cells: Sequence[Cell]) -> Iterable[tuple[str, ...]]:
    """The table's rows of one data set and depth; ranks are among the rows with both numbers."""
    ours = _ours(sweep, cells)
    both = {cell.key: cell.paper_error for cell in cells if cell.paper_error is not None and cell.key in ours}
    published_ranks, our_ranks = ranks(both), ranks({key: ours[key] for key in both} or ours)
    for cell in cells:
        median = cell.median
        yield (
            cell.row,
            _network(cell),
            _error(cell.paper_error, fails=cell.paper_error == math.inf),
            _error(median, fails=sweep.fails(cell)),
            _spread(cell),
            _difference(cell, sweep),
            str(published_ranks.get(cell.key, NONE)),
            str(our_ranks.get(cell.key, NONE)),
            f"{len(cell.results)} of {len(cell.trials)}",
        )


def _agreements(cells: Sequence[Cell]) -> Iterable[str]:
    ours = {cell.key: cell.median for cell in cells if cell.median is not None}
    for name, order in published_orders(cells).items():
        found = agreement(order, ours)
        if found is None:
            continue
        tied = f", {found.tied} tied in ours" if found.tied else ""
        yield (
            f"{_network(cells[0])}: our order agrees with {name} in {found.agreeing} of {found.pairs} pairs{tied} "
            f"(Kendall's tau {found.tau:+.2f})."
        )


def _trial_table(sweep: Sweep) -> Table:
    rows = []
    shown = set()
    for cell in sweep.cells:
        for trial in cell.trials:
            if trial.name not in shown:
                shown.add(trial.name)
                speed = f"{trial.images_per_second:,.0f}" if trial.images_per_second else NONE
                error = _error(trial.newest_error, fails=False)
                rows.append((trial.name, cell.key, trial.fingerprint[:12], _state(trial), error, speed))
    head = ("trial", "cell", "fingerprint", "state", "newest test error", "images/s")
    return Table(head, rows, numbers_from=4)


def _state(trial: Trial) -> str:
    if trial.state == "unfinished":
        return f"at step {trial.steps:,} of {trial.total_steps or 0:,}"
    return trial.state if trial.state == "not started" else f"{trial.state} at step {trial.steps:,}"


def _groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells by data set and depth, within which they can be ranked."""
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.dataset, cell.depth), []).append(cell)
    return list(groups.values())


def _ours(sweep: Sweep, cells: Sequence[Cell]) -> dict[str, float]:
    """Our medians by cell, with infinity for each fail."""
    return {cell.key: math.inf if sweep.fails(cell) else cell.median for cell in cells if cell.median is not None}


def _error(error: float | None, *, fails: bool) -> str:
    if error is None:
        return NONE
    if fails:
        return "fail" if math.isinf(error) else f"fail ({error:.2f})"
    return f"{error:.2f}"


def _spread(cell: Cell) -> str:
    parts = []
    if cell.finite:
        parts = [f"{statistics.fmean(cell.finite):.2f}"]
    if len(cell.finite) > 1:
        parts = [f"{parts[0]} {PLUS_MINUS} {statistics.stdev(cell.finite):.2f}"]
    if diverged := len(cell.results) - len(cell.finite):
        parts.append(f"{diverged} diverged")
    return ", ".join(parts) or NONE


def _difference(cell: Cell, sweep: Sweep) -> str:
    if cell.paper_error is None or cell.median is None:
        return NONE
    fails = (math.isinf(cell.paper_error), sweep.fails(cell))
    if any(fails):
        return "both fail" if all(fails) else NONE
    return f"{cell.median - cell.paper_error:+.2f}".replace("-", MINUS)


def _title(table: str) -> str:
    return _TITLES.get(re.sub(r"table|\W|_", "", table.lower()), table[:1].upper() + table[1:])


def _network(cell: Cell) -> str:
    return f"ResNet-{cell.depth}, {_dataset(cell.dataset)}"


def _dataset(name: str) -> str:
    assert name in DATASETS
    return _DATASET_NAMES[name]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {entry}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(str(entry) for entry in value)
    return NONE if value is None else str(value)
