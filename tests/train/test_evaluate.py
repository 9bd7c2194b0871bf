"""Evaluation. Oracle: errors and loss counted in NumPy over all logits at once."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from dist_resnet.data.input.batch import Batch, Damaged
from dist_resnet.train.evaluate import Evaluator
from dist_resnet.worker import Worker

WORKER = Worker(rank=0, world_size=1, device=torch.device("cpu"))


class _Images:
    """23 images whose means are their logits, in batches of five."""

    def __init__(self, num_classes: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.logits = torch.randn(23, num_classes, generator=generator)
        self.labels = torch.randint(0, num_classes, (23,), generator=generator)

    def center_crops(self, crop: int, shorter_side: int) -> Iterator[Batch]:
        for first in range(0, 23, 5):
            part = slice(first, first + 5)
            yield Batch(
                self.logits[part], self.labels[part], np.arange(23)[part], -1, torch.ones(len(self.labels[part]))
            )


def _evaluator(images: _Images, **options: Any) -> Evaluator:
    return Evaluator(**{"model": torch.nn.Identity(), "images": images, "worker": WORKER, **options})


@pytest.mark.parametrize("num_classes", [3, 10])
def test_errors_and_loss_are_counted_over_every_image(num_classes):
    images = _Images(num_classes)
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    found = _evaluator(images).at_crop(1, 1, confusion)
    logits, labels = images.logits.numpy().astype(np.float64), images.labels.numpy()
    ranks = np.argsort(-logits, axis=1)
    top1 = np.mean(ranks[:, 0] != labels)
    top5 = np.mean([label not in row for row, label in zip(ranks[:, :5], labels, strict=True)])
    counts = np.zeros((num_classes, num_classes), int)
    np.add.at(counts, (labels, ranks[:, 0]), 1)
    np.testing.assert_array_equal(confusion.numpy(), counts)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    loss = -np.mean(log_p[np.arange(23), labels])
    assert found == pytest.approx({"loss": loss, "top1_error": top1, "top5_error": top5, "images": 23}, rel=1e-6)


def test_a_damaged_image_counts_as_an_error_has_no_loss_and_is_named():
    images = _Images(10)
    hurt = Damaged(7, "b.parquet", 2, "the JPEG is cut short")

    class Hurt(_Images):
        def center_crops(self, crop: int, shorter_side: int) -> Iterator[Batch]:
            for batch in super().center_crops(crop, shorter_side):
                if 7 in batch.indices:
                    batch.weights[7 - int(batch.indices[0])] = 0
                    batch.damaged = (hurt,)
                yield batch

    # Its class would be predicted correctly, so the error can only come from its weight.
    damaged = Hurt(10)
    for each in (images, damaged):
        each.logits[7, each.labels[7]] = 99.0
    named, confusion = [], torch.zeros(10, 10, dtype=torch.int64)
    whole = _evaluator(images).at_crop(1, 1)
    found = _evaluator(damaged, name_damaged=named.extend).at_crop(1, 1, confusion)
    assert named == [hurt]
    for key in ("top1_error", "top5_error"):
        assert found[key] == pytest.approx(whole[key] + 1 / 23)
    losses = torch.nn.functional.cross_entropy(images.logits, images.labels, reduction="none")
    assert found["loss"] == pytest.approx(float((losses.sum() - losses[7]) / 22))
    assert int(confusion.sum()) == 22


def test_evaluation_does_not_change_the_running_statistics():
    images = _Images(4)
    images.logits = images.logits[:, :, None, None]
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(4), torch.nn.Flatten())
    _evaluator(images, model=model).at_crop(1, 1)
    assert int(model[0].num_batches_tracked) == 0
