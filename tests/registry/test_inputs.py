"""The images of a request. Oracle: the same image as plain bytes, and Python's own base64 encoders.

MLflow's scoring server takes the bodies apart as it does behind `mlflow models serve`, in this process.
"""

import base64
import email.mime.image
import io
import json
import quopri
import textwrap
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pytest
from data.image.test_pixels import TRANSPARENT, _oriented
from mlflow.pyfunc import scoring_server
from oracle.images import jpeg, smooth
from PIL import Image
from registry.conftest import trained
from registry.test_predictor import CLASSES, RECIPE

from dist_resnet.data.image.pixels import decode
from dist_resnet.recipe import Execution
from dist_resnet.registry import package
from dist_resnet.registry.inputs import from_text, images_of, open_image
from dist_resnet.registry.mlmodel import write_mlmodel

# Its size needs padding, and its base64 has both characters that URL-safe base64 replaces.
IMAGE = next(
    encoded
    for encoded in (jpeg(smooth(40, 50, seed), quality=80) for seed in range(100))
    if len(encoded) % 3 == 1 and {*b"+/"} <= {*base64.b64encode(encoded)}
)
PLAIN = base64.b64encode(IMAGE).decode()
URL_SAFE = base64.urlsafe_b64encode(IMAGE).decode()

