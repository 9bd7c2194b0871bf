"""The input pipelines that loader.py compares: each gives batches of 32 normalized float32 images of 224 x 224.

Training: a window of 8 % to 100 % of the area, mirrored half of the time. Evaluation: the shorter side at 256, the
center cut out. Started by loader.py as `loader_contestants.py NAME THREADS`, one process each, by the Python that has
the libraries; nothing is imported that the contestant does not need. It answers each line of JSON, an order, with one
line of JSON.
"""

import contextlib
import ctypes
import functools
import itertools
import json
import os
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import clock

SIZE, SHORTER_SIDE, BATCH = 224, 256, 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEAST = 4
"""Batches that a round counts at least."""
EPOCH = 8192
"""Images in an epoch at least, copies included: rounds seldom meet an epoch's end."""

Batches = Iterator[int]
"""Sizes of the batches, each made when it is asked for or a few ahead."""


def reading(folder: Path, pipeline: str, threads: int) -> Batches:
    """Of `prepared`: what asks the decoder. Row groups, headers, windows."""
    return (len(request.images) for request in _requests(folder / "prepared", pipeline))


def decoding(folder: Path, pipeline: str, threads: int) -> Batches:
    """Of `prepared`: all up to uint8 pixels, in this thread. What it lacks is normalization and the hand-over."""
    import subject

    from dist_resnet.data.input.dali import DaliDecoder

    decoder = DaliDecoder(max_batch=BATCH, num_threads=threads, device=subject.CPU)
    return (len(pixels) for _, pixels in decoder.decode(_requests(folder / "prepared", pipeline)))


def _requests(shards: Path, pipeline: str) -> Generator:
    import subject

    from dist_resnet.data.input.streams import evaluation_requests, training_requests
    from dist_resnet.data.shards.reader import ShardReader
    from dist_resnet.data.shards.split import open_split

    split, recipe = open_split(str(shards)), subject.imagenet_recipe(str(shards), size=SIZE, batch=BATCH)
    for epoch in itertools.count():
        if pipeline == "train":
            yield from training_requests(recipe, ShardReader(split), epoch, 0, [0])
        else:
            yield from evaluation_requests(
                ShardReader(split), range(split.num_images), BATCH, crop=SIZE, shorter_side=SHORTER_SIDE
            )


def _ours(folder: Path, pipeline: str, threads: int, *, shards: str) -> Batches:
    """dist_resnet, one worker."""
    import subject

    from dist_resnet.data.input.decoders import InputOptions
    from dist_resnet.data.loader import EvaluationImages
    from dist_resnet.data.shards.split import open_split
    from dist_resnet.recipe import Execution, Performance

    # One stream, so that row groups are read all along and not only at the start.
    recipe = subject.imagenet_recipe(str(folder / shards), size=SIZE, batch=BATCH)
    execution = Execution(cpus_per_worker=threads, performance=Performance(evaluation_batch=BATCH))
    if pipeline == "train":
        return subject.step_sizes(subject.training_images(recipe, execution, subject.CPU))
    images = EvaluationImages(
        recipe, open_split(recipe.data.train), subject.worker(subject.CPU), InputOptions.of(execution)
    )
    return (len(batch.images) for _ in itertools.count() for batch in images.center_crops(SIZE, SHORTER_SIDE))


def dali_files(folder: Path, pipeline: str, threads: int) -> Batches:
    """NVIDIA's own pipeline for ImageNet: docs, "ImageNet training in PyTorch", CPU variant."""
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    train = pipeline == "train"
    graph = Pipeline(batch_size=BATCH, num_threads=threads, device_id=None, seed=0, prefetch_queue_depth=2)
    with graph:
        encoded, labels = fn.readers.file(file_root=str(folder / "files"), random_shuffle=train, name="files")
        if train:
            pixels = fn.decoders.image_random_crop(
                encoded, output_type=types.RGB, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
            )
            pixels = fn.resize(pixels, resize_x=SIZE, resize_y=SIZE, interp_type=types.INTERP_LINEAR)
        else:
            pixels = fn.decoders.image(encoded, output_type=types.RGB)
            pixels = fn.resize(pixels, resize_shorter=SHORTER_SIDE, interp_type=types.INTERP_LINEAR)
        values = fn.crop_mirror_normalize(
            pixels,
            crop=(SIZE, SIZE),
            dtype=types.FLOAT,
            output_layout="CHW",
            mean=[255 * mean for mean in MEAN],
            std=[255 * std for std in STD],
            mirror=fn.random.coin_flip() if train else 0,
        )
        graph.set_outputs(values, labels)
    batches = DALIGenericIterator([graph], ["images", "labels"], auto_reset=True, reader_name="files")
    return (len(entry[0]["images"]) for _ in itertools.count() for entry in batches)


