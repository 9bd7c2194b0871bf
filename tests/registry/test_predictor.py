"""Prediction. Oracle: the network's logits for the same images from the evaluation path, DALI's."""

import base64
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from oracle.images import jpeg, read_row_group, real, smooth
from oracle.pixels import decode_center
from PIL import Image
from registry.conftest import WORKER, trained

from dist_resnet.data.input.decoders import InputOptions
from dist_resnet.data.loader import EvaluationImages
from dist_resnet.recipe import Augment, Data, Evaluation, Execution, Model, Recipe
from dist_resnet.registry import package
from dist_resnet.registry.predictor import Predictor

RECIPE = Recipe(
    model=Model(depth=50, num_classes=4),
    data=Data(train="t", validation="v", dataset="imagenet"),
    augment=Augment(kind="scale", size=64, shorter_side=(64, 80)),
    evaluation=Evaluation(crops=(64,), shorter_sides=(72,)),
    global_batch=32,
    ghost_batch=8,
)
CLASSES = ["cat", "dog", "emu", "fox"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    data = tmp_path_factory.mktemp("data")
    state = trained(RECIPE, Execution(precision="fp32"))
    package.write_data(data, RECIPE, state.weights(), CLASSES)
    return Predictor(data, "cpu")


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


PIXELS = smooth(90, 120, 0)


@pytest.mark.parametrize(
    "request_of",
    [
        lambda: pd.DataFrame({"image": [_png(PIXELS)]}),
        lambda: {"image": [_png(PIXELS)]},
        lambda: {"image": PIXELS[None]},
        lambda: {"image": PIXELS},
        lambda: [_png(PIXELS)],
        lambda: _png(PIXELS),
        lambda: PIXELS[None],
        lambda: PIXELS,
        lambda: base64.b64encode(_png(PIXELS)).decode(),
        lambda: pd.DataFrame({"image": [base64.b64encode(_png(PIXELS)).decode()]}),
        lambda: {"image": np.array([base64.b64encode(_png(PIXELS)).decode()])},
        lambda: [{"image": _png(PIXELS)}],
        lambda: json.loads(json.dumps([PIXELS.tolist()])),
    ],
)
def test_an_image_has_the_same_answer_in_every_encoding(request_of, served: Predictor):
    (expected,) = served.predict([_png(PIXELS)])
    assert expected["error"] is None
    assert served.predict(request_of()) == [expected]


def test_answers_are_the_most_probable_classes_with_their_names(served: Predictor):
    (answer,) = served.predict(PIXELS, {"top_k": 3})
    (everything,) = served.predict(PIXELS, {"top_k": 99})
    assert answer["classes"] == everything["classes"][:3]
    assert answer["names"] == [CLASSES[number] for number in answer["classes"]]
    assert sorted(everything["probabilities"], reverse=True) == everything["probabilities"]
    assert sum(everything["probabilities"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"rubbish", "of an unknown format"),
        (jpeg(smooth(90, 90, 1))[:400], "runcated"),
        ("not base64!", "text must be base64"),
        (np.zeros((5, 5), np.uint8), "an array must be uint8 \\[H, W, 3\\], got uint8 \\[5, 5\\]"),
        (np.zeros((5, 5, 3), np.float32), "got float32"),
        (np.full((5, 5, 3), 300), "got int64"),
        (7, "an array must be"),
        ([[1, 2], [3]], "the same length"),
        (None, "an array must be"),
    ],
)
def test_an_image_that_cannot_be_read_has_an_error_and_the_others_their_answers(value, reason, served: Predictor):
    good, bad, other = served.predict([_png(PIXELS), value, _png(PIXELS[:, ::-1])])
    assert bad["classes"] == []
    with pytest.raises(ValueError, match=reason):
        raise ValueError(bad["error"])
    # Convolutions may sum in another order for one image than for several.
    for answer, pixels in ((good, PIXELS), (other, PIXELS[:, ::-1])):
        (alone,) = served.predict([_png(pixels)])
        assert answer["classes"] == alone["classes"]
        assert answer["probabilities"] == pytest.approx(alone["probabilities"], rel=1e-4)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_gray_and_cmyk_images_are_read(mode: str, served: Predictor):
    (answer,) = served.predict([jpeg(PIXELS, mode=mode)])
    assert answer["error"] is None


@pytest.mark.parametrize("top_k", [0, -1, "3", 1.5, True])
def test_an_impossible_top_k_is_refused(top_k, served: Predictor):
    with pytest.raises(ValueError, match="top_k must be an integer of at least 1"):
        served.predict(PIXELS, {"top_k": top_k})


def test_a_table_without_the_column_is_refused(served: Predictor):
    with pytest.raises(ValueError, match=r"column image, got \['photo'\]"):
        served.predict({"photo": [b""]})


def test_logits_are_those_of_the_evaluation_path(tmp_path: Path):
    split = real("imagenet-sample/train-*.parquet")
    recipe = dataclasses.replace(RECIPE, model=Model(depth=50, num_classes=1000))
    execution = Execution(precision="fp32")
    package.write_data(tmp_path, recipe, trained(recipe, execution).weights(), [str(each) for each in range(1000)])
    served = Predictor(tmp_path, "cpu")
    images = EvaluationImages(recipe, split, WORKER, InputOptions.of(execution))
    try:
        batch = next(iter(images.center_crops(64, 72)))
    finally:
        images.close()
    group = read_row_group(split, 0)
    found = np.stack([decode_center(group.images[place], 64, 72) for place in range(16)])
    with torch.no_grad():
        expected = served.model(batch.images[:16])
    # DALI and PIL agree to one or two levels of 255.
    ours = served.logits(found)
    assert (ours - expected).abs().max() < 0.05 * expected.abs().max()
    assert (ours.argmax(1) == expected.argmax(1)).float().mean() > 0.9
