"""What work takes in seconds and in CPU time.

It needs the standard library alone, for contestants of loader.py live in environments of their own.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

WARM_UP = 8
"""Batches that do not count: more than any loader has ready when its turn comes."""
RATE = {"images/s": ".0f", "CPU-ms per image": ".2f"}
"""Heads and formats of a `Rate`."""


class Rate(NamedTuple):
    """What a round of making batches gave."""

    images_per_second: float
    cpu_ms: float
    """CPU milliseconds for each image."""


def cpu_seconds() -> float:
    """CPU time so far of this process and its living children."""
    total = time.process_time()
    tick = 1 / os.sysconf("SC_CLK_TCK")
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            with contextlib.suppress(FileNotFoundError):
                total += tick * sum(map(int, Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return total


def rate(
    batches: Iterator[int],
    *,
    count: int,
    warm_up: int = WARM_UP,
    seconds: float = 0.0,
    cpu: Callable[[], float] = cpu_seconds,
    now: Callable[[], float] = time.perf_counter,
    wait: Callable[[], object] = lambda: None,
) -> Rate:
    """The rate of at least `count` batches over at least `seconds`, after `warm_up` batches that are not measured.

    `batches` gives the number of images of each batch as it is made; `wait` returns once what was started is done.
    """
    for _ in range(warm_up):
        next(batches)
    wait()
    begin, cpu_begin, images, made = now(), cpu(), 0, 0
    while made < count or now() < begin + seconds:
        images, made = images + next(batches), made + 1
    wait()
    return Rate(images / (now() - begin), 1000 * (cpu() - cpu_begin) / images)


def timed(
    act: Callable[[], object],
    wait: Callable[[], object] = lambda: None,
    now: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds that a call takes, by the clock `now`."""
    wait()
    begin = now()
    act()
    wait()
    return now() - begin
