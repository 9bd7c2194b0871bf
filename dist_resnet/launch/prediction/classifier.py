"""A worker's part of a prediction: reads images, cuts and classifies them."""

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dist_resnet.data.datasets import normalization_of
from dist_resnet.data.input.normalize import Normalizer
from dist_resnet.data.input.prefetch import Prefetched
from dist_resnet.data.unlabeled.images import Images
from dist_resnet.data.unlabeled.read import read_batches
from dist_resnet.launch.prediction.crops import Cropper, Crops, Cut
from dist_resnet.launch.trained import Weights
from dist_resnet.recipe import Recipe
from dist_resnet.registry import predictor

_BATCHES_AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The answers for N images."""

    classes: np.ndarray
    """int32 [N, k]: the most probable classes, the most probable first."""
    probabilities: np.ndarray
    """float32 [N, k]"""
    errors: dict[int, str]
    """Why an image cannot be read, by its position; its classes mean nothing."""


class Classifier:
    """Classifies images with the network of a recipe."""

    def __init__(
        self, recipe: Recipe, weights: Weights, cut: Cut, *, top_k: int, batch: int, threads: int, device: torch.device
    ) -> None:
        """Raises RuntimeError if the weights are not those of the recipe's network."""
        self._model = predictor.rebuild(recipe, weights).to(device)
        self._normalize = Normalizer(normalization_of(recipe.data), device, channels_last=True)
        self._cropper = Cropper(cut, max_batch=batch, num_threads=threads, device=device)
        self._top_k, self._batch, self._device = top_k, batch, device

    def classify(self, images: Sequence[Images]) -> Generator[Answers]:
        """Yields the answers for the images in their order, a batch at a time."""
        with contextlib.closing(Prefetched(self._inputs(images), _BATCHES_AHEAD)) as inputs:
            for crops, values in inputs:
                yield self._answers(crops, values)

    def _inputs(self, images: Sequence[Images]) -> Generator[tuple[Crops, torch.Tensor]]:
        """The crops of each batch, and the network's input, which a GPU normalizes itself."""
        with contextlib.closing(self._cropper.crops(read_batches(images, self._batch))) as batches:
            for crops in batches:
                on_gpu = self._device.type == "cuda"
                yield crops, crops.pixels if on_gpu else self._normalize(crops.pixels)

    @torch.inference_mode()
    def _answers(self, crops: Crops, values: torch.Tensor) -> Answers:
        if self._device.type == "cuda":
            if values.is_cuda:
                values.record_stream(torch.cuda.current_stream(self._device))  # from the decoder's stream
            values = self._normalize(values.to(self._device))
        best = self._model(values).float().softmax(1).topk(self._top_k)
        return Answers(
            classes=best.indices.cpu().numpy().astype(np.int32),
            probabilities=best.values.cpu().numpy(),
            errors=crops.errors,
        )
