"""The grid of cells. Oracle: the tables of arXiv:1603.05027 as printed, counted by hand, and the paper's schedule."""

import dataclasses
import re

import pytest

from dist_resnet.ablation.grid import Choice, Images, bases, choose, trial_name
from dist_resnet.model.shortcuts import widens_by_projection
from dist_resnet.recipe import Augment, Data, Model, Recipe, Schedule
from dist_resnet.train.schedule import learning_rate, num_steps

PAPER = Recipe(
    model=Model(depth=110, num_classes=10, placement="original", stride_on="conv1x1"),
    data=Data(train="train", validation="validation", dataset="cifar10"),
    augment=Augment(kind="pad", size=32),
    schedule=Schedule(drops=(0.5, 0.75), warmup=400 / 64_000, warmup_kind="constant"),
    global_batch=128,
    ghost_batch=64,
)


def _cells(**options):
    choice = Choice(**options)
    return choose(choice, bases(PAPER, choice, Images()))


def _by_key(**options):
    return {cell.key: cell for cell in _cells(**options)}


def test_table_1_has_its_11_rows_with_their_settings_and_errors():
    cells = _cells(tables=("1",))
    printed = [
        ("identity", {}, 6.61),
        ("constant_scaling", {"shortcut_scale": 0.0, "residual_scale": 1.0}, None),
        ("constant_scaling", {"shortcut_scale": 0.5, "residual_scale": 1.0}, None),
        ("constant_scaling", {"shortcut_scale": 0.5, "residual_scale": 0.5}, 12.35),
        ("exclusive_gating", {"gate_bias": 0.0}, None),
        ("exclusive_gating", {"gate_bias": -6.0}, 8.70),
        ("exclusive_gating", {"gate_bias": -7.0}, 9.81),
        ("shortcut_only_gating", {"gate_bias": 0.0}, 12.86),
        ("shortcut_only_gating", {"gate_bias": -6.0}, 6.91),
        ("conv1x1", {}, 12.22),
        ("dropout", {"dropout_rate": 0.5}, None),
    ]
    assert len(cells) == 11
    for cell, (shortcut, settings, error) in zip(cells, printed, strict=True):
        model = cell.recipe.model
        assert (model.shortcut, model.placement, model.depth, cell.paper_error) == (shortcut, "original", 110, error)
        assert cell.paper_fail == (error is None)
        assert {name: getattr(model, name) for name in settings} == settings


def test_table_2_has_five_placements_at_110_and_164_layers():
    cells = _cells(tables=("2",))
    assert len(cells) == 10
    assert {cell.depth for cell in cells} == {110, 164}
    assert {cell.recipe.model.shortcut for cell in cells} == {"identity"}
    errors = {(cell.row, cell.depth): cell.paper_error for cell in cells}
    assert errors["bn_after_addition", 110] == 8.17
    assert errors["full_preactivation", 164] == 5.46


def test_table_3_has_its_pairs_on_both_data_sets_but_for_the_1_layer_skip():
    cells = _by_key(tables=("3",), datasets=("cifar10", "cifar100"))
    assert len(cells) == 10
    assert cells["table3/cifar10_full_preactivation/1001"].paper_error == 4.92
    hundred = cells["table3/cifar100_original/1001"]
    assert hundred.paper_error == 27.82
    assert (hundred.recipe.model.num_classes, hundred.recipe.data.dataset) == (100, "cifar100")
    assert hundred.recipe.data.train == Images().train100
    both = Images(label_column100="fine_label")
    assert [both.data(each).label_column for each in ("cifar10", "cifar100")] == [None, "fine_label"]


def test_the_replication_has_every_ranked_pair_and_conv_with_full_preactivation():
    cells = _by_key(tables=("replication",))
    assert len(cells) == 6 + 4 + 1
    assert cells["replication/conv1x1-full_preactivation/20"].paper_error == 8.16
    assert cells["replication/dropout-original/20"].paper_error is None
    assert not cells["replication/dropout-original/20"].paper_fail


