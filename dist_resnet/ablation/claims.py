"""The statements of the paper and the replication that hold in our runs, and the differences that are noise."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from dist_resnet.ablation.ranking import is_usual
from dist_resnet.ablation.results import Cell
from dist_resnet.paper import REPLICATION_20, Replication

LEAST_NOISE = 0.3
"""Difference in test error, in points, that is known between seeds of ResNet-20."""

Verdict = Literal["holds", "does not hold", "within the seed noise", "open"]
_ORIGINAL, _PREACTIVATION = Replication("identity", "original"), Replication("identity", "full_preactivation")
_CONV, _CONV_PREACTIVATION = Replication("conv1x1", "original"), Replication("conv1x1", "full_preactivation")
_SCALING = Replication("constant_scaling", "original")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement that `lower` has a lower test error, or training loss, than each of `higher`."""

    text: str
    source: str
    lower: Replication
    higher: tuple[Replication, ...]
    of_loss: bool = False


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The verdict of our runs on a claim."""

    claim: Claim
    verdict: Verdict
    numbers: str = ""
    """The compared numbers; empty if the verdict is open because results are missing."""


def _published(*networks: Replication) -> str:
    errors = " against ".join(f"{REPLICATION_20[network]:.2f} %" for network in networks)
    return f"the replication, {errors}"


CLAIMS = (
    Claim(
        text="Full pre-activation has the lowest test error of the replication's five networks",
        source=f"the replication, {REPLICATION_20[_PREACTIVATION]:.2f} %",
        lower=_PREACTIVATION,
        higher=tuple(network for network in REPLICATION_20 if network != _PREACTIVATION),
    ),
    Claim(
        text="Full pre-activation has a lower test error than the original unit",
        source=f"the paper's Table 2; {_published(_PREACTIVATION, _ORIGINAL)}",
        lower=_PREACTIVATION,
        higher=(_ORIGINAL,),
    ),
    Claim(
        text="Full pre-activation ends with a higher training loss than the original unit",
        source="the paper's Sec. 4.2 and Fig. 6 (right)",
        lower=_ORIGINAL,
        higher=(_PREACTIVATION,),
        of_loss=True,
    ),
    Claim(
        text="With full pre-activation, 1x1 convolution shortcuts have a higher test error than identity",
        source=_published(_CONV_PREACTIVATION, _PREACTIVATION),
        lower=_PREACTIVATION,
        higher=(_CONV_PREACTIVATION,),
    ),
    Claim(
        text="With the original unit, 1x1 convolution shortcuts have a lower test error than identity",
        source=f"{_published(_CONV, _ORIGINAL)}; the paper has the opposite at 110 layers",
        lower=_CONV,
        higher=(_ORIGINAL,),
    ),
    Claim(
        text="With the original unit, constant scaling by 0.5 has a lower test error than identity",
        source=f"{_published(_SCALING, _ORIGINAL)}; the paper has the opposite at 110 layers",
        lower=_SCALING,
        higher=(_ORIGINAL,),
    ),
    *(
        Claim(
            text=f"{name} has a higher test error than identity",
            source="the paper's Table 1 at 110 layers; the replication's ranking",
            lower=_ORIGINAL,
            higher=(Replication(shortcut, "original"),),
        )
        for name, shortcut in (("Exclusive gating (bias -6)", "exclusive_gating"), ("A dropout shortcut", "dropout"))
    ),
    *(
        Claim(
            text=f"{name} has a higher test error than the original unit",
            source="the paper's Table 2 at 110 and 164 layers; the replication's ranking",
            lower=_ORIGINAL,
            higher=(Replication("identity", placement),),
        )
        for name, placement in (
            ("BN after addition", "bn_after_addition"),
            ("ReLU before addition", "relu_before_addition"),
        )
    ),
)


def findings(cells: Sequence[Cell]) -> list[Finding]:
    """The verdict on each claim of cells of one depth and length."""
    by_network = {
        Replication(cell.model["shortcut"], cell.model["placement"]): cell for cell in cells if is_usual(cell)
    }
    return [_finding(claim, by_network, cells) for claim in CLAIMS]


def error_noise(cells: Iterable[Cell]) -> float:
    """The difference in test error, in points, that counts as noise: at least 0.3, or the largest between seeds."""
    return max([LEAST_NOISE, *_ranges(cells, lambda cell: cell.finite)])


def losses(cell: Cell) -> list[float]:
    """The final training losses of finished trials."""
    found = [trial.final_loss for trial in cell.trials if trial.state == "finished"]
    return [loss for loss in found if loss is not None]


def _finding(claim: Claim, cells: dict[Replication, Cell], all_cells: Sequence[Cell]) -> Finding:
    measured = {
        network: value
        for network in (claim.lower, *claim.higher)
        if network in cells and (value := _measure(cells[network], claim)) is not None
    }
    if len(measured) <= len(claim.higher):
        return Finding(claim=claim, verdict="open")
    nearest = min(claim.higher, key=lambda network: measured[network])
    difference = measured[nearest] - measured[claim.lower]
    ranges = _ranges(all_cells, losses) if claim.of_loss else [error_noise(all_cells)]
    noise = max(ranges, default=0.0)
    return Finding(
        claim=claim,
        verdict=_verdict(difference, noise),
        numbers="; ".join(f"{cells[each].row}: {_written(measured[each], claim)}" for each in (claim.lower, nearest))
        + ("" if ranges else "; one seed each, so the noise is unknown"),
    )


def _measure(cell: Cell, claim: Claim) -> float | None:
    if not claim.of_loss:
        return cell.median
    return statistics.median(found) if (found := losses(cell)) else None


def _verdict(difference: float, noise: float) -> Verdict:
    if math.isnan(difference) or abs(difference) <= noise:
        return "within the seed noise"
    return "holds" if difference > 0 else "does not hold"


def _written(value: float, claim: Claim) -> str:
    if math.isinf(value):
        return "diverged"
    return f"{value:.4f}" if claim.of_loss else f"{value:.2f} %"


def _ranges(cells: Iterable[Cell], values: Callable[[Cell], list[float]]) -> list[float]:
    """The difference between the extreme values of each cell with several seeds."""
    found = [values(cell) for cell in cells]
    return [max(each) - min(each) for each in found if len(each) > 1]
