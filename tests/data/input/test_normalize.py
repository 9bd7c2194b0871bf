"""Normalization and color; oracle: torchvision's Normalize, and fb.resnet.torch's rules one image at a time."""

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import normalize

from dist_resnet.data.datasets import DATASETS
from dist_resnet.data.input.augment import Augmentation, ColorFactors
from dist_resnet.data.input.normalize import Normalizer, jitter, to_pixels
from dist_resnet.recipe import Augment

PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 9, 11, 3), dtype=np.uint8))
CPU = torch.device("cpu")


@pytest.mark.parametrize("dataset", sorted(DATASETS))
@pytest.mark.parametrize("channels_last", [True, False])
def test_normalization_equals_that_of_torchvision(dataset: str, channels_last: bool) -> None:
    ours = Normalizer(DATASETS[dataset].normalization, CPU, channels_last=channels_last)(PIXELS)
    theirs = normalize(
        PIXELS.permute(0, 3, 1, 2) / 255,
        list(DATASETS[dataset].normalization.mean),
        list(DATASETS[dataset].normalization.std),
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (to_pixels(ours, DATASETS[dataset].normalization) == PIXELS.numpy()).all()
    memory = torch.channels_last if channels_last else torch.contiguous_format
    assert ours.is_contiguous(memory_format=memory)


def one_image(values: np.ndarray, order: np.ndarray, strengths: np.ndarray, lighting: np.ndarray) -> np.ndarray:
    """datasets/transforms.lua of facebook/fb.resnet.torch: Grayscale, Brightness, Contrast, Saturation, Lighting."""
    for kind in order:
        gray = (values * [0.299, 0.587, 0.114]).sum(axis=2, keepdims=True) * np.ones(3)
        other = [np.zeros_like(values), np.full_like(values, gray.mean()), gray][kind]
        values = values * strengths[kind] + other * (1 - strengths[kind])
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    shift = (vectors * lighting * [0.2175, 0.0188, 0.0045]).sum(axis=1)
    return values + shift


def test_colors_change_as_in_fb_resnet_torch() -> None:
    factors = Augmentation(Augment(color="full"), 0, 0).color_factors(np.arange(6))
    assert factors is not None
    ours = jitter(PIXELS / 255, factors).numpy()
    for image in range(6):
        theirs = one_image(
            PIXELS[image].numpy() / 255, factors.order[image], factors.strengths[image], factors.lighting[image]
        )
        np.testing.assert_allclose(ours[image], theirs, atol=1e-5)


def test_lighting_alone_shifts_every_pixel_of_an_image_alike_as_in_fb_resnet_torch() -> None:
    factors = Augmentation(Augment(color="lighting"), 0, 0).color_factors(np.arange(6))
    assert factors is not None
    ours = jitter(PIXELS / 255, factors).numpy()
    for image in range(6):
        theirs = one_image(PIXELS[image].numpy() / 255, np.array([], int), np.array([]), factors.lighting[image])
        np.testing.assert_allclose(ours[image], theirs, atol=1e-6)


def test_neutral_factors_leave_the_image_as_it_is() -> None:
    ones, zeros = np.ones((6, 3), np.float32), np.zeros((6, 3), np.float32)
    factors = ColorFactors(np.tile(np.arange(3), (6, 1)), ones, zeros)
    torch.testing.assert_close(jitter(PIXELS / 255, factors), PIXELS / 255)
