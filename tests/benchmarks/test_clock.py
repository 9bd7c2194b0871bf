"""benchmarks/clock.py; oracle: clocks that are moved by hand, and a process's own count of its CPU time."""

import itertools
import subprocess
import sys
from collections.abc import Iterator

import clock


class ByHand:
    """A clock that each batch of images moves by half a second, and the CPU's by a quarter."""

    def __init__(self) -> None:
        self.now = self.cpu = 100.0
        self.made: list[int] = []

    def batches(self, *sizes: int) -> Iterator[int]:
        for size in itertools.cycle(sizes):
            self.now, self.cpu = self.now + 0.5, self.cpu + 0.25
            self.made.append(size)
            yield size


def test_the_rate_is_that_of_the_batches_after_the_warm_up() -> None:
    by_hand = ByHand()
    batches = itertools.chain([1000, 1000], by_hand.batches(30, 10))
    assert clock.rate(batches, warm_up=2, count=4, cpu=lambda: by_hand.cpu, now=lambda: by_hand.now) == (
        80 / 2,
        1000 * 1.0 / 80,
    )


def test_a_round_lasts_its_seconds_even_if_its_batches_are_made() -> None:
    by_hand = ByHand()
    rate = clock.rate(
        by_hand.batches(32), warm_up=1, count=2, seconds=3.2, cpu=lambda: by_hand.cpu, now=lambda: by_hand.now
    )
    assert rate.images_per_second == 64
    assert len(by_hand.made) == 1 + 7


def test_a_call_is_timed_with_what_it_began() -> None:
    by_hand = ByHand()
    queue = by_hand.batches(1)
    begun: list[int] = []
    assert (
        clock.timed(lambda: begun.append(1), wait=lambda: [next(queue) for _ in begun], now=lambda: by_hand.now) == 0.5
    )


def test_cpu_time_is_also_that_of_children_that_live() -> None:
    busy = "import time\nwhile time.process_time() < 0.3: pass\nprint(time.process_time(), flush=True); input()"
    begin = clock.cpu_seconds()
    with subprocess.Popen(
        [sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        spent = float(child.stdout.readline())
        found = clock.cpu_seconds() - begin
        child.communicate("\n")
    assert spent - 0.02 <= found < spent + 0.3
