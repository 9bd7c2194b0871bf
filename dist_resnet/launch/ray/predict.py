"""Predicts with Ray: each worker is an actor that classifies block after block; the driver writes the answers."""

import dataclasses
import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dist_resnet.launch.ray.cluster import connect, own_cluster, resources  # first: it sets what Ray reads on import

# isort: split
import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from dist_resnet import logs
from dist_resnet.data.datasets import normalization_of
from dist_resnet.data.input import decoders
from dist_resnet.data.shards import classes
from dist_resnet.data.unlabeled.find import find_images
from dist_resnet.data.unlabeled.images import Images, count, cut
from dist_resnet.launch import gpu
from dist_resnet.launch.failures import RayFailedError
from dist_resnet.launch.prediction.classifier import Answers, Classifier
from dist_resnet.launch.prediction.crops import Cut
from dist_resnet.launch.prediction.options import Options
from dist_resnet.launch.prediction.results import Predicted, Results, check_output, table_of
from dist_resnet.launch.progress import ImageProgress
from dist_resnet.launch.resources import settle_workers
from dist_resnet.launch.trained import Trained, Weights, open_trained
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.registry import predictor
from dist_resnet.storage.uri import absolute_uri, check_no_password
from dist_resnet.wording import one_line

logger = logging.getLogger(__name__)

# Blocks depend on the number of images only, so that another number of workers continues where others stopped.
_UNIT, _MOST_UNITS, _BLOCKS = 64, 16, 256
_RESTARTS = 3
_CORES_PER_WORKER = 1


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a worker needs besides the weights, and the names of the classes."""

    recipe: Recipe
    names: list[str]
    cut: Cut
    top_k: int
    batch: int


def predict(options: Options) -> Predicted:
    """Classifies all images and writes the answers; continues an earlier start of the same job.

    Raises ValueError, FileNotFoundError or OSError with one line, before Ray starts if the model, the images or the
    output cannot be used, and at the end if no image can be read. Finished blocks are kept.
    """
    for uri in options.images:
        check_no_password("--images", uri)
    check_no_password("--output", options.output)
    check_output(options.output)
    decoders.check(options.decode_on)
    with open_trained(options.model, tracking_uri=options.tracking_uri) as trained:
        model, weights = prepare_model(trained, options), trained.read_weights()
    _check_weights(options.model, model.recipe, weights)
    images, left_out = find_images([absolute_uri(uri) for uri in options.images])
    for line in left_out:
        logger.info("left out: %s", line)
    blocks = list(cut(images, _block_size(count(images))))
    results = Results(absolute_uri(options.output), num_parts=len(blocks), top_k=model.top_k)
    with results.locked():
        finished = results.claim(_job(images, model, weights))
        _classify_all(options, model, weights, blocks, finished, results)
        return results.finish()


def prepare_model(trained: Trained, options: Options) -> Model:
    """A model as the options have it classify."""
    recipe = trained.recipe
    outputs = recipe.model.num_outputs
    return Model(
        recipe=recipe,
        names=classes.numbers(outputs) if trained.classes is None else classes.for_outputs(trained.classes, outputs),
        cut=Cut(
            crop=recipe.evaluation.crops[0],
            shorter_side=recipe.evaluation.shorter_sides[0],
            upright=options.exif_rotation,
            decode=options.decode_on,
        ),
        top_k=min(options.top_k, outputs),
        batch=options.batch,
    )


def _check_weights(source: str, recipe: Recipe, weights: Weights) -> None:
    try:
        predictor.rebuild(recipe, weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"the weights of {source} are of another network than its recipe's: {reason}") from error


def _block_size(num_images: int) -> int:
    """The images of a block: at most `_BLOCKS` blocks, unless they would be larger than a worker should lose.

    >>> [_block_size(number) for number in (1, 16_384, 16_385, 10_000_000)]
    [64, 64, 128, 1024]
    """
    return _UNIT * min(_MOST_UNITS, -(-num_images // (_UNIT * _BLOCKS)))


def _job(images: Sequence[Images], model: Model, weights: Weights) -> dict[str, Any]:
    """What an earlier start must have in common to be continued."""
    listed, known = hashlib.sha256(), hashlib.sha256()
    for part in images:
        for name in part.names():
            listed.update(f"{name}\n".encode())
    recipe = model.recipe
    described = {
        "model": dataclasses.asdict(recipe.model),
        "dataset": dataclasses.asdict(normalization_of(recipe.data)),
    }
    known.update(json.dumps([described, model.names]).encode())
    for name, tensor in sorted(weights.items()):
        known.update(name.encode())
        known.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {"images": f"{count(images)}, sha256 of their paths {listed.hexdigest()}", "model": known.hexdigest()} | {
        "top_k": model.top_k,
        "crop": [model.cut.crop, model.cut.shorter_side],
        "exif_rotation": model.cut.upright,
        "decode_on": model.cut.decode,
    }


def _classify_all(
    options: Options,
    model: Model,
    weights: Weights,
    blocks: list[list[Images]],
    finished: set[int],
    results: Results,
) -> None:
    """Writes a part for each block that has none yet; Ray starts if there is one."""
    todo = [number for number in range(len(blocks)) if number not in finished]
    if not todo:
        return
    progress = ImageProgress()
    settled = settle(options, most=len(todo))
    shared = share(weights)  # held here, so that a worker that starts again finds them
    workers = start_workers(settled, model, shared, most=len(todo))
    progress.begin("predicting", sum(count(blocks[number]) for number in todo))
    if finished:
        progress.say(f"{len(finished)} of {len(blocks)} parts were finished by an earlier start")
    try:
        for number, answers in answers_of(workers, [(number, blocks[number]) for number in todo], progress):
            names = [name for part in blocks[number] for name in part.names()]
            table = table_of(names, answers, model.names)
            _check_seen(names, table["error"].to_pylist())
            results.write(number, table)
    finally:
        progress.close()
        for worker in workers:
            ray.kill(worker)


def settle(options: Options, *, most: int) -> Execution:
    """The workers, by default no more than `most`, and the device and cores of each; connects to Ray.

    Raises ValueError if the cluster lacks cores or GPUs for them.
    """
    execution = Execution(workers=options.workers or 1, device=options.device)
    connect(execution)
    available = resources()
    if options.workers is None:
        gpus = 0 if options.device == "cpu" else available.gpus
        wanted = gpus or sum(max(1, node.cores // _CORES_PER_WORKER) for node in available.nodes if node.cores)
        execution = dataclasses.replace(execution, workers=max(1, min(wanted, most)))
    return settle_workers(execution, available)


def share(weights: Weights) -> list[Any]:
    """A reference to weights in Ray's object store, as `start_workers` takes it."""
    return [ray.put(weights)]


