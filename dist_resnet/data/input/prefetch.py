"""A generator that runs ahead in a background thread, and stops when nobody needs it."""

import queue
import threading
from collections.abc import Generator
from typing import Generic, TypeVar

T = TypeVar("T")
_POLL_SECONDS = 0.1


class Prefetched(Generic[T]):
    """Items of a generator, made up to `ahead` in advance by a background thread.

    An exception of the generator is raised in place of its item. `close`, the end of the items, an exception and
    garbage collection stop the thread and close the generator in it.
    """

    def __init__(self, items: Generator[T], ahead: int) -> None:
        """`ahead`: finished items that may wait, at least 1."""
        self._queue: queue.Queue = queue.Queue(ahead)
        self._stop = threading.Event()
        # The thread must not hold this object, or it could never be collected.
        self._thread = threading.Thread(
            target=_produce, args=(items, self._queue, self._stop), name="dist_resnet-prefetch", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> "Prefetched[T]":
        """The items."""
        return self

    def __next__(self) -> T:
        """The next item; waits for it."""
        while True:
            if self._stop.is_set():
                raise StopIteration
            try:
                item, error = self._queue.get(timeout=_POLL_SECONDS)
                break
            except queue.Empty:  # slow, or closed by another thread meanwhile
                continue
        if error is None:
            return item
        self.close()
        raise error

    def close(self) -> None:
        """Stops the thread and waits for its end."""
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(_POLL_SECONDS / 10)

    def __del__(self) -> None:
        self._stop.set()


def _produce(items: Generator, finished: queue.Queue, stop: threading.Event) -> None:
    error: BaseException = StopIteration()
    try:
        for item in items:
            if not _put(finished, (item, None), stop):
                return
            del item
    except BaseException as raised:  # the consumer raises it
        error = raised
    finally:
        items.close()
    _put(finished, (None, error), stop)


def _put(finished: queue.Queue, entry: tuple, stop: threading.Event) -> bool:
    """Whether the entry was taken before the consumer went away."""
    while not stop.is_set():
        try:
            finished.put(entry, timeout=_POLL_SECONDS)
            return True
        except queue.Full:
            continue
    return False
