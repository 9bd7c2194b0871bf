"""Crop windows, flips and color factors as pure functions of (seed, epoch, image index).

Each draw hashes (seed, epoch, index, purpose, number of the draw) with the finalizer of SplitMix64. There is no
generator state: any image's draws can be made alone, in any order, on any machine.
"""

from dataclasses import dataclass

import numpy as np

from dist_resnet.recipe import Augment

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_CROP, _FLIP, _COLOR, _LIGHTING = range(4)
_TRIES = 10
_JITTER = 0.4
_LIGHTING_DEVIATION = 0.1


@dataclass(frozen=True)
class ColorFactors:
    """The color draws of N images, as in facebook/fb.resnet.torch."""

    order: np.ndarray | None
    """int64 [N, 3]: the order in which 0 brightness, 1 contrast, 2 saturation are applied; None applies none."""
    strengths: np.ndarray | None
    """float32 [N, 3] in [0.6, 1.4]: factors of brightness, contrast, saturation; None with `order`."""
    lighting: np.ndarray
    """float32 [N, 3]: normal with deviation 0.1, one factor per principal component of color."""


@dataclass(frozen=True)
class Augmentation:
    """The random draws for the images of an epoch; `indices` are those of N images in their split, int64 [N]."""

    augment: Augment
    seed: int
    epoch: int

    def windows(self, indices: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """Draws a window (top, left, height, width) in source pixels for each image: int64 [N, 4].

        `heights`, `widths`: int64 [N]. scale and inception windows are within the image and resized to size x size. A
        pad window is size x size within the padded image: its top and left count from the padding's corner. Raises
        ValueError for an image that is too small for a pad window.
        """
        draws = self._uniforms(indices, _CROP, 4 * _TRIES if self.augment.kind == "inception" else 3)
        heights, widths = np.asarray(heights, np.int64), np.asarray(widths, np.int64)
        windows = {"scale": _scale_windows, "inception": _inception_windows, "pad": _pad_windows}[self.augment.kind]
        return windows(self.augment, draws, heights, widths)

    def flips(self, indices: np.ndarray) -> np.ndarray:
        """Draws whether each image is mirrored: bool [N]."""
        return (self._uniforms(indices, _FLIP, 1)[:, 0] < 0.5) & self.augment.flip

    def color_factors(self, indices: np.ndarray) -> ColorFactors | None:
        """Draws the color factors of each image that `augment.color` needs; None if it needs none."""
        if self.augment.color == "none":
            return None
        draws = self._uniforms(indices, _COLOR, 6)
        strengths = 1 + _JITTER * (2 * draws[:, 3:] - 1)
        first, second = np.split(self._uniforms(indices, _LIGHTING, 6), 2, axis=1)
        normal = np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second)  # Box-Muller
        lighting = (_LIGHTING_DEVIATION * normal).astype(np.float32)
        if self.augment.color == "lighting":
            return ColorFactors(None, None, lighting)
        order = np.argsort(draws[:, :3], axis=1, kind="stable")
        return ColorFactors(order, strengths.astype(np.float32), lighting)

    def _uniforms(self, indices: np.ndarray, purpose: int, count: int) -> np.ndarray:
        """Uniform numbers on [0, 1) with 53 bits: float64 [N, count]."""
        key = np.array([self.seed & _MASK], np.uint64)
        for word in (self.epoch, purpose):
            key = _mix(key + np.array([(word + 1) * _GOLDEN & _MASK], np.uint64))
        images = _mix(key + (np.asarray(indices).astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN))
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
        return (_mix(images[:, None] + steps) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def evaluation_windows(heights: np.ndarray, widths: np.ndarray, crop: int, shorter_side: int) -> np.ndarray:
    """Center windows (top, left, height, width) in source pixels: int64 [N, 4].

    A window is the source of the center crop x crop pixels of the image resized to `shorter_side`, rounded to whole
    source pixels. Resized to crop x crop, it equals that crop except for the rounding and the filter at its border.
    """
    heights, widths = np.asarray(heights, np.int64), np.asarray(widths, np.int64)
    side = _scaled_side(np.minimum(heights, widths), crop, np.full(len(heights), shorter_side))
    return np.stack([(heights - side) // 2, (widths - side) // 2, side, side], axis=1)


def _scale_windows(augment: Augment, draws: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """A crop of the image whose shorter side is resized to s ~ U{shorter_side}, Table 5 "scale".

    Departs from the paper: a square of size * short / s pixels, rounded, is cropped from the source image and then
    resized; the paper crops the resized image. The region is the same up to half a source pixel, and the filter sees
    no pixel outside of it.
    """
    low, high = augment.shorter_side
    target = low + np.floor(draws[:, 0] * (high - low + 1)).astype(np.int64)
    side = _scaled_side(np.minimum(heights, widths), augment.size, target)
    return _placed(np.stack([side, side], axis=1), np.stack([heights, widths], axis=1), draws[:, 1:3])


def _inception_windows(augment: Augment, draws: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """torchvision's RandomResizedCrop: the first of ten tries that fits, otherwise the largest center window."""
    tries = draws.reshape(-1, 4, _TRIES)
    area = (heights * widths)[:, None] * _between(tries[:, 0], *augment.area)
    low, high = np.log(augment.aspect)
    aspect = np.exp(_between(tries[:, 1], low, high))
    tried_widths = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    tried_heights = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (tried_widths > 0) & (tried_widths <= widths[:, None])
    fits &= (tried_heights > 0) & (tried_heights <= heights[:, None])
    pick = (np.arange(len(draws)), np.argmax(fits, axis=1))
    sides = np.stack([tried_heights[pick], tried_widths[pick]], axis=1)
    positions = np.stack([tries[:, 2][pick], tries[:, 3][pick]], axis=1)
    drawn = _placed(sides, np.stack([heights, widths], axis=1), positions)
    return np.where(fits[pick][:, None], drawn, _center_windows(augment, heights, widths))


def _center_windows(augment: Augment, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """The largest center window whose aspect is within the range."""
    least, greatest = augment.aspect
    height = np.where(widths < heights * least, np.rint(widths / least).astype(np.int64), heights)
    width = np.where(widths > heights * greatest, np.rint(heights * greatest).astype(np.int64), widths)
    height, width = np.clip(height, 1, heights), np.clip(width, 1, widths)
    return np.stack([(heights - height) // 2, (widths - width) // 2, height, width], axis=1)


def _pad_windows(augment: Augment, draws: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    heights, widths = heights + 2 * augment.padding, widths + 2 * augment.padding
    small = np.flatnonzero(np.minimum(heights, widths) < augment.size)
    if len(small):
        raise ValueError(
            f"an image of {widths[small[0]] - 2 * augment.padding} x {heights[small[0]] - 2 * augment.padding} with "
            f"{augment.padding} pixels of padding is smaller than a crop of {augment.size}; lower --augment.size"
        )
    return _placed(np.full((len(draws), 2), augment.size), np.stack([heights, widths], axis=1), draws[:, :2])


def _placed(sides: np.ndarray, extents: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Windows of these sides in images of these extents, at positions in [0, 1); each array is [N, 2], down, across."""
    corners = np.floor(positions * (extents - sides + 1)).astype(np.int64)
    return np.concatenate([corners, sides], axis=1)


def _scaled_side(short: np.ndarray, size: int, shorter_side: np.ndarray) -> np.ndarray:
    """size * short / shorter_side, rounded half up in integers, at least 1."""
    return np.maximum((2 * size * short + shorter_side) // (2 * shorter_side), 1)


def _between(uniform: np.ndarray, low: float, high: float) -> np.ndarray:
    return low + uniform * (high - low)


def _mix(words: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 on uint64 arrays."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