WRAPPINGS: dict[str, str] = {
    "plain": PLAIN,
    "lines of 76": base64.encodebytes(IMAGE).decode(),
    "lines of MIME": base64.encodebytes(IMAGE).decode().replace("\n", "\r\n"),
    "lines as a shell joins them": " ".join(textwrap.wrap(PLAIN, 76)),
    "a MIME part": email.mime.image.MIMEImage(IMAGE).get_payload(),
    "white space around": f"\t\n  {PLAIN} \r\n",
    "no padding": PLAIN.rstrip("="),
    "too much padding": f"{PLAIN}==",
    "for URLs": URL_SAFE,
    "for URLs, no padding": URL_SAFE.rstrip("="),
    "for URLs, in lines": "\n".join(textwrap.wrap(URL_SAFE, 64)),
    "percent encoding": urllib.parse.quote(PLAIN, safe=""),
    "a data URL": f"data:image/jpeg;base64,{PLAIN}",
    "a data URL of another kind": f"data:application/octet-stream;base64,{PLAIN}",
    "a data URL without a kind": f"data:;base64,{PLAIN}",
    "a data URL with parameters": f"data:image/jpeg;name=a.jpg;BASE64,{PLAIN}",
    "a data URL in capitals": f"DATA:IMAGE/JPEG;BASE64,{PLAIN}",
    "a data URL in lines, for URLs": f" data:image/jpeg;base64,{URL_SAFE[:100]}\n{URL_SAFE[100:].rstrip('=')}",
    "a data URL, percent encoding": f"data:image/jpeg;base64,{urllib.parse.quote(PLAIN, safe='')}",
    "a data URL without base64": f"data:image/jpeg,{urllib.parse.quote(IMAGE)}",
    "quoted": json.dumps(PLAIN),
    "Python's str of bytes": str(base64.b64encode(IMAGE)),
    "a byte order mark": f"\ufeff{PLAIN}",
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_common_form_of_base64_gives_the_bytes(wrapping: str) -> None:
    assert from_text(WRAPPINGS[wrapping]) == IMAGE
    expected = np.asarray(decode(IMAGE))
    text = WRAPPINGS[wrapping]
    values = [text, np.array(text), np.array([text]), [text], {"b64": text}, {"bytes": text}, {"image": {"b64": text}}]
    if text.isascii():
        values += [text.encode(), bytearray(text.encode()), {"bytes": IMAGE, "path": None}, memoryview(IMAGE)]
    for value in values:
        np.testing.assert_array_equal(np.asarray(open_image(value, upright=True)), expected)


@pytest.mark.parametrize("extra", range(3))
def test_any_length_is_padded(extra: int) -> None:
    content = IMAGE + b"\xff" * extra
    assert from_text(base64.b64encode(content).decode().rstrip("=")) == content


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("not base64!", r"text must be base64, got 'not base64!'"),
        ("https://example.org/a.jpg", r"text must be base64, got 'https://example.org/a.jpg'"),
        ("/data/cat.jpg", "text must be base64, got '/data/cat.jpg'"),
        ("ä" * 60, r"text must be base64, got 'ä{40}\.\.\.'"),
        ("AAAAA", "text must be base64, got 'AAAAA'"),
        (quopri.encodestring(IMAGE).decode("latin1"), "text must be base64"),
        ("", "no bytes"),
        ("data:image/png;base64,", "no bytes"),
        (base64.b64encode(b"<svg/>").decode(), "markup such as HTML or SVG"),
        (f"data:application/pdf;base64,{base64.b64encode(b'%PDF-1.7').decode()}", "a PDF"),
        (base64.b64encode(IMAGE[:-200]).decode(), "truncated"),
        (base64.b64encode(PLAIN.encode()).decode(), "of an unknown format"),
        ({"url": "https://example.org"}, r"a dictionary must have one of image, b64, bytes, got \['url'\]"),
        (None, r"uint8 \[H, W, 3\], got None"),
        (float("nan"), "got nan"),
        ([PLAIN, PLAIN], r"an array must be uint8"),
        (np.zeros((4, 4, 4), np.uint8), r"got uint8 \[4, 4, 4\]"),
    ],
)
def test_a_value_that_is_not_an_image_is_named(value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        open_image(value, upright=True)
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


def test_ascii_image_files_are_not_decoded_as_base64() -> None:
    content = b"P2\n2 2\n255\n0 255\n128 64\n"
    assert np.asarray(open_image(content, upright=True))[..., 0].tolist() == [[0, 255], [128, 64]]


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (smooth(9, 8, 0) / 255, r"got float64 \[9, 8, 3\]; multiply values from 0 to 1 by 255"),
        (smooth(9, 8, 0)[0], r"got uint8 \[8, 3\]; put a single image into a list"),
        (smooth(9, 8, 0)[..., 0], r"got uint8 \[9, 8\]; repeat the gray values for three color channels"),
        (smooth(9, 8, 0).transpose(2, 0, 1), r"got uint8 \[3, 9, 8\]; put the color channels last"),
        (np.zeros((9, 8, 4), np.uint8), r"got uint8 \[9, 8, 4\]$"),
    ],
)
def test_an_array_that_is_nearly_an_image_is_refused_with_advice(array: np.ndarray, said: str) -> None:
    for form in (array, array.tolist()):
        with pytest.raises(ValueError, match=said):
            open_image(form, upright=True)


@pytest.mark.parametrize(
    "given",
    [[PLAIN, PLAIN], [np.array([PLAIN, PLAIN])], [[PLAIN, PLAIN]], {"image": [[PLAIN, PLAIN]]}, np.array([PLAIN] * 2)],
)
def test_a_list_of_texts_is_one_image_per_text(given: object) -> None:
    assert images_of(given) == [PLAIN, PLAIN]


Ask = Callable[[dict], list[dict]]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """The answers of MLflow's scoring server to the body of a request."""
    made = package.write(
        tmp_path_factory.mktemp("served") / "package",
        RECIPE,
        trained(RECIPE, Execution(precision="fp32")).weights(),
        CLASSES,
    )
    write_mlmodel(made)
    model = mlflow.pyfunc.load_model(str(made.folder))
    schema = model.metadata.get_input_schema()

    def answer(body: dict) -> list[dict]:
        response = scoring_server.invocations(json.dumps(body), "application/json", model, schema)
        assert response.status == 200
        return json.loads(response.response)["predictions"]

    return answer


