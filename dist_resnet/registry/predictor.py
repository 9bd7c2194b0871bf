"""Classifies pictures with a package's weights.

A copy of this file travels in every package, with the modules it imports: it needs torch, safetensors, numpy and
Pillow. Preprocessing is that of evaluation: the picture's centre, resized by PIL, normalised.
"""

import base64
import binascii
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image, UnidentifiedImageError

from dist_resnet.data.datasets import Dataset
from dist_resnet.data.normalize import Normalizer
from dist_resnet.data.reference import centre
from dist_resnet.model import build_model
from dist_resnet.recipe import Recipe

WEIGHTS, RECIPE, CLASSES, PREPROCESSING = "model.safetensors", "recipe.json", "classes.json", "preprocessing.json"
TOP_K = 5
_PICTURES_PER_FORWARD = 32


def load_model(folder: Path) -> torch.nn.Module:
    """The network of a package with its weights, on the CPU, in evaluation mode and able to train.

    Raises ValueError where recipe and weights do not belong together.
    """
    recipe = Recipe.from_dict(json.loads((folder / RECIPE).read_text()))
    with torch.device("meta"):
        model = build_model(recipe.model)
    model.to_empty(device="cpu")
    try:
        model.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS), strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"{WEIGHTS} is not of the network in {RECIPE}: {str(error).splitlines()[-1].strip()}"
        ) from error
    return model.to(memory_format=torch.channels_last).eval()


class Predictor:
    """Pictures in, classes out.

    `device` is a torch device; by default MLFLOW_DEFAULT_PREDICTION_DEVICE, else the GPU where there is one.
    """

    def __init__(self, folder: Path, device: str | None = None) -> None:
        device = device or os.environ.get("MLFLOW_DEFAULT_PREDICTION_DEVICE")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = load_model(folder).to(self.device)
        self.class_names: list[str] = json.loads((folder / CLASSES).read_text())
        rules = json.loads((folder / PREPROCESSING).read_text())
        self.crop, self.shorter_side = int(rules["crop"]), int(rules["shorter_side"])
        constants = Dataset(len(self.class_names), tuple(rules["mean"]), tuple(rules["std"]))
        self._normalize = Normalizer(constants, self.device, channels_last=True)

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """One answer for each picture: the `top_k` likeliest classes, or all there are, the likeliest first.

        `model_input` is a table or dictionary with the column `image`, a list of pictures, or uint8 [N, H, W, 3]. A
        picture is the bytes of a JPEG or PNG file, the same in base64, or uint8 [H, W, 3]. An answer is
        `{"classes": [int], "names": [str], "probabilities": [float], "error": None}`; for a picture that cannot be
        read the first three are empty and `error` says why. Raises ValueError where `top_k` is below 1 or the
        column is missing.
        """
        top_k = self._top_k(params or {})
        answers: list[dict[str, Any]] = []
        readable: list[tuple[int, np.ndarray]] = []
        for number, value in enumerate(_pictures(model_input)):
            answers.append({"classes": [], "names": [], "probabilities": [], "error": None})
            try:
                readable.append((number, centre(_open(value), self.crop, self.shorter_side)))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                answers[number]["error"] = f"not a picture that can be read: {_reason(error)}"
        for first in range(0, len(readable), _PICTURES_PER_FORWARD):
            part = readable[first : first + _PICTURES_PER_FORWARD]
            best = self.logits(np.stack([pixels for _, pixels in part])).softmax(1).topk(top_k)
            for (number, _), classes, shares in zip(part, best.indices.tolist(), best.values.tolist(), strict=True):
                names = [self.class_names[entry] for entry in classes]
                answers[number] |= {"classes": classes, "names": names, "probabilities": shares}
        return answers

    @torch.inference_mode()
    def logits(self, pixels: np.ndarray) -> torch.Tensor:
        """Centre crops, uint8 [N, crop, crop, 3], to float32 logits [N, classes] on the CPU."""
        return self.model(self._normalize(torch.from_numpy(pixels).to(self.device))).float().cpu()

    def _top_k(self, params: dict[str, Any]) -> int:
        count = len(self.class_names)
        top_k = params.get("top_k", TOP_K)
        if isinstance(top_k, bool) or not isinstance(top_k, int | np.integer) or top_k < 1:
            raise ValueError(f"top_k must be an integer from 1 on, of which {count} classes are given, got {top_k!r}")
        return min(int(top_k), count)


def _pictures(model_input: Any) -> Iterable[Any]:
    """The pictures of a request, one by one."""
    if hasattr(model_input, "columns") or isinstance(model_input, dict):
        columns = list(model_input.columns) if hasattr(model_input, "columns") else list(model_input)
        if "image" not in columns:
            raise ValueError(f"the pictures belong in a column image, got {columns}")
        model_input = model_input["image"]
        return model_input if _is_many(model_input) else [model_input]
    if isinstance(model_input, bytes | str):
        return [model_input]
    if isinstance(model_input, np.ndarray) and model_input.ndim == 3:
        return [model_input]
    rows = list(model_input)
    return [row["image"] if isinstance(row, dict) and "image" in row else row for row in rows]


def _is_many(column: Any) -> bool:
    return not isinstance(column, bytes | str) and not (isinstance(column, np.ndarray) and column.ndim == 3)


def _open(value: Any) -> Image.Image:
    """A picture as RGB. Raises ValueError or OSError where it is none."""
    if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "OSU":
        value = value.item()
    if isinstance(value, str):
        try:
            value = base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise ValueError(f"text must be base64 ({error})") from error
    if isinstance(value, bytes | bytearray | memoryview):
        with Image.open(io.BytesIO(value)) as picture:
            return picture.convert("RGB")
    try:
        pixels = np.asarray(value)
    except ValueError as error:
        raise ValueError("the rows of an array must be of one length") from error
    if (
        pixels.dtype != np.uint8
        and pixels.dtype.kind in "iu"
        and pixels.size
        and 0 <= pixels.min() <= pixels.max() < 256
    ):
        pixels = pixels.astype(np.uint8)  # JSON has no uint8.
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"an array must be uint8 [H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _reason(error: BaseException) -> str:
    # Pillow would name the buffer that it was given.
    return "of no known format" if isinstance(error, UnidentifiedImageError) else str(error)
