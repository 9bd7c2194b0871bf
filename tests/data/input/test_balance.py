"""Balanced epochs. Oracle: their definition, counted by hand with NumPy, and unbalanced epochs."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle.images import jpeg, smooth
from oracle.order import IndexedOrder
from oracle.sources import prepare_here

from dist_resnet.data.input import balance
from dist_resnet.data.input.decoders import InputOptions
from dist_resnet.data.input.order import FullOrder
from dist_resnet.data.loader import TrainingImages
from dist_resnet.data.shards.reader import RowGroup, ShardReader
from dist_resnet.data.shards.split import Split, open_split
from dist_resnet.launch.plan import prepare
from dist_resnet.recipe import Augment, Balance, Evaluation, Execution, Recipe
from dist_resnet.worker import Worker

SIZES = [64, 24, 8, 4]
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), SIZES))
OPTIONS = InputOptions.of(Execution(device="cpu", cpus_per_worker=1, decode_on="pillow"))
KINDS: list[Balance] = ["classes", "square_root"]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(0, 2**70), st.integers(0, 100))
def test_an_epoch_draws_every_class_equally_often_and_its_images_evenly(sizes: list[int], seed: int, epoch: int):
    labels = np.repeat(np.arange(len(sizes)) * 3, sizes)  # numbers without images between them
    times = balance.repeats(labels, "classes", seed=seed, epoch=epoch)
    draws = [times[labels == label].sum() for label in np.unique(labels)]
    assert times.sum() == len(labels)
    assert max(draws) - min(draws) <= 1
    assert all(np.ptp(times[labels == label]) <= 1 for label in np.unique(labels))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=40))
def test_square_roots_are_met_to_less_than_an_image(sizes: list[int]):
    draws = balance.class_draws(np.array(sizes), "square_root", seed=0, epoch=0)
    assert draws.sum() == sum(sizes)
    assert np.all(np.abs(draws - sum(sizes) * np.sqrt(sizes) / np.sqrt(sizes).sum()) < 1 + 1e-9)


def test_a_set_of_equal_classes_is_drawn_as_it_is():
    for kind in KINDS:
        assert (balance.repeats(np.tile(np.arange(5), 20), kind, seed=1, epoch=2) == 1).all()


def test_epochs_and_seeds_draw_other_images_of_a_common_class():
    common = LABELS == 0
    one, again, epoch, seed = (
        balance.repeats(LABELS, "classes", seed=s, epoch=e)[common] for s, e in ((1, 0), (1, 0), (1, 1), (2, 0))
    )
    assert np.array_equal(one, again)
    assert not np.array_equal(one, epoch)
    assert not np.array_equal(one, seed)
    total = sum(balance.repeats(LABELS, "classes", seed=1, epoch=e)[common] for e in range(64))
    assert total.min() > 0  # 25 of 64 in each epoch


def test_the_repeats_are_the_recorded_ones():
    """Recorded on 2026-11-26: a change here means that saved runs cannot be continued exactly."""
    assert balance.repeats(np.array([0, 0, 0, 0, 0, 1, 1, 2]), "classes", seed=3, epoch=1).tolist() == RECORDED


RECORDED = [0, 1, 1, 1, 0, 1, 1, 3]


@pytest.mark.parametrize("rows", [[100], [1] * 100, [7] * 14 + [2], [30, 1, 69]])
@pytest.mark.parametrize("kind", KINDS)
def test_an_order_has_each_image_as_often_as_it_is_to_be_drawn(rows: list[int], kind: Balance):
    times = balance.repeats(LABELS, kind, seed=5, epoch=1)
    options = {"global_batch": 20, "ghost_batch": 5, "seed": 5, "epoch": 1, "repeats": times}
    for order in (IndexedOrder(np.array(rows), **options), FullOrder(100, **options)):
        draws = np.concatenate([order.draws(step, ghost) for step in range(5) for ghost in range(4)])
        assert order.steps_per_epoch == 5
        assert len(np.unique(draws)) == 100  # each repeat has a draw of its own
        np.testing.assert_array_equal(np.bincount(draws % 100, minlength=100), times)
        assert (draws // 100 < times[draws % 100]).all()


def test_a_row_group_of_which_nothing_is_drawn_is_not_read():
    labels = np.repeat([0, 1], [90, 10])
    times = np.repeat([0, 10], [90, 10])
    order = IndexedOrder(np.array([10] * 10), global_batch=20, ghost_batch=10, seed=0, epoch=0, repeats=times)
    windows = [order.window(stream, n) for stream in range(2) for n in range(order.num_windows(stream))]
    assert {int(group) for window in windows for group in window.row_groups} == {9}
    assert labels[90:].all()


class Counting(ShardReader):
    """A reader that counts how often each row group is read."""

    def __init__(self, split: Split) -> None:
        super().__init__(split)
        self.read_groups: list[int] = []

    def read(self, number: int) -> RowGroup:
        self.read_groups.append(number)
        return super().read(number)


@pytest.fixture(scope="module", params=["as downloaded", "prepared"])
def uneven(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A split of 100 images of 32 x 32 in four classes of 64, 24, 8 and 4, in two shards."""
    folder = tmp_path_factory.mktemp("uneven")
    images = [jpeg(smooth(32, 32, number)) for number in range(100)]
    for number in range(2):
        here = slice(50 * number, 50 * (number + 1))
        (folder / "source").mkdir(exist_ok=True)
        table = pa.table({"image": pa.array(images[here]), "label": [f"class {n}" for n in LABELS[here]]})
        pq.write_table(table, folder / "source" / f"train-{number}.parquet", row_group_size=10)
    if request.param == "as downloaded":
        return str(folder / "source")
    prepare_here(folder / "source", folder / "set", shard_megabytes=0.03)
    return f"{folder}/set/train-*.parquet"


