"""The network's input from uint8 pixels: color jitter, lighting, mean and deviation, in batches on the device."""

import functools

import numpy as np
import torch

from dist_resnet.data.datasets import Normalization
from dist_resnet.data.input.augment import ColorFactors

# Weights of luminance, and principal components of ImageNet's colors: facebook/fb.resnet.torch.
_GRAY = (0.299, 0.587, 0.114)
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


def on_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array on a device; the host does not wait for a GPU, because the copy is from pinned memory."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class Normalizer:
    """Normalizes uint8 [N, H, W, 3] to float32 [N, 3, H, W] by a mean and a deviation."""

    def __init__(self, normalization: Normalization, device: torch.device, *, channels_last: bool) -> None:
        """`device`: where the pixels are."""
        self._mean = torch.tensor(normalization.mean, device=device)
        self._std = torch.tensor(normalization.std, device=device)
        self._scale, self._shift = 1 / (255 * self._std), self._mean / self._std
        self._channels_last = channels_last

    def __call__(self, pixels: torch.Tensor, factors: ColorFactors | None = None) -> torch.Tensor:
        """The input of the network, in new memory on the pixels' device; `factors` jitter the colors first."""
        if factors is not None:
            values = (jitter(pixels / 255, factors) - self._mean) / self._std
        elif pixels.device.type == "cpu":
            values = _scaled_on_cpu(pixels, self._scale, self._shift)
        else:
            values = pixels * self._scale - self._shift
        values = values.permute(0, 3, 1, 2)
        return values if self._channels_last else values.contiguous()


def to_pixels(images: torch.Tensor, normalization: Normalization) -> np.ndarray:
    """Undoes a normalization, for display: float32 [N, 3, H, W] to uint8 [N, H, W, 3] on the CPU."""
    mean, std = (torch.tensor(values, device=images.device) for values in (normalization.mean, normalization.std))
    values = images.permute(0, 2, 3, 1) * std + mean
    return (values * 255).round().clamp(0, 255).to("cpu", torch.uint8).numpy()


def _scaled_on_cpu(pixels: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """pixels * scale - shift with NumPy, image by image in cache and without torch's threads.

    torch would start a second pool of threads for this thread, which is ten times slower on busy cores
    (benchmarks/loader.py).
    """
    num, height, width, _ = pixels.shape
    # Rows of width * 3 numbers make the innermost loop long.
    scales, shifts = (row.repeat(width).numpy() for row in (scale, shift))
    values = torch.empty((num, height, width, 3))
    rows = (num, height, width * 3)
    for image, target in zip(pixels.numpy().reshape(rows), values.numpy().reshape(rows), strict=True):
        target[...] = image
        target *= scales
        target -= shifts
    return values


def jitter(values: torch.Tensor, factors: ColorFactors) -> torch.Tensor:
    """Applies brightness, contrast, saturation, in each image's own order, then lighting.

    `values`: float32 [N, H, W, 3] in [0, 1]; the result may leave that range, as in facebook/fb.resnet.torch.
    """
    if factors.order is not None and factors.strengths is not None:
        values = _blend(values, factors.order, factors.strengths)
    _, eigenvalues, eigenvectors = _constants(values.device)
    components = on_device(factors.lighting, values.device) * eigenvalues
    return values + (components @ eigenvectors.T)[:, None, None, :]


@functools.cache
def _constants(device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights of luminance [3], eigenvalues [3] and eigenvectors [3, 3], copied to a device once."""
    gray, values, vectors = (torch.tensor(each, device=device) for each in (_GRAY, _EIGENVALUES, _EIGENVECTORS))
    return gray, values, vectors


def _blend(values: torch.Tensor, orders: np.ndarray, factors: np.ndarray) -> torch.Tensor:
    """Applies brightness, contrast and saturation by `factors`, float32 [N, 3], in `orders`, int64 [N, 3]."""
    order = on_device(orders, values.device)
    strengths = on_device(factors, values.device).gather(1, order)
    weights, *_ = _constants(values.device)
    for turn in range(3):
        kind, strength = (column[:, turn, None, None, None] for column in (order, strengths))
        gray = (values * weights).sum(dim=3, keepdim=True)
        # Each kind blends with another image: black, its mean gray, its grays.
        other = torch.where(kind == 1, gray.mean(dim=(1, 2), keepdim=True), gray * (kind == 2))
        values = values * strength + other * (1 - strength)
    return values
