"""The listing of a sweep's cost. Oracle: multiply-adds counted by hand."""

from dist_resnet.ablation.cost import listing
from dist_resnet.ablation.grid import Choice, Pictures
from dist_resnet.recipe import Execution, Recipe


def test_the_listing_has_every_cell_with_its_multiply_adds_and_where_the_times_come_from(
    recipe: Recipe, execution: Execution
):
    choice = Choice(
        tables=("1", "2"), depths=(8,), shortcuts=("identity",), placements=("original",), seeds=2, iterations=4
    )
    text = listing(recipe, choice, Pictures(), execution)
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["table1/original/8", "table2/original/8"]
    # 3x3x3x16 of 1024 pixels; per stage 4 (less in the first unit of stages 2 and 3) convolutions; the classifier.
    macs = 27 * 16 * 1024 + 2 * 144 * 16 * 1024 + (144 * 32 + 288 * 32) * 256 + (288 * 64 + 576 * 64) * 64 + 640
    assert f"{macs / 1e6:.1f} M" in lines[1]
    assert "2 cells, 1 of them different, 2 seeds, 4 iterations of 32 pictures" in lines[3]
    assert "measured just now" in lines[4]