def balanced(recipe: Recipe, uri: str, kind: str, **changes: object) -> Recipe:
    data = dataclasses.replace(recipe.data, train=uri, validation=uri, balance="classes")
    if kind == "scale":
        changes |= {
            "augment": Augment(kind="scale", size=24, shorter_side=(26, 40), color="lighting"),
            "evaluation": Evaluation(crops=(24,), shorter_sides=(28,)),
        }
    return dataclasses.replace(recipe, data=data, global_batch=20, ghost_batch=5, **changes)


def epoch_of(recipe: Recipe, split: Split, rank: int = 0, world_size: int = 1, start: int = 0) -> dict:
    """(step, ghost batch) -> (indices, labels, pixels) of a worker's share of epoch 1."""
    worker = Worker(rank=rank, world_size=world_size, device=torch.device("cpu"))
    images = TrainingImages(recipe, split, worker, OPTIONS)
    try:
        return {
            (start + number // images.ghosts_per_step, batch.ghost): (
                batch.indices,
                batch.labels.numpy(),
                batch.images.numpy(),
            )
            for number, batch in enumerate(images.epoch(1, start))
        }
    finally:
        images.close()


@pytest.mark.parametrize("kind", ["pad", "scale"])
def test_workers_share_the_same_images_and_a_resumed_epoch_continues_them(recipe: Recipe, uneven: str, kind: str):
    settings = balanced(recipe, uneven, kind)
    split = open_split(uneven)
    whole = epoch_of(settings, split)
    labels = np.concatenate([labels for _, labels, _ in whole.values()])
    assert np.bincount(labels).tolist() == [25] * 4
    indices = np.concatenate([indices for indices, _, _ in whole.values()])
    np.testing.assert_array_equal(split.with_labels().labels[indices], labels)
    parts = epoch_of(settings, split, 0, 2) | epoch_of(settings, split, 1, 2)
    resumed = epoch_of(settings, split, start=3)
    assert parts.keys() == whole.keys()
    assert resumed.keys() == {key for key in whole if key[0] >= 3}
    for key, found in [*parts.items(), *resumed.items()]:
        for one, other in zip(found, whole[key], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["pad", "scale"])
def test_repeats_of_an_image_are_augmented_differently(recipe: Recipe, uneven: str, kind: str):
    found = epoch_of(balanced(recipe, uneven, kind), open_split(uneven))
    drawn = [one for batch in found.values() for one in zip(*batch, strict=True)]
    some = next(index for index, label, _ in drawn if label == 3)
    rare = [image for index, _, image in drawn if index == some]
    assert 6 <= len(rare) <= 7  # 25 draws of 4 images
    assert len({image.tobytes() for image in rare}) > 4


def test_no_row_group_is_read_more_than_once_by_a_stream(recipe: Recipe, uneven: str):
    from dist_resnet.data.input.streams import training_requests

    reader = Counting(open_split(uneven))
    assert len(list(training_requests(balanced(recipe, uneven, "scale"), reader, 0, 0, range(4)))) == 20
    # A row group at the border of two streams is read by both.
    assert len(reader.read_groups) <= reader.split.num_row_groups + 4


def test_the_driver_reads_the_labels_once_and_tells_what_is_drawn(recipe: Recipe, uneven: str, execution: Execution):
    plan = prepare(balanced(recipe, uneven, "pad"), execution, job="test")
    labels = plan.train.labels
    assert labels is not None
    assert labels.dtype == np.int32
    assert np.bincount(labels).tolist() == SIZES
    assert plan.train.with_labels() is plan.train
    assert plan.notes[0] == (
        "data.balance classes: the training images have 4 classes; an epoch of 100 draws has 25 images of class "
        "'class 3', which has 4 and 25 images of class 'class 0', which has 64"
    )
    assert (
        plan.recipe.fingerprint()
        != prepare(
            dataclasses.replace(plan.recipe, data=dataclasses.replace(plan.recipe.data, balance="none")),
            execution,
            job="test",
        ).recipe.fingerprint()
    )


def test_labels_that_can_no_longer_be_read_are_refused_by_file(uneven: str, tmp_path: Path):
    pq.write_table(pa.table({"image": [jpeg(smooth(32, 32, 1))] * 4, "label": [0, 1] * 2}), tmp_path / "a.parquet")
    split = open_split(str(tmp_path))
    (tmp_path / "a.parquet").write_bytes(b"gone")
    with pytest.raises(ValueError, match=r"the labels of .*a.parquet cannot be read \(.*\); replace it with an intact"):
        split.with_labels()
