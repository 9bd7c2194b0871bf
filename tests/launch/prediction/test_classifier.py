"""A worker's answers. Oracle: the served model's `Predictor`, PIL's crop and the network called by hand; for DALI, the
evaluation's path, whose pixels differ from PIL's by rounding."""

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from oracle.images import jpeg, read_row_group, real, smooth
from oracle.pixels import decode_center
from PIL import Image
from registry.conftest import WORKER, trained

from dist_resnet.data.input.decoders import InputOptions
from dist_resnet.data.loader import EvaluationImages
from dist_resnet.data.unlabeled.find import find_images
from dist_resnet.launch.prediction.classifier import Answers, Classifier
from dist_resnet.launch.prediction.crops import Cropper, Cut
from dist_resnet.recipe import Augment, Data, Decode, Evaluation, Execution, Model, Recipe
from dist_resnet.registry import package
from dist_resnet.registry.predictor import Predictor

RECIPE = Recipe(
    model=Model(depth=50, num_classes=7),
    data=Data(train="t", validation="v", dataset="imagenet"),
    augment=Augment(kind="scale", size=64, shorter_side=(64, 80)),
    evaluation=Evaluation(crops=(64, 96), shorter_sides=(72, 96)),
    global_batch=32,
    ghost_batch=8,
)
CPU = torch.device("cpu")
# Between DALI and Pillow: probabilities of the network below on real photographs differ by 2e-4 at most.
BETWEEN_DECODERS = 1e-3


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return trained(RECIPE, Execution(precision="fp32")).weights()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, torch.Tensor]) -> Predictor:
    data = tmp_path_factory.mktemp("data")
    package.write_data(data, RECIPE, weights, [f"class {number}" for number in range(7)])
    return Predictor(data, "cpu")


def _cut(decode: Decode, *, upright: bool = True) -> Cut:
    return Cut(crop=64, shorter_side=72, upright=upright, decode=decode)


