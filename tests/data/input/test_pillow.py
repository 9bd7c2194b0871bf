"""Decoding without DALI. Oracle: the same windows through PIL (tests/oracle/pixels.py), and DALI's own answers."""

import logging
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle.images import jpeg, smooth
from oracle.pixels import decode_window

from dist_resnet.data.input import decoders
from dist_resnet.data.input.batch import Request
from dist_resnet.data.input.dali import DaliDecoder
from dist_resnet.data.input.decoders import Decoder, open_decoder
from dist_resnet.data.input.pillow import PillowDecoder

CPU = torch.device("cpu")
JOB = Path(__file__).parents[3] / "jobs" / "cifar_preact164.py"
# Python imports a module of this name at its start, here as in each of Ray's processes.
_HIDE_DALI = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "nvidia.dali" or name.startswith("nvidia.dali."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
"""


def _request(images: list[bytes], windows: list[tuple[int, int, int, int]], size: int) -> Request:
    num = len(images)
    flips = np.arange(num) % 2 == 1
    encoded = [np.frombuffer(image, np.uint8) for image in images]
    return Request(encoded, np.array(windows), flips, size, np.arange(num), np.zeros(num, np.int64), 0)


def _decoded(decoder: Decoder, *requests: Request) -> list[tuple[Request, np.ndarray]]:
    def generate() -> Generator[Request]:
        yield from requests

    return [(request, pixels.numpy()) for request, pixels in decoder.decode(generate())]


def test_windows_are_cut_resized_and_mirrored_as_pil_does():
    images = [jpeg(smooth(60, 80, seed=number)) for number in range(5)]
    windows = [(0, 0, 60, 80), (10, 20, 30, 40), (59, 79, 1, 1), (0, 40, 24, 24), (5, 5, 50, 20)]
    ((_, pixels),) = _decoded(PillowDecoder(num_threads=2), _request(images, windows, 24))
    assert pixels.dtype == np.uint8
    for number, (image, window) in enumerate(zip(images, windows, strict=True)):
        expected = decode_window(image, np.array(window), 24, flip=number % 2 == 1)
        assert np.abs(pixels[number].astype(int) - expected).max() <= 1


def test_whole_images_are_those_of_dali_bit_for_bit():
    images = [jpeg(smooth(32, 32, seed=number)) for number in range(8)]
    request = _request(images, [(0, 0, 32, 32)] * 8, 32)
    ((_, ours),) = _decoded(PillowDecoder(num_threads=1), request)
    ((_, theirs),) = _decoded(DaliDecoder(max_batch=8, num_threads=1, device=CPU), request)
    assert np.array_equal(ours, theirs)


def test_what_cannot_be_decoded_is_neutral_and_named_and_the_others_are_as_ever():
    images = [jpeg(smooth(32, 32, seed=number)) for number in range(3)]
    whole = _request(images, [(0, 0, 32, 32)] * 3, 16)
    damaged = _request([images[0], images[1][:40], images[2]], [(0, 0, 32, 32)] * 3, 16)
    (_, expected), (request, pixels) = _decoded(PillowDecoder(num_threads=2), whole, damaged)
    assert list(request.damaged) == [1]
    assert request.damaged[1]
    assert np.array_equal(pixels[[0, 2]], expected[[0, 2]])
    assert len(np.unique(pixels[1])) == 1


def test_pillow_decodes_where_it_is_asked_for_or_dali_is_missing(monkeypatch, caplog: pytest.LogCaptureFixture):
    def opened(decode) -> Decoder:
        return open_decoder(decode, max_batch=1, num_threads=1, device=CPU)

    assert isinstance(opened("auto"), DaliDecoder)
    assert isinstance(opened("pillow"), PillowDecoder)
    monkeypatch.setattr(decoders, "_is_installed", lambda: False)
    decoders._falls_back.cache_clear()
    with caplog.at_level(logging.WARNING, logger="dist_resnet"):
        assert all(isinstance(opened(decode), PillowDecoder) for decode in ("auto", "cpu", "pillow"))
    assert [record.getMessage()[:26] for record in caplog.records if "DALI" in record.getMessage()] == [
        "NVIDIA DALI is not install"
    ]
    with pytest.raises(ValueError, match=r"execution.decode_on gpu needs NVIDIA DALI.*--execution.decode-on auto"):
        opened("gpu")
    decoders._falls_back.cache_clear()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_trains_without_dali(tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(_HIDE_DALI)
    options = ["--demo", "--model.depth", "20", "--epochs", "1", "--execution.workers", "2"]
    options += ["--execution.cpus-per-worker", "1", "--execution.storage", str(tmp_path / "runs")]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(JOB), *options], env=environment, capture_output=True, text=True, check=False, timeout=580
    )
    assert done.returncode == 0, done.stderr
    assert "NVIDIA DALI is not installed: Pillow decodes" in done.stdout + done.stderr
    assert list((tmp_path / "runs").glob("*/summary.json"))
