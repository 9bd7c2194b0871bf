"""Classifies images with a package's weights.

A copy of this file and the modules it imports is in every package; it needs torch, safetensors, numpy and Pillow.
Preprocessing is as in evaluation (center crop, resized by PIL, normalized), except that photographs are first rotated
upright.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from dist_resnet.data.datasets import Normalization
from dist_resnet.data.input.augment import evaluation_windows
from dist_resnet.data.input.normalize import Normalizer
from dist_resnet.model import build_model
from dist_resnet.recipe import Recipe
from dist_resnet.registry.inputs import images_of, open_image

WEIGHTS, RECIPE, CLASSES, PREPROCESSING = "model.safetensors", "recipe.json", "classes.json", "preprocessing.json"
TOP_K, EXIF_ROTATION = 5, True
_IMAGES_PER_FORWARD = 32


def load_model(folder: Path) -> torch.nn.Module:
    """The network of a package with its weights, on the CPU, in evaluation mode and able to train.

    Raises ValueError if recipe and weights do not match.
    """
    recipe = Recipe.from_dict(json.loads((folder / RECIPE).read_text()))
    try:
        return rebuild(recipe, safetensors.torch.load_file(folder / WEIGHTS))
    except RuntimeError as error:
        raise ValueError(
            f"{WEIGHTS} does not match the network in {RECIPE}: {str(error).splitlines()[-1].strip()}"
        ) from error


def rebuild(recipe: Recipe, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """The network of a recipe with these weights, as `load_model` gives it. Raises RuntimeError if they differ."""
    with torch.device("meta"):
        model = build_model(recipe.model)
    model.to_empty(device="cpu")
    model.load_state_dict(weights, strict=True)
    return model.to(memory_format=torch.channels_last).eval()


class Predictor:
    """Classifies images with a package's network.

    `device` is a torch device; it defaults to MLFLOW_DEFAULT_PREDICTION_DEVICE, then to the GPU if there is one.
    """

    def __init__(self, folder: Path, device: str | None = None) -> None:
        device = device or os.environ.get("MLFLOW_DEFAULT_PREDICTION_DEVICE")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = load_model(folder).to(self.device)
        self.class_names: list[str] = json.loads((folder / CLASSES).read_text())
        rules = json.loads((folder / PREPROCESSING).read_text())
        self.crop, self.shorter_side = int(rules["crop"]), int(rules["shorter_side"])
        normalization = Normalization(tuple(rules["mean"]), tuple(rules["std"]))
        self._normalize = Normalizer(normalization, self.device, channels_last=True)

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """One answer per image: the `top_k` most probable classes (at most all), the most probable first.

        `model_input` is a table or dictionary with the column `image`, a list of images, or uint8 [N, H, W, 3]. An
        image is the bytes of an image file, the same in base64, or uint8 [H, W, 3]. Files are rotated according to
        their EXIF data unless `exif_rotation` is False. An answer is
        `{"classes": [int], "names": [str], "probabilities": [float], "error": None}`; for an image that cannot be
        read, the first three are empty and `error` says why. Raises ValueError if `top_k` is below 1, `exif_rotation`
        is not a bool, or the column is missing.
        """
        top_k, upright = self._top_k(params or {}), _exif_rotation(params or {})
        answers: list[dict[str, Any]] = []
        readable: list[tuple[int, np.ndarray]] = []
        for number, value in enumerate(images_of(model_input)):
            answers.append({"classes": [], "names": [], "probabilities": [], "error": None})
            try:
                readable.append((number, center(open_image(value, upright=upright), self.crop, self.shorter_side)))
            except (OSError, ValueError) as error:
                answers[number]["error"] = f"the image cannot be read: {error}"
        for first in range(0, len(readable), _IMAGES_PER_FORWARD):
            part = readable[first : first + _IMAGES_PER_FORWARD]
            best = self.logits(np.stack([pixels for _, pixels in part])).softmax(1).topk(top_k)
            for (number, _), classes, shares in zip(part, best.indices.tolist(), best.values.tolist(), strict=True):
                names = [self.class_names[entry] for entry in classes]
                answers[number] |= {"classes": classes, "names": names, "probabilities": shares}
        return answers

    @torch.inference_mode()
    def logits(self, pixels: np.ndarray) -> torch.Tensor:
        """Center crops, uint8 [N, crop, crop, 3], to float32 logits [N, classes] on the CPU."""
        return self.model(self._normalize(torch.from_numpy(pixels).to(self.device))).float().cpu()

    def _top_k(self, params: dict[str, Any]) -> int:
        count = len(self.class_names)
        top_k = params.get("top_k", TOP_K)
        if isinstance(top_k, bool) or not isinstance(top_k, int | np.integer) or top_k < 1:
            raise ValueError(f"top_k must be an integer of at least 1 (the model has {count} classes), got {top_k!r}")
        return min(int(top_k), count)


def center(image: Image.Image, crop: int, shorter_side: int) -> np.ndarray:
    """The center crop of an RGB image: uint8 [crop, crop, 3]."""
    (window,) = evaluation_windows(np.array([image.height]), np.array([image.width]), crop, shorter_side)
    top, left, height, width = (int(number) for number in window)
    pixels = image.crop((left, top, left + width, top + height))
    return np.asarray(pixels.resize((crop, crop), Image.Resampling.BILINEAR))


def _exif_rotation(params: dict[str, Any]) -> bool:
    chosen = params.get("exif_rotation", EXIF_ROTATION)
    if not isinstance(chosen, bool | np.bool_):
        raise ValueError(f"exif_rotation must be true or false, got {chosen!r}")
    return bool(chosen)
