"""Balanced epochs: how often each image is drawn, as a pure function of the classes, the seed and the epoch.

A balanced epoch has as many draws as there are images. An image of a rare class is drawn several times, each time with
its own crop, flip and colors; of a common class, each epoch draws other images.
"""

import math

import numpy as np

from dist_resnet.data.input.order import random_words
from dist_resnet.data.shards.split import Split
from dist_resnet.recipe import Balance, Recipe

# Purposes of random words, after those of `order`.
_CLASSES, _IMAGES = 4, 5


def epoch_repeats(recipe: Recipe, split: Split, epoch: int) -> np.ndarray | None:
    """How often an epoch draws each image of a split: int64 [num_images]; None if each is drawn once."""
    if recipe.data.balance == "none":
        return None
    labels = split.with_labels().labels
    assert labels is not None
    return repeats(labels, recipe.data.balance, seed=recipe.seed, epoch=epoch)


def repeats(labels: np.ndarray, balance: Balance, *, seed: int, epoch: int) -> np.ndarray:
    """How often each image is drawn: int64 [N], with sum N; `labels`: int [N].

    A class's images are drawn equally often, but for one draw. Which have one more is random in each epoch.
    """
    _, images = np.unique(labels, return_inverse=True)
    sizes = np.bincount(images)
    draws = class_draws(sizes, balance, seed=seed, epoch=epoch)
    order = np.lexsort((random_words(len(labels), (seed, epoch), _IMAGES), images))
    place_in_class = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    times = np.empty(len(labels), np.int64)
    times[order] = np.repeat(draws // sizes, sizes) + (place_in_class < np.repeat(draws % sizes, sizes))
    return times


def class_draws(sizes: np.ndarray, balance: Balance, *, seed: int, epoch: int) -> np.ndarray:
    """How many images of each class an epoch draws: int64 [C], with the sum of `sizes`, the images of each, all > 0.

    classes: equally many, but for one. square_root: in proportion to the square roots of the sizes.
    """
    total = int(sizes.sum())
    weights = np.ones(len(sizes)) if balance == "classes" else np.sqrt(sizes)
    shares = total * weights / math.fsum(weights)
    draws = np.floor(shares).astype(np.int64)
    # The largest remainders get one more; equal ones at random.
    order = np.lexsort((random_words(len(sizes), (seed, epoch), _CLASSES), draws - shares))
    draws[order[: total - int(draws.sum())]] += 1
    return draws


def describe_balance(recipe: Recipe, train: Split) -> list[str]:
    """A line about what a balanced epoch draws of the rarest and of the most common class."""
    labels = train.labels
    if recipe.data.balance == "none" or labels is None:
        return []
    classes, sizes = np.unique(labels, return_counts=True)
    draws = class_draws(sizes, recipe.data.balance, seed=recipe.seed, epoch=0)
    rare, common = int(sizes.argmin()), int(sizes.argmax())
    named = [
        f"{draws[number]} images of class {_name(train, int(classes[number]))}, which has {sizes[number]}"
        for number in (rare, common)
    ]
    return [
        f"data.balance {recipe.data.balance}: the training images have {len(classes)} classes; an epoch of "
        f"{len(labels)} draws has {' and '.join(named)}"
    ]


def _name(train: Split, label: int) -> str:
    return str(label) if train.class_names is None else repr(train.class_names[label])