def test_the_full_grid_is_every_pair_at_any_depth():
    cells = _cells(grid="full", depths=(20, 29))
    pairs = {(cell.depth, cell.recipe.model.shortcut, cell.recipe.model.placement) for cell in cells}
    assert len(cells) == len(pairs) == 2 * 6 * 5


def test_rows_run_at_another_depth_have_no_papers_number():
    cells = _cells(tables=("1", "2"), depths=(20,))
    assert len(cells) == 11 + 5
    assert all(cell.published is None and not cell.paper_fail and cell.depth == 20 for cell in cells)


def test_shortcuts_placements_and_keys_choose():
    assert {cell.row for cell in _cells(tables=("1",), shortcuts=("conv1x1", "dropout"))} == {"conv1x1", "dropout"}
    placed = _cells(tables=("2",), placements=("original",))
    assert [cell.key for cell in placed] == ["table2/original/110", "table2/original/164"]
    assert [cell.key for cell in _cells(cells=("table1/dropout/110",))] == ["table1/dropout/110"]


def test_basic_networks_widen_by_zeros_and_bottleneck_networks_by_projections():
    projects = {cell.depth: widens_by_projection(cell.recipe.model) for cell in _cells()}
    assert projects == {110: False, 164: True, 1001: True, 20: False}


@pytest.mark.parametrize("options", [{}, {"grid": "full"}, {"depths": (20, 110)}])
def test_a_cell_changes_nothing_but_the_model(options):
    choice = Choice(**options)
    base = bases(PAPER, choice, Images())["cifar10"]
    for cell in choose(choice, {"cifar10": base, "cifar100": base}):
        assert dataclasses.replace(cell.recipe, model=base.model) == base
        assert cell.recipe.model.stride_on == "conv1x1"


def test_keys_differ_and_name_files_and_urls():
    cells = _cells(datasets=("cifar10", "cifar100"))
    assert len({cell.key for cell in cells}) == len(cells)
    for cell in cells:
        assert re.fullmatch(r"[A-Za-z0-9._/-]+", cell.key)
        assert re.fullmatch(r"[A-Za-z0-9._-]+", trial_name(cell, 3))
    assert len({trial_name(cell, 0) for cell in cells}) == len(cells)


def test_64000_iterations_have_the_papers_rates():
    recipe = _cells()[0].recipe
    total = num_steps(recipe.epochs, 50_000 // 128)
    assert total == 64_000
    rates = [learning_rate(recipe.schedule, step, total) for step in (0, 399, 400, 31_999, 32_000, 47_999, 48_000)]
    assert rates == [0.01, 0.01, 0.1, 0.1, 0.01, 0.01, 0.001]


def test_fewer_iterations_shrink_the_whole_schedule():
    recipe = _cells(iterations=1600)[0].recipe
    total = num_steps(recipe.epochs, 50_000 // 128)
    assert total == 1600
    rates = [learning_rate(recipe.schedule, step, total) for step in (9, 10, 799, 800, 1199, 1200)]
    assert rates == [0.01, 0.1, 0.1, 0.01, 0.01, 0.001]
    assert dataclasses.replace(recipe, epochs=1.0) == dataclasses.replace(_cells()[0].recipe, epochs=1.0)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"tables": ("4",)}, "unknown table '4'; allowed are 1, 2, 3, replication"),
        ({"cells": ("table1/dropuot/110",)}, "unknown cell 'table1/dropuot/110'; .* --list"),
        ({"depths": (21,)}, "no network has 21 layers"),
        ({"depths": (50,)}, "depth 50 is an ImageNet network's"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"datasets": ()}, "datasets is empty"),
        ({"tables": ("1",), "placements": ("bn_after_addition",)}, "no cell of --tables 1 has"),
        ({"tables": ("1", "2"), "datasets": ("cifar100",)}, "CIFAR-100 is only in table 3"),
    ],
)
def test_choices_that_cannot_be_are_refused_in_one_line(options, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        _cells(**options)
    assert "\n" not in str(caught.value)
