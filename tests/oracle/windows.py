"""Crop windows one image at a time in plain integers and `math`: the oracle of `dist_resnet.data.input.augment`.

Written from torchvision's `RandomResizedCrop.get_params`, Table 5's description of scale augmentation, and the
published SplitMix64 (Steele et al., 2014).
"""

import math

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
CROP, FLIP = 0, 1


def split_mix(word: int) -> int:
    """The finaliser of SplitMix64."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


def uniform(seed: int, epoch: int, index: int, purpose: int, draw: int) -> float:
    """The draw's number on [0, 1)."""
    key = seed & MASK
    for word in (epoch, purpose, index):
        key = split_mix((key + (word + 1) * GOLDEN) & MASK)
    return (split_mix((key + (draw + 1) * GOLDEN) & MASK) >> 11) / 2**53


def inception_window(
    seed: int, epoch: int, index: int, height: int, width: int, area: tuple[float, float], aspect: tuple[float, float]
) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop.get_params with the draws above."""

    def draw(kind: int, attempt: int) -> float:
        return uniform(seed, epoch, index, CROP, 10 * kind + attempt)

    for attempt in range(10):
        target = height * width * (area[0] + draw(0, attempt) * (area[1] - area[0]))
        low, high = math.log(aspect[0]), math.log(aspect[1])
        ratio = math.exp(low + draw(1, attempt) * (high - low))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(draw(2, attempt) * (height - h + 1)), int(draw(3, attempt) * (width - w + 1)), h, w
    w, h = width, height
    if width / height < aspect[0]:
        h = round(width / aspect[0])
    elif width / height > aspect[1]:
        w = round(height * aspect[1])
    return (height - h) // 2, (width - w) // 2, h, w


def scale_window(
    seed: int, epoch: int, index: int, height: int, width: int, size: int, shorter_side: tuple[int, int]
) -> tuple[int, int, int, int]:
    """A size x size crop of the image resized to a drawn shorter side, in source pixels."""
    low, high = shorter_side
    target = low + int(uniform(seed, epoch, index, CROP, 0) * (high - low + 1))
    side = max(1, math.floor(size * min(height, width) / target + 0.5))
    top = int(uniform(seed, epoch, index, CROP, 1) * (height - side + 1))
    return top, int(uniform(seed, epoch, index, CROP, 2) * (width - side + 1)), side, side


def pad_crop_flip(image, top: int, left: int, size: int, padding: int, flip: bool):
    """CIFAR's augmentation of a normalized image, float [3, H, W], by NumPy: pad with zeros, slice, mirror."""
    import numpy as np

    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    cut = padded[:, top : top + size, left : left + size]
    return cut[:, :, ::-1] if flip else cut
