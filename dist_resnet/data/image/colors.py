"""Mean and standard deviation of the colors of many images, exact and independent of their order.

Every image counts equally, whatever its size, because training resizes all of them to the same number of pixels. The
deviation is that of all these pixels around the common mean: for images of one size, such as CIFAR's, that of every
pixel.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

# More digits than a change of the decoder would keep.
_DIGITS = 6
_LEVELS = np.arange(256)


def color_moments(image: Image.Image) -> list[float]:
    """The mean of each channel of an RGB image, in [0, 1], and then the mean of each channel's squares: six numbers."""
    counts = np.array(image.histogram()).reshape(3, 256)
    pixels = image.width * image.height
    sums, squares = counts @ _LEVELS, counts @ _LEVELS**2
    return [*(sums / (255 * pixels)).tolist(), *(squares / (255**2 * pixels)).tolist()]


def added(moments: Iterable[Sequence[float]]) -> list[float]:
    """The sums of many images' moments, correctly rounded: six numbers."""
    return [math.fsum(column) for column in zip(*moments, strict=True)]


def mean_and_deviation(sums: Sequence[float], images: int) -> tuple[list[float], list[float]]:
    """The mean and the standard deviation of red, green and blue from the sums of so many images' moments."""
    means = [total / images for total in sums[:3]]
    variances = [max(0.0, total / images - mean**2) for total, mean in zip(sums[3:], means, strict=True)]
    return [round(mean, _DIGITS) for mean in means], [round(math.sqrt(one), _DIGITS) for one in variances]
