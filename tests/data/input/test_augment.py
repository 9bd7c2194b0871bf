"""Crops, flips and colors; oracles: plain Python integers (oracle/windows.py), torchvision, closed formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import windows as oracle
from torchvision.transforms import RandomResizedCrop

from dist_resnet.data.input.augment import Augmentation, evaluation_windows
from dist_resnet.recipe import Augment

SCALE = Augment(kind="scale", size=224)
INCEPTION = Augment(kind="inception", size=224)
PAD = Augment(kind="pad", size=32)
SIDES = st.integers(1, 3000)


def many(augment: Augment, height: int, width: int, num: int = 20000) -> np.ndarray:
    return Augmentation(augment, 7, 3).windows(np.arange(num), np.full(num, height), np.full(num, width))


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([SCALE, INCEPTION]), SIDES, SIDES, st.integers(0, 2**40))
def test_windows_lie_within_the_image(augment: Augment, height: int, width: int, index: int) -> None:
    ((top, left, h, w),) = Augmentation(augment, 1, 2).windows(*np.array([[index], [height], [width]])).tolist()
    assert top >= 0
    assert left >= 0
    assert h >= 1
    assert w >= 1
    assert top + h <= height
    assert left + w <= width


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 2**66), st.integers(0, 500), st.integers(0, 2**40), SIDES, SIDES)
def test_windows_equal_those_made_one_by_one(seed: int, epoch: int, index: int, height: int, width: int) -> None:
    images = np.array([[index], [height], [width]])
    inception_draws, scale_draws = (Augmentation(kind, seed, epoch) for kind in (INCEPTION, SCALE))
    inception = oracle.inception_window(seed, epoch, index, height, width, (0.08, 1.0), (3 / 4, 4 / 3))
    assert inception_draws.windows(*images).tolist() == [list(inception)]
    scale = oracle.scale_window(seed, epoch, index, height, width, 224, (256, 480))
    assert scale_draws.windows(*images).tolist() == [list(scale)]
    assert scale_draws.flips(images[0])[0] == (oracle.uniform(seed, epoch, index, 1, 0) < 0.5)


def test_an_image_has_its_windows_whatever_its_neighbors() -> None:
    indices, heights, widths = np.arange(50), np.arange(300, 350), np.arange(500, 450, -1)
    together = Augmentation(INCEPTION, 1, 2).windows(indices, heights, widths)
    order = np.random.default_rng(0).permutation(50)
    apart = Augmentation(INCEPTION, 1, 2).windows(indices[order], heights[order], widths[order])
    np.testing.assert_array_equal(apart, together[order])


def test_inception_windows_are_distributed_as_those_of_torchvision() -> None:
    torch.manual_seed(0)
    image = torch.empty(3, 375, 500)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(20000)])
    ours = many(INCEPTION, 375, 500)
    for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
        # The deviation of a quantile of 20000 draws is about 1 % of the range; two samples, three deviations.
        np.testing.assert_allclose(
            np.quantile(ours, quantile, axis=0), np.quantile(theirs, quantile, axis=0), rtol=0.05, atol=4
        )
    np.testing.assert_allclose(np.corrcoef(ours.T), np.corrcoef(theirs.T), atol=0.04)


def test_a_long_image_falls_back_to_the_center_as_in_torchvision() -> None:
    for height, width in ((40, 4000), (4000, 40)):
        ours = many(Augment(kind="inception", size=224, area=(1.0, 1.0)), height, width, 10)
        top, left, h, w = RandomResizedCrop.get_params(torch.empty(3, height, width), [1.0, 1.0], [3 / 4, 4 / 3])
        assert ours.tolist() == [[top, left, h, w]] * 10


def test_scale_windows_show_the_share_that_table_5_describes() -> None:
    windows = many(SCALE, 375, 500)
    assert np.array_equal(windows[:, 2], windows[:, 3])
    # size / s of the shorter side, with s uniform on the integers 256 .. 480.
    expected = np.mean([224 / side for side in range(256, 481)]) * 375
    assert windows[:, 2].mean() == pytest.approx(expected, rel=0.01)
    assert windows[:, 2].min() == round(224 / 480 * 375)
    assert windows[:, 2].max() == round(224 / 256 * 375)
    # The place is uniform: on average as much is left over on both sides.
    assert windows[:, 0].mean() == pytest.approx((375 - windows[:, 2]).mean() / 2, rel=0.02)
    assert windows[:, 1].mean() == pytest.approx((500 - windows[:, 2]).mean() / 2, rel=0.02)


def test_pad_windows_have_81_places_of_equal_chance() -> None:
    windows = many(PAD, 32, 32, 81 * 500)
    assert np.all(windows[:, 2:] == 32)
    counts = np.bincount(windows[:, 0] * 9 + windows[:, 1], minlength=81)
    assert len(counts) == 81
    # Chi-squared with 80 degrees of freedom: mean 80, deviation 12.6.
    assert ((counts - 500) ** 2 / 500).sum() < 80 + 4 * 12.6


def test_an_image_too_small_to_pad_is_refused() -> None:
    with pytest.raises(ValueError, match="an image of 20 x 30 with 4 pixels of padding is smaller than a crop of 32"):
        Augmentation(PAD, 0, 0).windows(*np.array([[0], [30], [20]]))


def test_half_of_the_images_are_mirrored_unless_flip_is_off() -> None:
    assert Augmentation(SCALE, 0, 0).flips(np.arange(40000)).mean() == pytest.approx(0.5, abs=0.01)
    assert not Augmentation(Augment(flip=False), 0, 0).flips(np.arange(100)).any()


def test_epochs_seeds_and_images_draw_independently() -> None:
    images = np.arange(4000)
    reference = Augmentation(SCALE, 1, 1).flips(images)
    others = [Augmentation(SCALE, *key).flips(images) for key in ((1, 2), (2, 1))]
    for other in (*others, Augmentation(SCALE, 1, 1).flips(images + 1)):
        assert np.mean(reference == other) == pytest.approx(0.5, abs=0.04)


def test_color_factors_have_the_ranges_of_fb_resnet_torch() -> None:
    factors = Augmentation(Augment(color="full"), 0, 0).color_factors(np.arange(30000))
    assert factors is not None
    assert factors.strengths is not None
    assert factors.strengths.min() == pytest.approx(0.6, abs=0.001)
    assert factors.strengths.max() == pytest.approx(1.4, abs=0.001)
    np.testing.assert_allclose(factors.strengths.mean(axis=0), 1.0, atol=0.01)
    np.testing.assert_allclose(factors.lighting.mean(axis=0), 0.0, atol=0.003)
    np.testing.assert_allclose(factors.lighting.std(axis=0), 0.1, atol=0.002)
    orders, counts = np.unique(factors.order, axis=0, return_counts=True)
    assert len(orders) == 6
    np.testing.assert_allclose(counts, 5000, atol=300)


def test_lighting_alone_draws_the_lighting_of_full_color_and_nothing_else() -> None:
    full, alone = (Augmentation(Augment(color=kind), 3, 1).color_factors(np.arange(9)) for kind in ("full", "lighting"))
    assert full is not None
    assert alone is not None
    np.testing.assert_array_equal(alone.lighting, full.lighting)
    assert alone.order is None
    assert alone.strengths is None
    assert Augmentation(Augment(color="none"), 3, 1).color_factors(np.arange(9)) is None


@settings(deadline=None)
@given(SIDES, SIDES, st.integers(8, 320), st.integers(0, 100))
def test_evaluation_windows_are_centered_squares(height: int, width: int, crop: int, more: int) -> None:
    ((top, left, h, w),) = evaluation_windows(np.array([height]), np.array([width]), crop, crop + more).tolist()
    short = min(height, width)
    assert h == w == max(1, int(crop * short / (crop + more) + 0.5))
    assert abs(2 * top + h - height) <= 1
    assert abs(2 * left + w - width) <= 1
    assert min(top, left) >= 0
