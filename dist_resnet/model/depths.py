"""The layout of each depth: stem, kind of residual unit, units and width of every stage. Does not import torch.

ImageNet depths follow arXiv:1512.03385, Table 1 (50, 101, 152) and arXiv:1603.05027, Sec. 5 (200). CIFAR depths
are 6n+2 with basic units (20, 56, 110) and 9n+2 with bottleneck units (164, 1001), n units in each of three stages.
"""

from dataclasses import dataclass
from typing import Literal

_IMAGENET_UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
# Of the form 6n+2 too, but published with bottleneck units (Table 2).
_CIFAR_BOTTLENECK = (164, 1001)
SMALLEST_DEPTH = 8


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The shape of a network."""

    stem: Literal["cifar", "imagenet"]
    """The stem's kind: a 3x3 convolution, or a 7x7 convolution with stride 2 and a max-pooling."""
    stem_width: int
    """Output channels of the stem."""
    bottleneck: bool
    """Whether units are bottlenecks (1x1, 3x3, 1x1) or basic (3x3, 3x3)."""
    num_units: tuple[int, ...]
    """Residual units in each stage."""
    widths: tuple[int, ...]
    """Output channels of the units of each stage."""


def layout_of(depth: int) -> Layout:
    """The layout of a network with `depth` weighted layers.

    Published depths have their published layout. Otherwise 6n+2 has basic units and 9n+2 bottleneck units, with 6n+2
    first, both for CIFAR. Raises ValueError for any other depth.

    >>> layout_of(200).num_units
    (3, 24, 36, 3)
    >>> layout_of(164).bottleneck, layout_of(110).bottleneck
    (True, False)
    """
    if depth in _IMAGENET_UNITS:
        return Layout(
            stem="imagenet",
            stem_width=64,
            bottleneck=True,
            num_units=_IMAGENET_UNITS[depth],
            widths=(256, 512, 1024, 2048),
        )
    if not _is_cifar_depth(depth):
        raise ValueError(
            f"no network has {depth} layers; allowed are {', '.join(map(str, _IMAGENET_UNITS))} (ImageNet stem) and, "
            f"with the CIFAR stem, 6n+2 (basic units, such as 20, 56, 110) and 9n+2 (bottleneck units, such as 164, "
            f"1001), from {SMALLEST_DEPTH} on; nearest to {depth}: {' and '.join(map(str, _nearest(depth)))}"
        )
    if depth not in _CIFAR_BOTTLENECK and depth % 6 == 2:
        return Layout(stem="cifar", stem_width=16, bottleneck=False, num_units=(depth // 6,) * 3, widths=(16, 32, 64))
    return Layout(stem="cifar", stem_width=16, bottleneck=True, num_units=(depth // 9,) * 3, widths=(64, 128, 256))


def _is_cifar_depth(depth: int) -> bool:
    return depth >= SMALLEST_DEPTH and (depth % 6 == 2 or depth % 9 == 2)


def _nearest(depth: int) -> list[int]:
    """The nearest allowed depths, below and above."""
    below = (near for near in range(depth - 1, SMALLEST_DEPTH - 1, -1) if _is_allowed(near))
    above = (near for near in range(max(depth + 1, SMALLEST_DEPTH), depth + SMALLEST_DEPTH + 10) if _is_allowed(near))
    return [near for near in (next(below, None), next(above, None)) if near is not None]


def _is_allowed(depth: int) -> bool:
    return depth in _IMAGENET_UNITS or _is_cifar_depth(depth)