def _classify(
    folder: Path,
    weights: dict[str, torch.Tensor],
    cut: Cut,
    *,
    top_k: int = 3,
    batch: int = 4,
    device: torch.device = CPU,
) -> Answers:
    classifier = Classifier(RECIPE, weights, cut, top_k=top_k, batch=batch, threads=2, device=device)
    parts = list(classifier.classify(find_images([str(folder)])[0]))
    assert all(len(part.classes) == batch for part in parts[:-1])
    return Answers(
        classes=np.concatenate([part.classes for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts]),
        errors={number * batch + place: why for number, part in enumerate(parts) for place, why in part.errors.items()},
    )


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _turned(orientation: int, kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _encoded(Image.fromarray(smooth(90, 120, orientation)), kind, exif=exif)


def _sixteen_bits() -> Image.Image:
    return Image.fromarray((smooth(80, 100, 3)[..., 0].astype(np.uint16) << 8) + 77)


RGB = Image.fromarray(smooth(100, 80, 1))
CLEAR = Image.merge("RGBA", [*RGB.split(), Image.fromarray(smooth(100, 80, 2)[..., 0])])
ODD: dict[str, Callable[[], bytes]] = {
    "plain": lambda: _encoded(RGB, "JPEG"),
    "gray": lambda: _encoded(RGB.convert("L"), "JPEG"),
    "cmyk": lambda: _encoded(RGB.convert("CMYK"), "JPEG"),
    "palette": lambda: _encoded(RGB.convert("P"), "PNG"),
    "bits": lambda: _encoded(RGB.convert("1"), "PNG"),
    "16-bit": lambda: _encoded(_sixteen_bits(), "PNG"),
    "clear": lambda: _encoded(CLEAR, "PNG"),
    "gif": lambda: _encoded(RGB, "GIF"),
    "tiff": lambda: _encoded(RGB, "TIFF"),
    "bmp": lambda: _encoded(RGB, "BMP"),
    "webp": lambda: _encoded(RGB, "WEBP", lossless=True),
    "small": lambda: _encoded(RGB.resize((9, 7)), "PNG"),
    **{f"turned {number}": lambda number=number: _turned(number) for number in range(1, 9)},
    "turned png": lambda: _turned(6, "PNG"),
    "turned webp": lambda: _turned(6, "WEBP"),
}
DAMAGED: dict[str, Callable[[], bytes]] = {
    "cut": lambda: jpeg(smooth(90, 120, 4))[:-400],
    "empty": lambda: b"",
    "text": lambda: b"no image: \0",
    "torn png": lambda: _encoded(RGB, "PNG")[:900],
    "huge": lambda: _encoded(Image.new("1", (20_000, 6_000)), "PNG"),
}


@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("decode", get_args(Decode)[2:])
def test_odd_and_damaged_images_get_the_served_models_answers(
    decode: Decode, upright: bool, weights: dict[str, torch.Tensor], served: Predictor, tmp_path: Path
):
    images = {name: make() for name, make in sorted((ODD | DAMAGED).items())}
    for name, image in images.items():
        (tmp_path / f"{name}.jpg").write_bytes(image)
    found = _classify(tmp_path, weights, _cut(decode, upright=upright))
    expected = served.predict(list(images.values()), {"top_k": 3, "exif_rotation": upright})
    assert {number: one["error"] for number, one in enumerate(expected) if one["error"]} == found.errors
    assert len(found.errors) == len(DAMAGED)
    for number, (name, one) in enumerate(zip(images, expected, strict=True)):
        if one["error"] is None:
            near = pytest.approx(one["probabilities"], abs=1e-5 if decode == "pillow" else BETWEEN_DECODERS)
            assert found.probabilities[number].tolist() == near, name
            assert found.classes[number].tolist() == one["classes"], name


def test_turning_changes_the_answer_of_a_turned_photograph_only(weights: dict[str, torch.Tensor], tmp_path: Path):
    for number in (1, 6):
        (tmp_path / f"{number}.jpg").write_bytes(_turned(number))
    upright, stored = (_classify(tmp_path, weights, _cut("cpu", upright=way)) for way in (True, False))
    assert upright.probabilities[0].tolist() == stored.probabilities[0].tolist()
    assert upright.probabilities[1].tolist() != stored.probabilities[1].tolist()


def test_answers_are_those_of_the_network_called_by_hand(weights: dict[str, torch.Tensor], tmp_path: Path):
    images = [jpeg(smooth(90 + number, 120 - number, number)) for number in range(6)]
    for number, image in enumerate(images):
        (tmp_path / f"{number}.jpg").write_bytes(image)
    state = trained(RECIPE, Execution(precision="fp32"))
    crops = np.stack([decode_center(image, 64, 72) for image in images])
    mean, std = (torch.tensor(values) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        logits = state.model.eval()(((torch.from_numpy(crops) / 255 - mean) / std).permute(0, 3, 1, 2))
    best = logits.softmax(1).sort(1, descending=True)
    found = _classify(tmp_path, weights, _cut("pillow"), top_k=7)
    assert found.classes.tolist() == best.indices.tolist()
    np.testing.assert_allclose(found.probabilities, best.values, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("decode", get_args(Decode))
def test_a_gpu_gives_the_answers_of_the_cpu(decode: Decode, weights: dict[str, torch.Tensor], tmp_path: Path):
    for name, make in (ODD | DAMAGED).items():
        (tmp_path / f"{name}.jpg").write_bytes(make())
    expected = _classify(tmp_path, weights, _cut("pillow"), top_k=7)
    found = _classify(tmp_path, weights, _cut(decode), top_k=7, device=torch.device("cuda", 0))
    assert found.errors == expected.errors
    by_class = [
        np.take_along_axis(one.probabilities, np.argsort(one.classes, 1), 1)[
            [n not in one.errors for n in range(len(ODD | DAMAGED))]
        ]
        for one in (found, expected)
    ]
    np.testing.assert_allclose(*by_class, atol=0.02)  # the GPU's filter and arithmetic


def test_dalis_pixels_are_those_of_the_evaluation(images: tuple[str, str]):
    recipe = Recipe(
        model=Model(depth=8, num_classes=4),
        data=Data(train=images[0], validation=images[1], dataset="cifar10"),
        augment=Augment(kind="scale", size=24, shorter_side=(26, 40)),
        evaluation=Evaluation(crops=(24,), shorter_sides=(28,)),
        global_batch=32,
        ghost_batch=8,
    )
    _check_as_evaluated(recipe, images[1])


def test_dalis_pixels_of_real_photographs_are_those_of_the_evaluation_and_near_pillows():
    split = real("imagenet-sample/train-00000-*.parquet")
    _check_as_evaluated(dataclasses.replace(RECIPE, model=Model(depth=20, num_classes=1000)), split.uri, most=64)
    encoded = [np.asarray(image) for image in read_row_group(split, 0).images[:64]]
    cpu, pillow = (_crops(decode, encoded) for decode in ("cpu", "pillow"))
    difference = np.abs(cpu.astype(int) - pillow)
    assert difference.max() <= 2
    assert difference.mean() < 0.005


def _crops(decode: Decode, encoded: list) -> np.ndarray:
    cropper = Cropper(_cut(decode), max_batch=64, num_threads=2, device=CPU)
    (found,) = cropper.crops(batch for batch in [encoded])
    assert not found.errors
    return found.pixels.numpy()


def _check_as_evaluated(recipe: Recipe, uri: str, most: int = 40) -> None:
    from dist_resnet.data.shards.split import open_split

    split, state = open_split(uri), trained(recipe, Execution(precision="fp32"))
    options = InputOptions.of(Execution(device="cpu", cpus_per_worker=1, decode_on="cpu"))
    images = EvaluationImages(recipe, split, WORKER, options)
    crop, side = recipe.evaluation.crops[0], recipe.evaluation.shorter_sides[0]
    with torch.inference_mode():
        batch = next(images.center_crops(crop, side))
        expected = state.model.eval()(batch.images[:most]).softmax(1)
    images.close()
    cut = Cut(crop=crop, shorter_side=side, upright=False, decode="cpu")
    top_k = recipe.model.num_classes
    classifier = Classifier(recipe, state.weights(), cut, top_k=top_k, batch=most, threads=1, device=CPU)
    found = next(classifier.classify(find_images([uri])[0]))
    assert not found.errors
    by_class = np.take_along_axis(expected.numpy(), found.classes.astype(np.int64), 1)
    np.testing.assert_allclose(found.probabilities, by_class, atol=1e-6)
