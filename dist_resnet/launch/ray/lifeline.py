"""Ends this process with a message soon after its Ray has ended; Ray itself ends it silently, within a minute."""

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
from dataclasses import dataclass
from typing import TypeVar

import psutil

from dist_resnet.launch.failures import RayEndedError
from dist_resnet.launch.ray import internals
from dist_resnet.terminal import program

T = TypeVar("T")

logger = logging.getLogger(__name__)

_SECONDS_TO_ANSWER = 5.0
# Seconds for which Ray's own processes wait for a lost head before they end this process too; 60 unless set.
_PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"
# The share of them after which this process ends itself.
_SHARE_OF_PATIENCE = 0.5
# An error raised this long before Ray's end is found counts as its result.
_SECONDS_TO_NOTICE = 3.0


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Seconds by which a lifeline works."""

    look: float = 2.0
    """Between two checks."""
    end: float = 20.0
    """From Ray's end to this process's, for journals and MLflow."""


class Lifeline:
    """Watches, in a thread, Ray's essential processes here and the head of its cluster, until it is closed.

    Ray is needed from the start, except between the end of one held call and the next.
    """

    def __init__(self, head: str, intervals: Intervals = Intervals()) -> None:
        """`head`: HOST:PORT. This process is connected to Ray."""
        self._intervals = intervals
        self.head, self._closed = head, threading.Event()
        self._ended: Future = Future()
        self._needed, self._holding = True, False
        self._processes = _Processes(internals.essential_processes())
        self._folder = internals.sockets_folder()
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()
        # Runs before Ray's handler, which ends this process's own Ray or waits for one that has ended.
        atexit.register(self._at_exit)

    def close(self) -> None:
        """Stops watching: Ray may end from now on."""
        self._closed.set()

    def hold(self, call: Callable[[], T]) -> T:
        """What `call` returns, run in a thread. Raises RayEndedError if Ray ends before."""
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
            if self._closed.wait(self._intervals.look):
                return
        if self._closed.is_set():
            return
        # Ray's own messages about its end add nothing.
        logging.getLogger("ray").setLevel(logging.CRITICAL + 1)
        logger.error(
            "the Ray that %s uses has ended (%s), by `ray stop`, a kill or lack of memory; the same command continues "
            "from the newest checkpoint",
            *(program() or "this process", reason),
        )
        self._ended.set_result(None)
        if self._holding:
            time.sleep(self._intervals.end)
        self._at_exit()

    def _reason(self) -> str:
        """Blocks until Ray has ended, and says which part of it has; or until this is closed."""
        last_answer, patience = time.monotonic(), _SHARE_OF_PATIENCE * float(os.environ.get(_PATIENCE, 60))
        while not self._closed.is_set():
            if gone := self._processes.first_to_end(self._intervals.look):
                return f"its {gone} is gone"
            self._look_for_folder()
            if self._processes.include_head or internals.head_answers(self.head, _SECONDS_TO_ANSWER):
                last_answer = time.monotonic()
            elif time.monotonic() - last_answer > patience:
                return f"its head at {self.head} has not answered for {patience:.0f} s"
        return ""

    def _look_for_folder(self) -> None:
        """Logs once that Ray's folder is gone; running workers continue."""
        if self._folder is not None and not os.path.isdir(self._folder):
            logger.error(
                "Ray's folder %s was deleted, perhaps by a cleaner of temporary files: no worker can start from now "
                "on; stop and give the same command again, with RAY_TMPDIR set to a folder that nothing cleans",
                self._folder,
            )
            self._folder = None

    def _at_exit(self) -> None:
        """Ends the process at once if Ray has ended: disconnecting from it would hang."""
        self.close()
        if self._ended.done():
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)


class _Processes:
    """Processes of this machine whose end is noticed at once."""

    def __init__(self, processes: Sequence[psutil.Process]) -> None:
        self._poll, self._names = select.poll(), {}
        for process in processes:
            # One may have ended just now; others of the cluster will follow.
            with contextlib.suppress(ProcessLookupError, psutil.Error):
                name = f"{process.name()}, process {process.pid},"
                descriptor = os.pidfd_open(process.pid)
                self._names[descriptor] = name
                self._poll.register(descriptor, select.POLLIN)

    @property
    def include_head(self) -> bool:
        """Whether they include the head's server."""
        return any(name.startswith("gcs_server") for name in self._names.values())

    def first_to_end(self, seconds: float) -> str | None:
        """The name of one that has ended, or ends within `seconds`; else None."""
        ended = self._poll.poll(1000 * seconds)
        return self._names[ended[0][0]] if ended else None


def in_a_lasting_thread(call: Callable[[], T]) -> T:
    """What `call` returns, run in the main thread if this is it, else in one that lasts as long as the process.

    Linux ends Ray's processes with the thread that started them, and threads of a notebook or a server end early.
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
    """What `call` will return, run in its own thread: Ray's calls block signals, so the main thread must stay free."""
    outcome: Future[T] = Future()
    threading.Thread(target=_settle, args=(outcome, call), name="ray", daemon=True).start()
    return outcome


def _settle(outcome: Future[T], call: Callable[[], T]) -> None:
    try:
        outcome.set_result(call())
    except BaseException as error:
        outcome.set_exception(error)
