"""Rank orders of cells, and the number of pairs in which two orders agree."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from dist_resnet import paper
from dist_resnet.ablation.results import Cell
from dist_resnet.recipe import Model

_REPLICATED_DEPTH = 20


@dataclass(frozen=True)
class Agreement:
    """The pairs that a published order ranks, counted by their order in ours."""

    agreeing: int
    opposed: int
    tied: int
    """Pairs that are equal in ours."""

    @property
    def pairs(self) -> int:
        """All pairs that the published order ranks."""
        return self.agreeing + self.opposed + self.tied

    @property
    def tau(self) -> float:
        """(agreeing - opposed) / pairs, as in Kendall's tau: 1 for the same order, -1 for the reverse."""
        return (self.agreeing - self.opposed) / self.pairs


def ranks(errors: Mapping[str, float]) -> dict[str, int]:
    """Each key's rank, 1 the lowest error; equal errors share the better rank.

    >>> ranks({"a": 6.6, "b": float("inf"), "c": 5.9, "d": float("inf")})
    {'a': 2, 'b': 3, 'c': 1, 'd': 3}
    """
    return {key: 1 + sum(other < error for other in errors.values()) for key, error in errors.items()}


def agreement(published: Mapping[str, float], ours: Mapping[str, float]) -> Agreement | None:
    """The counts over pairs of common keys that `published` ranks; None if there is no such pair."""
    keys = [key for key in published if key in ours]
    counts = {"agreeing": 0, "opposed": 0, "tied": 0}
    for first, second in combinations(keys, 2):
        if published[first] == published[second]:
            continue
        if ours[first] == ours[second]:
            counts["tied"] += 1
        else:
            same = (published[first] < published[second]) == (ours[first] < ours[second])
            counts["agreeing" if same else "opposed"] += 1
    found = Agreement(**counts)
    return found if found.pairs else None


def published_orders(cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """The published orders of the cells of one data set and depth: name -> (cell key -> error or rank).

    The cells' own published errors or, if they have none, those of the same rows at 110 layers; at 20 layers also the
    rankings of the public replication.
    """
    orders = {"the published errors": {cell.key: cell.paper_error for cell in cells if cell.paper_error is not None}}
    if not orders["the published errors"]:
        elsewhere = {cell.key: error for cell in cells if (error := _at_110(cell)) is not None}
        orders = {"the paper's errors of the same rows at 110 layers": elsewhere}
    if any(cell.depth == _REPLICATED_DEPTH for cell in cells):
        orders["the public replication's ranking of shortcuts"] = _ranks_in(
            paper.REPLICATION_20_SHORTCUTS, cells, fixed=("placement", "original"), ranked="shortcut"
        )
        orders["the public replication's ranking of placements"] = _ranks_in(
            paper.REPLICATION_20_PLACEMENTS, cells, fixed=("shortcut", "identity"), ranked="placement"
        )
    return {name: order for name, order in orders.items() if len(order) > 1}


def _ranks_in(names: Sequence[str], cells: Sequence[Cell], *, fixed: tuple[str, str], ranked: str) -> dict[str, float]:
    """Ranks in a ranking, for the cells with the usual scales, gate biases and dropout rates."""
    field, value = fixed
    usual = [cell for cell in cells if cell.model[field] == value and is_usual(cell)]
    return {cell.key: float(names.index(cell.model[ranked])) for cell in usual if cell.model[ranked] in names}


def is_usual(cell: Cell) -> bool:
    """Whether a cell has the usual scales, gate biases and dropout rates."""
    fields = Model.__dataclass_fields__
    names = ("shortcut_scale", "residual_scale", "gate_bias", "dropout_rate")
    return all(cell.model.get(name, fields[name].default) == fields[name].default for name in names)


def _at_110(cell: Cell) -> float | None:
    """The row's error at 110 layers, infinite for "fail"; None if the paper has no such row."""
    model = cell.model
    if cell.dataset != "cifar10":
        return None
    if model["shortcut"] == "identity":
        return paper.TABLE_2.get(paper.Table2(model["placement"], 110))
    for row, error in paper.TABLE_1.items():
        settings = {name: value for name, value in row._asdict().items() if value is not None}
        if model["placement"] == "original" and all(model.get(name) == value for name, value in settings.items()):
            return math.inf if error is None else error
    return None
