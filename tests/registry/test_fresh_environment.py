"""A published model in an environment that has only mlflow, torch, safetensors and Pillow, by all four ways.

Oracle: the logits of the network that was published, computed here.
"""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle.images import jpeg, smooth
from registry.conftest import trained

import dist_resnet
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.registry.package import requirements
from dist_resnet.registry.publish import publish_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_LOADERS = """
import json, sys
import mlflow, mlflow.pyfunc, mlflow.pytorch, numpy, torch
uri, project = sys.argv[1:]
pixels = numpy.load("pixels.npy")
served = mlflow.pyfunc.load_model(uri)
images = served._model_impl._normalize(torch.from_numpy(pixels))
with torch.no_grad():
    answers = {"pyfunc": served._model_impl.logits(pixels), "pytorch": mlflow.pytorch.load_model(uri)(images)}
    assert "dist_resnet" not in sys.modules
    sys.path.insert(0, project)
    import dist_resnet.registry
    model = dist_resnet.registry.pull(uri)
    answers["pull"] = model(images)
for name in ("ray", "pyarrow.parquet", "nvidia.dali", "tyro"):
    assert name not in sys.modules, name
model.train()(images).sum().backward()
print(json.dumps({name: logits.tolist() for name, logits in answers.items()}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment created for this test."""
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed")
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([uv, "venv", "--quiet", str(folder)], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), *requirements()]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no package index is to be had: {done.stderr[-300:]}")
    return folder / "bin" / "python"


@pytest.fixture
def environment(store: str, python: Path) -> dict[str, str]:
    return os.environ | {
        "MLFLOW_TRACKING_URI": store,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PATH": f"{python.parent}:{os.environ['PATH']}",
    }


def test_three_loaders_give_the_published_networks_logits(
    python, environment, recipe: Recipe, make_run, store, tmp_path, execution: Execution
):
    publish_run(make_run(recipe), tracking_uri=store, name="fresh")
    pixels = np.stack([smooth(32, 32, seed) for seed in range(3)])
    np.save(tmp_path / "pixels.npy", pixels)
    project = str(Path(dist_resnet.__file__).parents[1])
    done = subprocess.run(
        [str(python), "-c", _LOADERS, "models:/fresh@champion", project],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = {name: torch.tensor(logits) for name, logits in json.loads(done.stdout.splitlines()[-1]).items()}
    model = trained(recipe, execution).model.eval()
    from dist_resnet.data.datasets import DATASETS
    from dist_resnet.data.input.normalize import Normalizer

    images = Normalizer(DATASETS["cifar10"].normalization, torch.device("cpu"), channels_last=True)(
        torch.from_numpy(pixels)
    )
    with torch.no_grad():
        expected = model(images)
    # Bit-identical on the same number of threads; another number sums in another order.
    torch.testing.assert_close(answers["pull"], answers["pyfunc"], rtol=0, atol=0)
    torch.testing.assert_close(answers["pyfunc"], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(answers["pytorch"], expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def served(python, environment, recipe: Recipe, make_run, store, tmp_path) -> Iterator[str]:
    """The address of `mlflow models serve` with a published model."""
    publish_run(make_run(recipe), tracking_uri=store, name="served")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(python.parent / "mlflow"), "models", "serve", "--model-uri", "models:/served@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(f"http://127.0.0.1:{port}/ping", process, tmp_path / "serve.log")
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"the server did not come up:\n{log.read_text()[-3000:]}")


def _post(url: str, body: object) -> tuple[int, dict]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_a_served_model_classifies_images_and_refuses_other_data(served: str):
    pixels = smooth(50, 60, 0)
    image = base64.b64encode(jpeg(pixels, format="PNG")).decode()
    rubbish = base64.b64encode(b"rubbish").decode()
    bodies = [
        {"dataframe_records": [{"image": image}, {"image": rubbish}, {"image": image}]},
        {"dataframe_split": {"columns": ["image"], "data": [[image], [rubbish], [image]]}},
        {"instances": [{"image": image}, {"image": rubbish}, {"image": image}]},
    ]
    for body in bodies:
        status, answer = _post(served, body | {"params": {"top_k": 2}})
        first, bad, last = answer["predictions"]
        assert status == 200
        assert len(first["classes"]) == len(first["names"]) == len(first["probabilities"]) == 2
        assert first["classes"] == last["classes"]
        assert bad["classes"] == []
        assert "of an unknown format" in bad["error"]
    _, by_pixels = _post(served, {"inputs": {"image": [pixels.tolist()]}, "params": {"top_k": 2}})
    assert by_pixels["predictions"][0]["classes"] == first["classes"]

    url_safe = base64.urlsafe_b64encode(jpeg(pixels, format="PNG")).decode()
    wrapped = [
        image,
        f"data:image/png;base64,{image}",
        base64.encodebytes(jpeg(pixels, format="PNG")).decode(),
        url_safe.rstrip("="),
        f"  {image}\r\n",
        "nothing!",
    ]
    status, answer = _post(served, {"inputs": wrapped, "params": {"top_k": 2}})
    assert status == 200
    *good, bad = answer["predictions"]
    assert [row["classes"] for row in good] == [first["classes"]] * 5
    assert "text must be base64, got 'nothing!'" in bad["error"]
    status, answer = _post(served, {"inputs": [image], "params": {"top_k": 2, "exif_rotation": False}})
    assert answer["predictions"][0]["classes"] == first["classes"]

    record = {"image": image}
    for body, reason in (
        ({"dataframe_records": [record], "params": {"top_k": 0}}, "top_k must be an integer of at least 1"),
        ({"dataframe_records": [record], "params": {"top_k": "many"}}, "top_k"),
        ({"dataframe_records": [{"photo": image}]}, "Model is missing inputs ['image']"),
        ({}, "exactly one of the input fields"),
        (b"{", "valid JSON"),
    ):
        status, answer = _post(served, body)
        assert status == 400
        assert reason in answer["message"]
        assert "Traceback" not in json.dumps(answer)