def start_workers(settled: Execution, model: Model, weights: list[Any], *, most: int) -> list[Any]:
    """The workers; `weights`, from `share`, have to be kept while they work."""
    cores, on_gpu = settled.cpus_per_worker or 1, settled.device == "gpu"
    worker = _remote.options(num_cpus=cores, num_gpus=1 if on_gpu else 0)
    return [
        worker.remote(rank, model, weights, cores, "cuda" if on_gpu else "cpu")
        for rank in range(min(settled.most_workers, most))
    ]


def answers_of(
    workers: Sequence[Any], blocks: Sequence[tuple[int, list[Images]]], progress: ImageProgress
) -> Iterator[tuple[int, list[Answers]]]:
    """(number, answers) of each block as it is finished; each worker has one block at a time."""
    waiting, idle = deque(blocks), deque(workers)
    running: dict[Any, tuple[Any, int, list[Answers]]] = {}
    try:
        while waiting or running:
            while waiting and idle:
                number, block = waiting.popleft()
                worker = idle.popleft()
                running[worker.classify.options(num_returns="streaming").remote(block)] = worker, number, []
            for stream in ray.wait(list(running), num_returns=1, fetch_local=False)[0]:
                worker, number, answers = running[stream]
                try:
                    answers.append(ray.get(next(stream)))
                    progress.advance(len(answers[-1].classes))
                except StopIteration:
                    del running[stream]
                    idle.append(worker)
                    yield number, answers
    except RayTaskError as error:
        raise error.cause from None
    except RayActorError as error:
        raise RayFailedError(f"a worker ended {_RESTARTS + 1} times ({one_line(error)})") from error


def _check_seen(names: Sequence[str], errors: Sequence[str | None]) -> None:
    """Raises ValueError if a worker on another machine does not find a local file that is there on this one."""
    for name, error in zip(names, errors, strict=True):
        is_missing = error is not None and "No such file" in error and not own_cluster()
        if is_missing and (os.path.exists(name) or os.path.exists(name.rpartition("#")[0])):
            raise ValueError(
                f"{name} is on this machine, but not on the machine of a worker; give --images on storage every "
                "node can access, or RAY_ADDRESS=local to predict on this machine"
            )


class _Worker:
    """Classifies blocks on one GPU, or on a few cores."""

    def __init__(self, rank: int, model: Model, weights: list[Any], cores: int, device: str) -> None:
        logs.configure(rank)
        torch.set_num_threads(cores)
        place = torch.device(device, 0) if device == "cuda" else torch.device(device)
        gpu.take(place)
        self._classifier = Classifier(
            model.recipe,
            ray.get(weights[0]),
            model.cut,
            top_k=model.top_k,
            batch=model.batch,
            threads=cores,
            device=place,
        )

    def classify(self, block: list[Images]) -> Iterator[Answers]:
        """Yields the answers for a block, a batch at a time."""
        yield from self._classifier.classify(block)


_remote = ray.remote(max_restarts=_RESTARTS, max_task_retries=_RESTARTS, scheduling_strategy="SPREAD")(_Worker)
