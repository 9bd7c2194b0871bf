"""The tables of arXiv:1603.05027; oracle: figures typed here once more, and the paper's own statements on them."""

from typing import get_args

from dist_resnet import paper, recipe


def test_full_preactivation_is_the_best_placement_at_both_depths():
    for depth in (110, 164):
        cells = {key.placement: error for key, error in paper.TABLE_2.items() if key.depth == depth}
        assert set(cells) == set(get_args(recipe.Placement))
        assert min(cells, key=cells.__getitem__) == "full_preactivation"


def test_identity_is_the_best_shortcut_and_every_shortcut_has_a_row():
    assert {key.shortcut for key in paper.TABLE_1} == set(get_args(recipe.Shortcut))
    errors = {key: error for key, error in paper.TABLE_1.items() if error is not None}
    assert min(errors, key=errors.__getitem__) == paper.Table1("identity")
    assert max(errors.values()) < paper.FAIL_ABOVE


def test_cells_that_stand_in_several_tables_agree():
    assert paper.TABLE_1[paper.Table1("identity")] == paper.TABLE_2[paper.Table2("original", 110)] == 6.61
    for placement, depth in (("original", 110), ("original", 164), ("full_preactivation", 164)):
        in_table_3 = paper.TABLE_3[paper.Table3("cifar10", depth, placement)]
        assert in_table_3 == paper.TABLE_2[paper.Table2(placement, depth)]
    for key, runs in paper.TABLE_4.items():
        if key.mini_batch == 128:
            assert runs.median == paper.TABLE_3[paper.Table3(key.dataset, key.depth, "full_preactivation")]


def test_the_headline_of_resnet_200_is_as_published():
    errors = paper.TABLE_5[paper.Table5(200, "full_preactivation", "inception", 320)]
    assert errors == (20.1, 4.8)
    assert errors == min(paper.TABLE_5.values())


def test_the_replication_ranks_its_own_runs():
    by_shortcut = {key.shortcut: e for key, e in paper.REPLICATION_20.items() if key.placement == "original"}
    ranked = [shortcut for shortcut in paper.REPLICATION_20_SHORTCUTS if shortcut in by_shortcut]
    assert ranked == sorted(by_shortcut, key=by_shortcut.__getitem__)
    assert set(paper.REPLICATION_20_SHORTCUTS) == set(get_args(recipe.Shortcut))
    assert set(paper.REPLICATION_20_PLACEMENTS) == set(get_args(recipe.Placement))