def image_folder(folder: Path, pipeline: str, threads: int) -> Batches:
    """torchvision's reference: ImageFolder, PIL, DataLoader workers."""
    from torchvision import datasets

    return _data_loader(datasets.ImageFolder(str(folder / "files"), _pil_transform(pipeline)), threads)


def image_folder_jpeg(folder: Path, pipeline: str, threads: int) -> Batches:
    """torchvision's own JPEG decoder and its v2 transforms on tensors."""
    import torch
    from torchvision import datasets, io
    from torchvision.transforms import v2

    crop = [v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()]
    if pipeline != "train":
        crop = [v2.Resize(SHORTER_SIDE, antialias=True), v2.CenterCrop(SIZE)]
    steps = v2.Compose([*crop, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    data = datasets.ImageFolder(
        str(folder / "files"),
        steps,
        loader=lambda file: io.decode_jpeg(io.read_file(file), mode=io.ImageReadMode.RGB),
    )
    return _data_loader(data, threads)


def webdataset(folder: Path, pipeline: str, threads: int) -> Batches:
    """WebDataset: tar shards, PIL, DataLoader workers."""
    import webdataset

    shards = sorted(map(str, (folder / "tars").iterdir()))
    data = webdataset.WebDataset(shards, shardshuffle=len(shards) if pipeline == "train" else False)
    if pipeline == "train":
        data = data.shuffle(500)
    data = data.decode("pil").to_tuple("jpg", "cls").map_tuple(_pil_transform(pipeline), int).batched(BATCH)
    return _data_loader(data, threads, batch=None)


def _pil_transform(pipeline: str) -> Callable:
    from torchvision import transforms

    crop = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip()]
    if pipeline != "train":
        crop = [transforms.Resize(SHORTER_SIDE), transforms.CenterCrop(SIZE)]
    return transforms.Compose([*crop, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


def _data_loader(data: Any, workers: int, batch: int | None = BATCH) -> Batches:
    from torch.utils.data import DataLoader

    loader = DataLoader(
        data, batch, shuffle=True if batch else None, num_workers=workers, persistent_workers=True
    )  # their order costs nothing, so evaluation is shuffled too: classes lie together on disk
    return (len(images) for _ in itertools.count() for images, _ in loader)


def ffcv(folder: Path, pipeline: str, threads: int) -> Batches:
    """FFCV on its own file, whose images it has encoded again at quality 90."""
    import numpy as np
    from ffcv.fields.rgb_image import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage

    file = folder / "images.beton"
    num = len(list((folder / "files").glob("*/0-*")))
    if not file.exists():
        _write_ffcv(file, sorted((folder / "files").glob("*/0-*")), threads)
    decode = [CenterCropRGBImageDecoder((SIZE, SIZE), ratio=SIZE / SHORTER_SIDE)]
    if pipeline == "train":
        decode = [RandomResizedCropRGBImageDecoder((SIZE, SIZE)), RandomHorizontalFlip()]
    scale = [255 * np.array(values) for values in (MEAN, STD)]
    loader = Loader(
        str(file),
        batch_size=BATCH,
        num_workers=threads,
        order=OrderOption.RANDOM if pipeline == "train" else OrderOption.SEQUENTIAL,
        os_cache=True,
        indices=np.tile(np.arange(num), -(-EPOCH // num)),
        pipelines={"image": [*decode, NormalizeImage(*scale, np.float32), ToTensor(), ToTorchImage()]},
    )
    return (len(entry[0]) for _ in itertools.count() for entry in loader)


def _write_ffcv(target: Path, files: list[Path], threads: int) -> None:
    """Writes the images once; FFCV keeps no JPEG as it is."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter
    from PIL import Image

    class Images:
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, place: int) -> tuple:
            return Image.open(files[place]).convert("RGB"), int(files[place].parent.name)

    fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=90), "label": IntField()}
    DatasetWriter(str(target), fields, num_workers=threads).from_indexed_dataset(Images())


def bare(folder: Path, pipeline: str, threads: int) -> Batches:
    """libjpeg-turbo on the same windows, encoded images in memory, pixels thrown away: jpeg_windows.c."""
    import numpy as np

    from dist_resnet.data.image.headers import image_size
    from dist_resnet.data.input.augment import Augmentation, evaluation_windows
    from dist_resnet.data.shards.reader import ShardReader
    from dist_resnet.data.shards.split import open_split
    from dist_resnet.recipe import Augment

    library = ctypes.CDLL(str(folder.parent / "jpeg_windows.so"))
    split = open_split(str(next((folder / "prepared").iterdir())))
    reader = ShardReader(split)
    images = [image for number in range(split.num_row_groups) for image in reader.read(number).images]
    places = np.array([image.ctypes.data for image in images], np.uintp)
    sizes = np.array([len(image) for image in images], np.uintp)
    heights, widths = np.array([image_size(image) for image in images]).T
    for epoch in itertools.count():
        order = np.random.default_rng(epoch).permutation(len(images))
        windows = evaluation_windows(heights, widths, SIZE, SHORTER_SIDE)
        if pipeline == "train":
            augmentation = Augmentation(Augment(kind="inception", size=SIZE), 0, epoch)
            windows = augmentation.windows(np.arange(len(images)), heights, widths)
        for first in range(0, len(images), BATCH):
            batch = order[first : first + BATCH]
            columns = [places[batch], sizes[batch], windows[batch].astype(np.int32)]
            pointers = [column.ctypes.data_as(ctypes.c_void_p) for column in columns]
            if failed := library.decode_windows(*pointers, len(batch), threads):
                raise ValueError(f"libjpeg-turbo cannot decode {failed} of {len(batch)} images; give JPEGs only")
            yield len(batch)


CONTESTANTS: dict[str, tuple[str, Callable[[Path, str, int], Batches]]] = {
    "prepared": ("dist_resnet", functools.partial(_ours, shards="prepared")),
    "downloaded": ("dist_resnet, shards as downloaded", functools.partial(_ours, shards="downloaded")),
    "dali": ("DALI fn.readers.file", dali_files),
    "pil": ("torchvision ImageFolder, PIL", image_folder),
    "jpeg": ("torchvision ImageFolder, decode_jpeg", image_folder_jpeg),
    "webdataset": ("WebDataset, PIL", webdataset),
    "ffcv": ("FFCV", ffcv),
    "bare": ("bare libjpeg-turbo", bare),
    "decoding": ("of prepared shards: read, decoded, resized", decoding),
    "reading": ("of prepared shards: read, windows drawn", reading),
}
"""Titles and pipelines by name; a pipeline takes (folder of a set of images, "train" or "evaluation", threads)."""


def main() -> None:
    """Answers each order {"folder", "pipeline", "seconds"} with the fields of a clock.Rate."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not mix with the answers
    name, threads = sys.argv[1], int(sys.argv[2])
    opened: tuple[str, str] | None = None
    batches: Batches = iter(())
    with contextlib.suppress(ImportError):
        import torch

        torch.set_num_threads(threads)
    for line in sys.stdin:
        order = json.loads(line)
        if opened != (order["folder"], order["pipeline"]):
            opened = (order["folder"], order["pipeline"])
            del batches  # ends its threads and workers
            batches = CONTESTANTS[name][1](Path(order["folder"]), order["pipeline"], threads)
        found = clock.rate(batches, count=LEAST, seconds=order["seconds"])
        print(json.dumps(found), file=answers, flush=True)
    os._exit(0)  # without waiting for what still runs ahead


if __name__ == "__main__":
    main()
