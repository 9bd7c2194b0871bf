"""The pipeline in PIL: slow, plain, and the oracle that DALI's pixels are compared with."""

import io

import numpy as np
from PIL import Image

from dist_resnet.data.augment import evaluation_windows


def decode_window(encoded: np.ndarray | bytes, window: np.ndarray, size: int, *, flip: bool = False) -> np.ndarray:
    """Decodes a picture, cuts a window (top, left, height, width) and resizes it: uint8 [size, size, 3].

    Stored pixels count: EXIF orientation is ignored, as torchvision's ImageFolder does.
    """
    top, left, height, width = (int(number) for number in window)
    with Image.open(io.BytesIO(bytes(encoded))) as picture:
        pixels = picture.convert("RGB").crop((left, top, left + width, top + height))
    pixels = pixels.resize((size, size), Image.Resampling.BILINEAR)
    if flip:
        pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(pixels)


def decode_centre(encoded: np.ndarray | bytes, crop: int, shorter_side: int) -> np.ndarray:
    """The centre crop of evaluation: uint8 [crop, crop, 3]."""
    with Image.open(io.BytesIO(bytes(encoded))) as picture:
        height, width = picture.height, picture.width
    (window,) = evaluation_windows(np.array([height]), np.array([width]), crop, shorter_side)
    return decode_window(encoded, window, crop)
