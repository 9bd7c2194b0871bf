"""Decoded pixels; oracle: the same windows through PIL (tests/oracle/pixels.py).

Both decode with libjpeg-turbo, and torch's uint8 filter has PIL's weights; but a partly decoded JPEG has its color
interpolated at the window's border without the pixels outside of it. On photographs the difference is at most 2 gray
levels away from the border and 24 there; the mean is far below a level.
"""

import gc
import io
import os
from collections.abc import Generator
from dataclasses import replace

import numpy as np
import pytest
import torch
from nvidia.dali.pipeline import Pipeline
from oracle.images import jpeg, read_row_group, real, smooth
from oracle.pixels import decode_center, decode_window
from PIL import Image

from dist_resnet.data.image.headers import image_size
from dist_resnet.data.input import dali
from dist_resnet.data.input.augment import Augmentation
from dist_resnet.data.input.batch import Request
from dist_resnet.data.input.dali import DaliDecoder
from dist_resnet.recipe import Augment

MEAN_TOLERANCE = 0.3
GREATEST_TOLERANCE = 2
BORDER_TOLERANCE = 24
BORDER = 8
CPU = torch.device("cpu")


def request(images: list[bytes], windows: list | np.ndarray, size: int, flips: list[bool] | None = None) -> Request:
    num = len(images)
    return Request(
        [np.frombuffer(image, np.uint8) for image in images],
        np.array(windows),
        np.array(flips or [False] * num),
        size,
        np.arange(num) + 100,
        np.zeros(num, np.int64),
        0,
    )


def decode(*requests: Request, threads: int = 1, device: torch.device = CPU) -> list[np.ndarray]:
    def generate() -> Generator[Request]:
        yield from requests

    decoder = DaliDecoder(max_batch=64, num_threads=threads, device=device)
    return [pixels.cpu().numpy().copy() for _, pixels in decoder.decode(generate())]


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    assert difference.mean() < MEAN_TOLERANCE
    assert difference[BORDER:-BORDER, BORDER:-BORDER].max() <= GREATEST_TOLERANCE
    assert difference.max() <= BORDER_TOLERANCE


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "L"},
        {"mode": "CMYK"},
        {"progressive": True},
        {"subsampling": 0},
        {"subsampling": 2},
        {"format": "PNG"},
        {"format": "PNG", "mode": "L"},
        {"format": "PNG", "mode": "P"},
        {"format": "PNG", "mode": "RGBA"},
        {"format": "BMP"},
        {"format": "WEBP"},
    ],
)
def test_every_kind_of_image_equals_pil(options: dict) -> None:
    encoded = jpeg(smooth(90, 120, 1), **options)
    windows = [[0, 0, 90, 120], [10, 20, 61, 33], [85, 100, 5, 20]]
    (ours,) = decode(request([encoded] * 3, windows, 48, [False, True, False]))
    for pixels, window, flip in zip(ours, windows, (False, True, False), strict=True):
        assert_close(pixels, decode_window(encoded, np.array(window), 48, flip=flip))


def test_a_rotated_image_is_decoded_as_stored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = jpeg(smooth(60, 100, 1), exif=exif)
    (ours,) = decode(request([encoded], [[30, 70, 30, 30]], 30))
    assert_close(ours[0], decode_window(encoded, np.array([30, 70, 30, 30]), 30))


def test_a_lossless_image_at_its_own_size_is_exact() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    (ours,) = decode(request([jpeg(pixels, format="PNG")] * 2, [[0, 0, 32, 32]] * 2, 32, [False, True]))
    np.testing.assert_array_equal(ours[0], pixels)
    np.testing.assert_array_equal(ours[1], pixels[:, ::-1])


@pytest.mark.parametrize("kind", ["scale", "inception"])
def test_real_images_equal_pil(kind: str) -> None:
    split = real("imagenet-sample/*.parquet")
    images = [image.tobytes() for image in read_row_group(split, 0).images[:64]]
    heights, widths = np.array([image_size(np.frombuffer(image, np.uint8)) for image in images]).T
    recipe = Augment(kind=kind, size=224)  # pyrefly: ignore
    draws = Augmentation(recipe, 1, 2)
    windows, flips = draws.windows(np.arange(64), heights, widths), draws.flips(np.arange(64))
    (ours,) = decode(request(images, windows, 224, flips.tolist()), threads=2)
    for pixels, image, window, flip in zip(ours, images, windows, flips, strict=True):
        assert_close(pixels, decode_window(image, window, 224, flip=bool(flip)))