BODIES: dict[str, Callable[[list[str]], dict]] = {
    "inputs": lambda texts: {"inputs": texts},
    "inputs, a list each": lambda texts: {"inputs": [[text] for text in texts]},
    "inputs by column": lambda texts: {"inputs": {"image": texts}},
    "inputs by row": lambda texts: {"inputs": [{"image": text} for text in texts]},
    "instances": lambda texts: {"instances": texts},
    "instances, a list each": lambda texts: {"instances": [[text] for text in texts]},
    "instances by row": lambda texts: {"instances": [{"image": text} for text in texts]},
    "instances, b64": lambda texts: {"instances": [{"image": {"b64": text}} for text in texts]},
    "dataframe_split": lambda texts: {"dataframe_split": {"columns": ["image"], "data": [[text] for text in texts]}},
    "dataframe_records": lambda texts: {"dataframe_records": [{"image": text} for text in texts]},
}


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("body", BODIES)
def test_every_body_has_an_answer_for_each_image(body: str, count: int, ask: Ask) -> None:
    others = [base64.b64encode(jpeg(smooth(70, 90, seed))).decode() for seed in range(2)]
    texts = [f"data:image/jpeg;base64,{PLAIN}", *others][:count]
    found = ask(BODIES[body](texts))
    assert [answer["error"] for answer in found] == [None] * count
    for answer, text in zip(found, texts, strict=True):
        (alone,) = ask({"dataframe_records": [{"image": text.rpartition(",")[2]}]})
        assert answer["probabilities"] == pytest.approx(alone["probabilities"], rel=1e-4)


@pytest.mark.parametrize("body", ["inputs", "inputs by column", "instances", "dataframe_records"])
def test_a_bad_row_does_not_affect_the_others(body: str, ask: Ask) -> None:
    good, bad, other = ask(BODIES[body]([PLAIN, "not base64!", URL_SAFE]))
    assert good["error"] is other["error"] is None
    assert "text must be base64, got 'not base64!'" in bad["error"]


def test_no_images_have_no_answers(ask: Ask) -> None:
    assert ask({"inputs": []}) == []


def test_a_photograph_is_rotated_unless_declined(ask: Ask) -> None:
    encoded = _oriented("PNG", 6)
    upright = np.asarray(decode(encoded, upright=True))
    stored = np.asarray(decode(encoded))
    for params, pixels in (({}, upright), ({"exif_rotation": True}, upright), ({"exif_rotation": False}, stored)):
        (found,) = ask({"inputs": [base64.b64encode(encoded).decode()], "params": params})
        (expected,) = ask({"dataframe_records": [{"image": pixels.tolist()}]})
        assert found == expected
    (first,), (second,) = (ask({"dataframe_records": [{"image": one.tolist()}]}) for one in (upright, stored))
    assert first["probabilities"] != second["probabilities"]


@pytest.mark.parametrize("kind", ["RGBA PNG", "gray and alpha PNG", "16-bit gray PNG", "palette PNG, shares", "GIF"])
def test_unusual_files_have_the_pixels_of_training(kind: str, ask: Ask) -> None:
    encoded, expected = TRANSPARENT[kind]()
    (found,) = ask({"inputs": [base64.b64encode(encoded).decode()]})
    (plain,) = ask({"dataframe_records": [{"image": np.asarray(decode(encoded)).tolist()}]})
    assert np.abs(np.asarray(decode(encoded)) - expected).max() <= 1
    assert found == plain


def test_the_packages_code_reads_a_16_bit_image_as_gray_and_not_as_white(ask: Ask, tmp_path: Path) -> None:
    values = np.linspace(0, 65_535, 80 * 90).reshape(80, 90).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    (found,) = ask({"inputs": [base64.b64encode(buffer.getvalue()).decode()]})
    gray = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
    (expected,) = ask({"dataframe_records": [{"image": gray.tolist()}]})
    (white,) = ask({"dataframe_records": [{"image": np.full_like(gray, 255).tolist()}]})
    assert found == expected != white
