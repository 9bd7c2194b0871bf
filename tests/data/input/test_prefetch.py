"""Generators that run ahead; oracle: the same generator run in place."""

import threading
import time
from collections.abc import Generator

import pytest

from dist_resnet.data.input.prefetch import Prefetched


def wait_until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def counting(log: list[str], length: int = 1000) -> Generator[int]:
    try:
        for number in range(length):
            log.append(f"made {number}")
            yield number
    finally:
        log.append("closed")


def test_the_items_come_in_order_and_the_thread_ends() -> None:
    before = threading.active_count()
    assert list(Prefetched(counting([], 50), 3)) == list(range(50))
    wait_until(lambda: threading.active_count() == before)


def test_no_more_is_made_ahead_than_asked_for() -> None:
    log: list[str] = []
    items = Prefetched(counting(log), 3)
    assert next(items) == 0
    # One was taken, three wait, one is held by the thread.
    wait_until(lambda: len(log) == 5)
    assert next(items) == 1
    wait_until(lambda: len(log) == 6)
    items.close()
    assert log[-1] == "closed"


def test_an_exception_comes_in_its_place_and_ends_the_items() -> None:
    def failing() -> Generator[int]:
        yield 1
        raise ValueError("a damaged image")

    items = Prefetched(failing(), 2)
    assert next(items) == 1
    with pytest.raises(ValueError, match="a damaged image"):
        next(items)
    with pytest.raises(StopIteration):
        next(items)


def test_dropping_the_last_reference_stops_the_thread() -> None:
    log: list[str] = []
    items = Prefetched(counting(log), 2)
    next(items)
    del items
    wait_until(lambda: log[-1] == "closed")


def test_close_may_be_called_twice_and_ends_the_items() -> None:
    items = Prefetched(counting([]), 2)
    items.close()
    items.close()
    assert list(items) == []