def test_the_evaluation_crop_of_real_images_is_near_that_of_torchvision() -> None:
    """Resize, then CenterCrop: ours differs by the rounding to source pixels and the filter at the border."""
    from torchvision.transforms import CenterCrop, Compose, Resize

    split = real("imagenet-sample/*.parquet")
    theirs = Compose([Resize(256), CenterCrop(224)])
    differences = []
    for image in read_row_group(split, 1).images[:20]:
        ours = decode_center(image, 224, 256)
        opened = Image.open(io.BytesIO(image.tobytes())).convert("RGB")
        differences.append(np.abs(ours.astype(int) - np.asarray(theirs(opened)).astype(int)).mean())
    assert np.median(differences) < 6
    assert max(differences) < 20


def test_threads_and_batching_do_not_change_a_bit() -> None:
    images = [jpeg(smooth(60 + n, 80 - n, n)) for n in range(12)]
    windows = [[n, 2 * n, 40, 30 + n] for n in range(12)]
    (together,) = decode(request(images, windows, 24), threads=1)
    apart = decode(*(request(images[n : n + 5], windows[n : n + 5], 24) for n in (0, 5, 10)), threads=3)
    np.testing.assert_array_equal(np.concatenate(apart), together)


def test_each_resizing_thread_does_without_threads_of_torch() -> None:
    def threads_while_decoding() -> int:
        gc.collect()  # the threads of earlier decoders end with them
        work = request([jpeg(smooth(240, 240, 0))] * 16, [[0, 0, 240, 240]] * 16, 224, [True, False] * 8)
        decoding = DaliDecoder(max_batch=16, num_threads=2, device=CPU).decode(one for one in [work])
        next(decoding)
        num = len(os.listdir("/proc/self/task"))
        decoding.close()
        return num

    alone = threads_while_decoding()
    torch.set_num_threads(8)
    try:
        assert threads_while_decoding() == alone
    finally:
        torch.set_num_threads(1)


def test_requests_may_differ_in_number_and_size() -> None:
    image = jpeg(smooth(60, 60, 0))
    shapes = [(3, 16), (1, 40), (5, 16)]
    ours = decode(*(request([image] * num, [[0, 0, 60, 60]] * num, size) for num, size in shapes))
    assert [pixels.shape for pixels in ours] == [(num, size, size, 3) for num, size in shapes]


def test_one_call_after_another_gives_its_own_requests_in_order() -> None:
    decoder = DaliDecoder(max_batch=64, num_threads=1, device=CPU)
    for num in (1, 4, 0, 3, 5, 2):
        images = [jpeg(smooth(30, 30, 10 * num + n)) for n in range(num)]
        decoded = list(decoder.decode(request([image], [[0, 0, 30, 30]], 30) for image in images))
        assert len(decoded) == num
        for image, (asked, pixels) in zip(images, decoded, strict=True):
            assert asked.images[0].tobytes() == image
            assert_close(pixels[0].numpy(), decode_window(image, (0, 0, 30, 30), 30, flip=False))


@pytest.mark.parametrize("taken", [1, 2, 3, 7])
def test_a_call_that_was_closed_leaves_nothing_to_the_next_one(taken: int) -> None:
    decoder = DaliDecoder(max_batch=64, num_threads=1, device=CPU)
    images = [jpeg(smooth(30, 30, n)) for n in range(8)]
    damaged = [*images[:taken], *map(cut, images[taken:])]
    for first in (images, damaged):
        decoding = decoder.decode(request([image], [[0, 0, 30, 30]], 30) for image in first)
        for _ in range(taken):
            next(decoding)
        decoding.close()
        decoded = list(decoder.decode(request([image], [[0, 0, 30, 30]], 30) for image in images[::-1]))
        assert len(decoded) == 8
        for image, (asked, pixels) in zip(images[::-1], decoded, strict=True):
            assert not asked.damaged
            assert_close(pixels[0].numpy(), decode_window(image, (0, 0, 30, 30), 30, flip=False))


