"""The order of an epoch; oracle: its defining properties, over many shapes of data."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle.order import IndexedOrder

from dist_resnet.data.input.order import WINDOW_ROW_GROUPS, FullOrder

SHAPES = st.lists(st.integers(1, 30), min_size=1, max_size=40)
BATCHES = st.tuples(st.integers(1, 5), st.integers(1, 6))


def windowed(rows: list[int], streams: int, ghost_batch: int, seed: int = 1, epoch: int = 0) -> IndexedOrder:
    return IndexedOrder(
        np.array(rows), global_batch=streams * ghost_batch, ghost_batch=ghost_batch, seed=seed, epoch=epoch
    )


def full(num_images: int, seed: int = 1, epoch: int = 0) -> FullOrder:
    return FullOrder(num_images, global_batch=32, ghost_batch=8, seed=seed, epoch=epoch)


def epoch_of(order: IndexedOrder | FullOrder, streams: int) -> np.ndarray:
    return np.array([[order.draws(step, k) for k in range(streams)] for step in range(order.steps_per_epoch)])


@settings(deadline=None, max_examples=150)
@given(SHAPES, BATCHES, st.integers(0, 2**70), st.integers(0, 100))
def test_an_epoch_holds_no_image_twice_and_drops_less_than_a_global_batch(
    rows: list[int], batches: tuple[int, int], seed: int, epoch: int
) -> None:
    streams, ghost_batch = batches
    if sum(rows) < streams * ghost_batch:
        with pytest.raises(ValueError, match=f"{sum(rows)} training images do not fill one global batch"):
            windowed(rows, streams, ghost_batch, seed, epoch)
        return
    order = windowed(rows, streams, ghost_batch, seed, epoch)
    images = epoch_of(order, streams)
    assert order.steps_per_epoch == sum(rows) // (streams * ghost_batch)
    assert images.shape == (order.steps_per_epoch, streams, ghost_batch)
    assert len(np.unique(images)) == images.size
    assert images.min() >= 0
    assert images.max() < sum(rows)


@settings(deadline=None, max_examples=60)
@given(SHAPES.filter(lambda rows: sum(rows) >= 12), st.data())
def test_a_ghost_batch_is_known_without_those_before_it(rows: list[int], data: st.DataObject) -> None:
    whole = epoch_of(windowed(rows, 3, 4), 3)
    step = data.draw(st.integers(0, len(whole) - 1))
    stream = data.draw(st.integers(0, 2))
    np.testing.assert_array_equal(windowed(rows, 3, 4).draws(step, stream), whole[step, stream])


def test_each_stream_reads_few_row_groups_of_its_own() -> None:
    rows = [10] * 400
    order = windowed(rows, 4, 10)
    images = epoch_of(order, 4)
    groups = [set((images[:, stream] // 10).ravel().tolist()) for stream in range(4)]
    # Only a row group at the border of two streams is read by both.
    assert sum(len(group) for group in groups) <= 400 + 4
    within = images[:8, 0] // 10  # 80 images: one window
    assert len(np.unique(within)) <= 2 * WINDOW_ROW_GROUPS


def test_a_window_shuffles_its_row_groups_together() -> None:
    images = epoch_of(windowed([100] * 64, 2, 32), 2)
    # 32 images out of 8 row groups of 100 come from nearly all of them.
    assert np.mean([len(np.unique(batch // 100)) for batch in images.reshape(-1, 32)]) > 6


def test_epochs_and_seeds_differ_and_repeat() -> None:
    for make in (lambda *key: epoch_of(windowed([10] * 20, 4, 8, *key), 4), lambda *key: epoch_of(full(200, *key), 4)):
        assert np.array_equal(make(1, 5), make(1, 5))
        assert not np.array_equal(make(1, 5), make(1, 6))
        assert not np.array_equal(make(1, 5), make(2, 5))


@pytest.mark.parametrize("rows", [[100], [37, 63], [10] * 10])
def test_every_image_is_dropped_by_some_epoch_and_used_by_others(rows: list[int]) -> None:
    used = np.zeros(100)
    for epoch in range(200):
        used[epoch_of(windowed(rows, 3, 8, epoch=epoch), 3).ravel()] += 1
    # 96 of 100 are used in each epoch.
    assert used.min() > 150
    assert used.max() < 200


def test_two_large_row_groups_mix_over_the_streams() -> None:
    together = np.zeros((2, 4))
    for epoch in range(40):
        images = epoch_of(windowed([500, 500], 4, 25, epoch=epoch), 4)
        for stream in range(4):
            together[0, stream] += (images[:, stream] < 250).sum()
            together[1, stream] += (images[:, stream] >= 250).sum()
    # Each stream sees the first quarter of the images as often as chance would have it: 1 in 4.
    share = together[0] / together.sum(axis=0)
    assert np.all(np.abs(share - 0.25) < 0.12)


def test_the_full_order_is_a_permutation() -> None:
    images = epoch_of(full(300), 4)
    assert images.shape == (9, 4, 8)
    assert len(np.unique(images)) == 288
    with pytest.raises(ValueError, match="31 training images do not fill one global batch of 32"):
        full(31)


def test_the_order_is_the_recorded_one() -> None:
    """Recorded on 2026-11-21: a change here means that saved runs cannot be continued exactly."""
    assert windowed([5] * 8, 2, 4).draws(3, 1).tolist() == [1, 2, 33, 32]
    assert full(40).draws(0, 2).tolist() == [8, 6, 33, 0, 35, 24, 31, 4]
