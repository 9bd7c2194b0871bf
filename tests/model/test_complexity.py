"""Sizes of the networks; oracle: published figures (dist_resnet/paper.py), torchvision's count, sums by hand."""

import pytest
from torch import nn

from dist_resnet import paper
from dist_resnet.model.complexity import main, measure
from dist_resnet.recipe import Model


@pytest.mark.parametrize("depth", [110, 164, 152, 200])
def test_parameters_round_to_the_published_millions(depth: int):
    large = depth in (152, 200)
    cost = measure(Model(depth=depth, num_classes=1000 if large else 10), 224 if large else 32)
    assert round(cost.parameters / 1e6, 1) == paper.MILLION_PARAMETERS[depth]


def test_resnet_1001_has_the_published_millions_without_bn():
    cost = measure(Model(depth=1001, num_classes=10), 32)
    assert round((cost.parameters - cost.norm_parameters) / 1e6, 1) == paper.MILLION_PARAMETERS[1001]
    # The same by hand, with BN: stem, 111 units in each of three stages, last activation and classifier.
    by_hand = 3 * 16 * 9 + 2 * 16 + 2 * 256 + 256 * 10 + 10
    for in_width, width in ((16, 64), (64, 128), (128, 256)):
        inner = width // 4
        rest = 2 * inner + 9 * inner * inner + 2 * inner + inner * width
        by_hand += in_width * inner + rest + in_width * width + (2 * in_width if in_width > 16 else 0)
        by_hand += 110 * (2 * width + width * inner + rest)
    assert cost.parameters == by_hand


def test_resnet_200_takes_the_published_multiply_adds():
    low, high = paper.BILLION_MULTIPLY_ADDS[200]
    cost = measure(Model(depth=200, num_classes=1000), 224)
    assert low <= round(cost.multiply_adds / 1e9, 1) <= high


def test_the_original_resnet_152_is_as_large_as_torchvisions():
    cost = measure(Model(depth=152, num_classes=1000, placement="original"), 224)
    assert cost.parameters == 60_192_808


def test_resnet_110_with_zero_padding_is_as_large_as_in_the_first_paper():
    # 1,727,962: stem, 18 units in each of three stages and classifier, summed by hand from arXiv:1512.03385, Sec. 4.2.
    by_hand = 3 * 16 * 9 + 2 * 16 + 64 * 10 + 10
    for stage, width in enumerate((16, 32, 64)):
        by_hand += 18 * 2 * (width * width * 9 + 2 * width) - (width * width * 9 // 2 if stage else 0)
    cost = measure(Model(depth=110, num_classes=10, placement="original", widening="zero_pad"), 32)
    assert cost.parameters == by_hand == 1_727_962


def test_multiply_adds_of_the_smallest_network_are_those_of_a_sum_by_hand():
    # Depth 8 with zero-padding at 32 pixels: stem, two 3x3 convolutions in each of three units, classifier.
    by_hand = 32 * 32 * 9 * (3 * 16 + 16 * 16 * 2) + 16 * 16 * 9 * (16 * 32 + 32 * 32)
    by_hand += 8 * 8 * 9 * (32 * 64 + 64 * 64) + 64 * 10
    assert measure(Model(depth=8, num_classes=10, widening="zero_pad"), 32).multiply_adds == by_hand


def test_the_table_is_written_with_the_published_figures(capsys: pytest.CaptureFixture[str]):
    main(["--depths", "20", "110"])
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["depth", "units", "pixels"]
    assert [row.split()[0] for row in rows] == ["20", "110"]
    assert "1.73 M" in rows[1]
    assert "1.7 M" in rows[1].split("1.73 M")[1]


def test_an_impossible_depth_ends_the_command_with_its_reason(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main(["--depths", "21"])
    assert "nearest to 21: 20 and 26" in capsys.readouterr().err


def test_counting_leaves_torchs_default_device_as_it_was():
    measure(Model(depth=8, num_classes=2), 32)
    assert nn.Linear(1, 1).weight.device.type == "cpu"