def cut(image: bytes) -> bytes:
    return image[: len(image) // 2]


def no_image(image: bytes) -> bytes:
    return b"GIF89a" + image[6:]


@pytest.mark.parametrize("damage", [cut, no_image])
@pytest.mark.parametrize("places", [[0], [4], [9], [11], [1, 2, 10]])
def test_damaged_images_are_replaced_and_named_and_the_others_are_as_ever(damage, places: list[int]) -> None:
    images = [jpeg(smooth(64, 64, n)) for n in range(12)]
    expected = np.concatenate(decode(*batches_of(images)))
    damaged = [damage(image) if place in places else image for place, image in enumerate(images)]
    decoder = DaliDecoder(max_batch=64, num_threads=1, device=CPU)
    found, named = [], []
    for batch, pixels in decoder.decode(r for r in batches_of(damaged)):
        found.append(pixels.numpy().copy())
        named += [int(batch.indices[place]) - 100 for place in batch.damaged]
        assert all("\n" not in reason for reason in batch.damaged.values())
    assert sorted(named) == places
    whole = [place for place in range(12) if place not in places]
    np.testing.assert_array_equal(np.concatenate(found)[whole], expected[whole])
    assert np.ptp(np.concatenate(found)[places]) == 0  # of one color


def batches_of(images: list[bytes]) -> list[Request]:
    requests = [request(images[n : n + 4], [[0, 0, 64, 64]] * 4, 16) for n in (0, 4, 8)]
    return [replace(batch, indices=batch.indices + n) for batch, n in zip(requests, (0, 4, 8), strict=True)]


def test_an_error_that_stays_on_the_gpu_is_not_taken_for_damaged_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: torch.device) -> None:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    monkeypatch.setattr(dali, "check_device", fail)
    image = jpeg(smooth(64, 64, 0))
    decoded = DaliDecoder(max_batch=4, num_threads=1, device=CPU).decode(
        one for one in [request([image, cut(image)], [[0, 0, 64, 64]] * 2, 16)]
    )
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        list(decoded)


@pytest.mark.parametrize("alike", [True, False])
def test_pixels_that_must_be_alike_are_not_decoded_by_a_gpus_jpeg_hardware(alike: bool) -> None:
    """By the serialized pipeline: it can be defined without a GPU, but not built."""
    pipeline = Pipeline(batch_size=2, num_threads=1, device_id=None)
    dali.define(pipeline, lambda: (), gpu=True, alike=alike)
    setting = b"hw_decoder_load\x12\x05float\x1d" + np.float32(0).tobytes()
    assert (setting in pipeline.serialize()) == alike


@pytest.mark.gpu
def test_a_gpus_pixels_do_not_depend_on_the_batch_where_they_must_be_alike() -> None:
    images = [jpeg(smooth(90, 120, n)) for n in range(16)]
    windows, device = [[n, n, 60, 70] for n in range(16)], torch.device("cuda", 0)
    decoder = DaliDecoder(max_batch=16, num_threads=1, device=device, alike=True)
    (together,) = [pixels.cpu() for _, pixels in decoder.decode(one for one in [request(images, windows, 48)])]
    apart = [request(images[n : n + 3], windows[n : n + 3], 48) for n in range(0, 16, 3)]
    assert torch.equal(torch.cat([pixels.cpu() for _, pixels in decoder.decode(one for one in apart)]), together)


@pytest.mark.gpu
def test_the_gpu_decodes_as_the_cpu_does() -> None:
    images = [jpeg(smooth(90, 120, n)) for n in range(16)]
    windows, flips = [[n, n, 60, 70] for n in range(16)], [n % 2 == 0 for n in range(16)]
    (ours,) = decode(request(images, windows, 48, flips), device=torch.device("cuda", 0))
    (theirs,) = decode(request(images, windows, 48, flips))
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    assert difference.mean() < 1
