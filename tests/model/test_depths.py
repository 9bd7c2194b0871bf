"""Layouts of the depths; oracle: arXiv:1512.03385, Table 1 and Sec. 4.2, and arXiv:1603.05027, Sec. 5."""

import subprocess
import sys

import pytest

from dist_resnet.model.depths import layout_of


@pytest.mark.parametrize(
    ("depth", "stem", "bottleneck", "num_units", "widths"),
    [
        (20, "cifar", False, (3, 3, 3), (16, 32, 64)),
        (56, "cifar", False, (9, 9, 9), (16, 32, 64)),
        (110, "cifar", False, (18, 18, 18), (16, 32, 64)),
        (164, "cifar", True, (18, 18, 18), (64, 128, 256)),
        (1001, "cifar", True, (111, 111, 111), (64, 128, 256)),
        (50, "imagenet", True, (3, 4, 6, 3), (256, 512, 1024, 2048)),
        (101, "imagenet", True, (3, 4, 23, 3), (256, 512, 1024, 2048)),
        (152, "imagenet", True, (3, 8, 36, 3), (256, 512, 1024, 2048)),
        (200, "imagenet", True, (3, 24, 36, 3), (256, 512, 1024, 2048)),
        (8, "cifar", False, (1, 1, 1), (16, 32, 64)),
        (11, "cifar", True, (1, 1, 1), (64, 128, 256)),
        (1202, "cifar", False, (200, 200, 200), (16, 32, 64)),
    ],
)
def test_a_depth_has_its_published_layout(depth, stem, bottleneck, num_units, widths):
    layout = layout_of(depth)
    assert (layout.stem, layout.bottleneck, layout.num_units, layout.widths) == (stem, bottleneck, num_units, widths)


@pytest.mark.parametrize(("depth", "nearest"), [(21, "20 and 26"), (7, "8"), (9, "8 and 11"), (153, "152 and 155")])
def test_any_other_depth_is_refused_with_the_nearest_allowed_ones(depth, nearest):
    with pytest.raises(ValueError, match=rf"no network has {depth} layers; allowed are .*6n\+2.*9n\+2.*: {nearest}$"):
        layout_of(depth)


def test_a_depth_can_be_checked_without_importing_torch():
    code = (
        "import sys; from dist_resnet.model.depths import layout_of; layout_of(200); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
