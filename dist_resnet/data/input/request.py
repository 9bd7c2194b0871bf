"""What a decoder is asked for: encoded pictures, and the window of each that becomes pixels."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Request:
    """A batch of N encoded pictures and what to make of them."""

    images: list[np.ndarray]
    """Encoded pictures: uint8 [num_bytes] each."""
    windows: np.ndarray
    """int [N, 4]: top, left, height, width in source pixels, within the picture."""
    flips: np.ndarray
    """bool [N]: which pictures are mirrored."""
    size: int
    """Side of the output in pixels."""
    indices: np.ndarray
    """int64 [N]: the pictures' indices in the split."""
    labels: np.ndarray
    """int64 [N]"""
    ghost: int
    """Which ghost batch of the step it is, -1 in evaluation."""
    damaged: Mapping[int, str] = field(default_factory=dict)
    """What is wrong with the pictures at these places, which `without` has replaced by a neutral one."""

    def without(self, damaged: Mapping[int, str]) -> "Request":
        """The request with the pictures at these places, given with what is wrong, replaced by a neutral one."""
        if not damaged:
            return self
        images, windows = list(self.images), self.windows.copy()
        for place in damaged:
            images[place] = _NEUTRAL
            windows[place] = (0, 0, *_NEUTRAL_SIZE)
        return replace(self, images=images, windows=windows, damaged={**self.damaged, **damaged})


def _neutral() -> np.ndarray:
    encoded = io.BytesIO()
    Image.new("RGB", _NEUTRAL_SIZE, "gray").save(encoded, "PNG")
    return np.frombuffer(encoded.getvalue(), np.uint8)


_NEUTRAL_SIZE = (8, 8)
_NEUTRAL = _neutral()
