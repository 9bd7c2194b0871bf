"""The pipeline in PIL: slow, plain, and the oracle that the decoders' pixels are compared with."""

import numpy as np
from PIL import Image

from dist_resnet.data.image.pixels import decode
from dist_resnet.data.input.augment import evaluation_windows


def decode_window(encoded: np.ndarray | bytes, window: np.ndarray, size: int, *, flip: bool = False) -> np.ndarray:
    """Decodes an image, cuts a window (top, left, height, width) and resizes it: uint8 [size, size, 3].

    Stored pixels count: EXIF orientation is ignored, as torchvision's ImageFolder does. Raises DamagedError.
    """
    top, left, height, width = (int(number) for number in window)
    pixels = decode(bytes(encoded)).crop((left, top, left + width, top + height))
    pixels = np.asarray(pixels.resize((size, size), Image.Resampling.BILINEAR))
    return pixels[:, ::-1] if flip else pixels


def decode_center(encoded: np.ndarray | bytes, crop: int, shorter_side: int) -> np.ndarray:
    """The center crop of evaluation: uint8 [crop, crop, 3]."""
    image = decode(bytes(encoded))
    (window,) = evaluation_windows(np.array([image.height]), np.array([image.width]), crop, shorter_side)
    return decode_window(encoded, window, crop)
