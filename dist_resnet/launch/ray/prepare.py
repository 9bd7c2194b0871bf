"""Prepares a data set with Ray: each shard is a task, on an existing cluster or on the job's own Ray."""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dist_resnet.launch.ray.cluster import connect, resources  # first: it sets what Ray reads when it is imported

# isort: split
import ray
from ray.exceptions import RayTaskError

from dist_resnet.data.prepare import prepare as preparation
from dist_resnet.data.prepare.options import Options
from dist_resnet.launch.progress import ImageProgress
from dist_resnet.recipe import Execution
from dist_resnet.storage.uri import absolute_uri, check_no_password


def prepare(options: Options, *, workers: int | None) -> dict[str, Any]:
    """The manifest of a data set, prepared or continued.

    `workers` tasks run at once, by default as many as the cluster has CPU cores. Raises as `data.prepare.prepare`
    does, and ValueError if no cluster answers or an address contains a password.
    """
    # Workers run in other folders.
    options = dataclasses.replace(
        options,
        source=_absolute("source", options.source),
        target=_absolute("target", options.target),
        labels=options.labels and _absolute("labels", options.labels),
        class_map=options.class_map and _absolute("class-map", options.class_map),
    )
    progress = ImageProgress()
    try:
        return preparation.prepare(options, run=_Tasks(workers), progress=progress)
    finally:
        progress.close()


def _absolute(name: str, uri: str) -> str:
    check_no_password(name, uri)
    return absolute_uri(uri).rstrip("/")


class _Tasks:
    """Runs generators as Ray tasks, several at once; Ray starts with the first."""

    def __init__(self, workers: int | None) -> None:
        self._workers = workers

    def __call__(self, function: Callable[[Any], Iterator[Any]], tasks: Sequence[Any]) -> Iterator[Any]:
        """Yields their items as they arrive. Raises what one of them raises, and cancels the others."""
        waiting, running = deque(tasks), []
        if not waiting:
            return
        connect(Execution(workers=self._workers or 1, cpus_per_worker=1))
        most = self._workers or max(1, resources().cores)
        try:
            while waiting or running:
                while waiting and len(running) < most:
                    running.append(_stream.remote(function, waiting.popleft()))
                for one in ray.wait(running, num_returns=1, fetch_local=False)[0]:
                    try:
                        item = next(one)
                    except StopIteration:
                        running.remove(one)
                        continue
                    yield ray.get(item)
        except RayTaskError as error:
            raise error.cause from None
        finally:
            for one in running:
                ray.cancel(one)


@ray.remote(num_cpus=1, num_returns="streaming", scheduling_strategy="SPREAD")
def _stream(function: Callable[[Any], Iterator[Any]], task: Any) -> Iterator[Any]:
    yield from function(task)
