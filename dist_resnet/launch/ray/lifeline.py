"""Ends this process with a word soon after the Ray that it uses; Ray itself does so in silence, within a minute."""

import atexit
import contextlib
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TypeVar

import psutil

from dist_resnet.launch.failures import RayEndedError
from dist_resnet.launch.ray import internals
from dist_resnet.terminal import program

T = TypeVar("T")

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_TO_ANSWER = 5.0
# For how many seconds Ray's own processes wait for a head that went away, 60 unless set.
_PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"
# Of the time that Ray's own processes wait for the head, after which they end this process too.
_SHARE_OF_PATIENCE = 0.5
# In which an error that Ray's end has brought about is taken for what it is.
_SECONDS_TO_NOTICE = 3.0
# For journals and MLflow; whatever Ray still does then is cut off.
_SECONDS_TO_END = 20.0


class Lifeline:
    """Watches, in a thread, the processes that Ray lives by here and the head of its cluster, until it is closed.

    Ray is needed from the beginning on, except between a call that was held to its end and the next.
    """

    def __init__(self, head: str) -> None:
        """`head`: HOST:PORT. This process is connected to Ray."""
        self.head, self._closed = head, threading.Event()
        self._ended: Future = Future()
        self._needed, self._holding = True, False
        self._processes = _Processes(internals.essential_processes())
        self._folder = internals.sockets_folder()
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()
        # Before Ray's own, which ends a Ray of this process's own, or waits for one that is no more.
        atexit.register(self._at_exit)

    def close(self) -> None:
        """Ray is about to be left, and may end."""
        self._closed.set()

    def hold(self, call: Callable[[], T]) -> T:
        """What `call` returns, called in a thread. Raises RayEndedError if Ray ends before."""
        self._needed = self._holding = True
        outcome = in_a_thread(call)
        wait((outcome, self._ended), return_when=FIRST_COMPLETED)
        if outcome.done() and outcome.exception() is not None:
            wait((self._ended,), timeout=_SECONDS_TO_NOTICE)
        if self._ended.done():
            raise RayEndedError("the Ray in use has ended, as the log says; the same call continues the run")
        result = outcome.result()
        self._needed = False
        return result

    def _watch(self) -> None:
        reason = self._reason()
        while not self._needed:
            if self._closed.wait(_SECONDS_BETWEEN_LOOKS):
                return
        if self._closed.is_set():
            return
        # Nobody needs what Ray has to say of it.
        logging.getLogger("ray").setLevel(logging.CRITICAL + 1)
        logger.error(
            "the Ray that %s uses has ended (%s), by `ray stop`, a kill or for want of memory; the same command "
            "continues from what is on the storage",
            *(program() or "this process", reason),
        )
        self._ended.set_result(None)
        if self._holding:
            time.sleep(_SECONDS_TO_END)
        self._at_exit()

    def _reason(self) -> str:
        """Blocks until Ray has ended, and says what of it has; or until this is closed."""
        last_answer, patience = time.monotonic(), _SHARE_OF_PATIENCE * float(os.environ.get(_PATIENCE, 60))
        while not self._closed.is_set():
            if gone := self._processes.first_to_end(_SECONDS_BETWEEN_LOOKS):
                return f"its {gone} is gone"
            self._look_for_folder()
            if self._processes.include_head or internals.head_answers(self.head, _SECONDS_TO_ANSWER):
                last_answer = time.monotonic()
            elif time.monotonic() - last_answer > patience:
                return f"its head at {self.head} has not answered for {patience:.0f} s"
        return ""

    def _look_for_folder(self) -> None:
        """Says once that Ray's folder is gone; what has begun by then goes on."""
        if self._folder is not None and not os.path.isdir(self._folder):
            logger.error(
                "Ray's folder %s is gone, as a cleaner of temporary files may have it: no worker can start from now "
                "on; stop and give the same command again, with RAY_TMPDIR as a folder that nothing cleans",
                self._folder,
            )
            self._folder = None

    def _at_exit(self) -> None:
        """Ends the process at once if Ray has ended: to leave it would be to wait for it."""
        self.close()
        if self._ended.done():
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)


class _Processes:
    """Processes of this machine, whose end is noticed at once."""

    def __init__(self, processes: Sequence[psutil.Process]) -> None:
        self._poll, self._names = select.poll(), {}
        for process in processes:
            # One that has ended since is a cluster that is ending.
            with contextlib.suppress(ProcessLookupError, psutil.Error):
                name = f"{process.name()}, process {process.pid},"
                descriptor = os.pidfd_open(process.pid)
                self._names[descriptor] = name
                self._poll.register(descriptor, select.POLLIN)

    @property
    def include_head(self) -> bool:
        """Whether the head's server is one of them."""
        return any(name.startswith("gcs_server") for name in self._names.values())

    def first_to_end(self, seconds: float) -> str | None:
        """Which of them has ended, or ends within so many seconds."""
        ended = self._poll.poll(1000 * seconds)
        return self._names[ended[0][0]] if ended else None


def in_a_lasting_thread(call: Callable[[], T]) -> T:
    """What `call` returns, called in the main thread if this is it, else in one that lasts as long as the process.

    Linux ends the processes of a Ray with the thread that started them, and a notebook's or a server's threads end.
    """
    if threading.current_thread() is threading.main_thread():
        return call()
    outcome: Future[T] = Future()

    def work() -> None:
        _settle(outcome, call)
        threading.Event().wait()

    threading.Thread(target=work, name="ray's parent", daemon=True).start()
    return outcome.result()


def in_a_thread(call: Callable[[], T]) -> Future[T]:
    """What `call` will return, called in a thread of its own: Ray's calls do not hear signals, the main thread does."""
    outcome: Future[T] = Future()
    threading.Thread(target=_settle, args=(outcome, call), name="ray", daemon=True).start()
    return outcome


def _settle(outcome: Future[T], call: Callable[[], T]) -> None:
    try:
        outcome.set_result(call())
    except BaseException as error:
        outcome.set_exception(error)
