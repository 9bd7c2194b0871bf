"""The listing of a sweep's cost. Oracle: multiply-adds counted by hand, and times added up by hand."""

import dataclasses
import os
import re

import pytest

from dist_resnet.ablation.cost import listing, wall_seconds
from dist_resnet.ablation.grid import Choice, Images
from dist_resnet.recipe import Execution, Recipe


def test_the_listing_has_every_cell_with_its_multiply_adds_and_where_the_times_come_from(
    recipe: Recipe, execution: Execution
):
    choice = Choice(
        tables=("1", "2"), depths=(8,), shortcuts=("identity",), placements=("original",), seeds=2, iterations=4
    )
    text = listing(recipe, choice, Images(), execution)
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["table1/original/8", "table2/original/8"]
    # 3x3x3x16 of 1024 pixels; per stage 4 (less in the first unit of stages 2 and 3) convolutions; the classifier.
    macs = 27 * 16 * 1024 + 2 * 144 * 16 * 1024 + (144 * 32 + 288 * 32) * 256 + (288 * 64 + 576 * 64) * 64 + 640
    assert f"{macs / 1e6:.1f} M" in lines[1]
    assert "2 cells, 1 of them different, 2 seeds, 4 iterations of 32 images" in lines[3]
    assert "measured just now" in lines[4]


@pytest.mark.parametrize(
    ("runs", "at_once", "expected"),
    [
        ([3, 2, 2, 1], 1, 8),
        ([3, 2, 2, 1], 2, 4),  # the third begins at 2, the fourth at 3
        ([1, 1, 4], 2, 5),  # the longest begins last
        ([3, 2], 8, 3),
    ],
)
def test_runs_begin_as_soon_as_there_is_room(runs, at_once, expected):
    assert wall_seconds(runs, at_once) == expected


@pytest.mark.parametrize(("cores", "cpus", "at_once"), [(2, None, 2), (8, 3, 2), (2, 4, 1), (64, 1, 6)])
def test_the_listing_has_the_time_of_the_whole_sweep_and_what_it_assumes(
    recipe: Recipe, execution: Execution, monkeypatch: pytest.MonkeyPatch, cores, cpus, at_once
):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    choice = Choice(tables=("2",), depths=(8,), placements=("original",), seeds=6, iterations=4_000_000)
    text = listing(recipe, choice, Images(), dataclasses.replace(execution, cpus_per_worker=cpus))
    found = re.search(r"the whole sweep takes (\S+) with (\d+) runs at once, (\S+) one after another", text)
    assert found is not None
    assert int(found[2]) == at_once
    (_, row, *_) = text.splitlines()
    one, whole, in_turn = (_seconds(each) for each in (row.split()[-1], found[1], found[3]))
    assert one > 0
    # Six equal runs, in so many rounds.
    assert whole == pytest.approx(-(-6 // at_once) * one, abs=6)
    assert in_turn == pytest.approx(6 * one, abs=6)
    assert f"assumed: this machine's {cores} cores with no other load" in text
    assert "no evaluations or restarts" in text


def _seconds(clock: str) -> int:
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return 3600 * hours + 60 * minutes + seconds
