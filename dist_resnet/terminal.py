"""A command and whoever started it: what is printed never decides how the command ends, and Ctrl-C ends it in a line.

Standard streams may be closed, broken, full or of an encoding that lacks most characters, and a file name may be of
bytes that are no text; a signal may come at any moment, in the middle of an import too.
"""

import codecs
import errno
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import CodeType, FrameType
from typing import Any, TextIO

from dist_resnet import interruption

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ERRORS = "dist_resnet.escaped"
_LONGEST_NAME = 4096
# A signal waits so long, in tries of so many seconds, for what is being written.
_SECONDS_TO_WRITE, _SECONDS_BETWEEN_TRIES = 1.0, 0.01


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM, `number`, has come."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def escaped(text: str | bytes) -> str:
    r"""A name as it can be printed: bytes that are no UTF-8 as backslash, x and two digits.

    >>> print(escaped(b"caf\xe9"), escaped("caf\udce9"), escaped("café"))
    caf\xe9 caf\xe9 café
    """
    encoded = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    return encoded.decode("utf-8", "backslashreplace")


def not_text(name: str | bytes) -> str:
    """What to say of a file's name whose bytes are no UTF-8, as Arrow and Parquet need."""
    return f"the name {escaped(name)} is no UTF-8; rename it, as convmv does for whole folders"


def said_of(error: UnicodeError) -> str:
    """What to say of what is no text, which is a file's name unless it is too long for one."""
    if not isinstance(error, (UnicodeDecodeError, UnicodeEncodeError)) or len(error.object) > _LONGEST_NAME:
        return str(error)
    return not_text(error.object)


def program() -> str | None:
    """The file name of the program that this process runs; None in a notebook, at a prompt or under `python -c`."""
    return os.path.basename(sys.argv[0]) if hasattr(sys.modules.get("__main__"), "__file__") else None


def check_working_directory() -> None:
    """Raises ValueError if the working directory was deleted or made anew: torch, for one, ends the process then."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise ValueError('the working directory is gone; cd to one that is there, such as by `cd "$PWD"`') from error


def open_streams() -> None:
    """Makes standard output and standard error take any text and lose what nobody can read, without an error.

    Characters that the stream's encoding lacks are escaped. A stream that was closed before is replaced by none, so
    that no file comes to have its descriptor. Streams that are not the process's own, such as a test's, stay.
    """
    codecs.register_error(_ERRORS, _escape)
    with open(os.devnull, "r+b", buffering=0) as nothing:
        for descriptor in range(3):
            try:
                os.fstat(descriptor)
            except OSError:
                os.dup2(nothing.fileno(), descriptor)
    sys.stdout, sys.stderr = _tolerant(sys.stdout, 1), _tolerant(sys.stderr, 2)


def output_loss() -> OSError | None:
    """Why what was printed on standard output did not arrive; None if it did."""
    buffer = getattr(sys.stdout, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    return raw.loss if isinstance(raw, _Tolerant) else None


@contextmanager
def ending_in_a_line(advice: str = "") -> Iterator[None]:
    """Within the block and after it, SIGINT and SIGTERM end the command in one line that ends in the advice.

    The first raises `Interrupted`, and at the block's end exits with 128 and the signal's number, 130 for SIGINT; one
    that comes during an import, which may swallow it, and every further one ends the process at once. Elsewhere than
    in the main thread, which alone hears signals, it only does so for a KeyboardInterrupt.
    """
    signals = _Signals(interruption.line(advice))
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            # One that is ignored, as after `nohup` or in the background of a script, stays so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signals.receive)
    try:
        yield
    except BaseException as error:
        # Ray exits with 15 on a SIGTERM that comes while it starts.
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM:
            signals.received = signal.SIGTERM
        # Libraries turn the exception into others; that a signal came decides.
        if signals.received is None and not isinstance(error, KeyboardInterrupt):
            raise
        number = signals.received or signal.SIGINT
        signals.received = number
        interruption.write(signals.line)
        raise SystemExit(128 + number) from None


@contextmanager
def keeping_handlers() -> Iterator[None]:
    """Undoes at the block's end what a library set as handlers of SIGINT and SIGTERM within it; also a decorator.

    Raises `Interrupted` then if a signal came and the library swallowed it, as compiled code can.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            if handler is not None:
                signal.signal(number, handler)
    for handler in earlier.values():
        owner = getattr(handler, "__self__", None)
        if isinstance(owner, _Signals) and owner.received is not None:
            raise Interrupted(owner.received)


class _Signals:
    """What has come, and what to do about it."""

    def __init__(self, line: str) -> None:
        self.line = line
        self.received: int | None = None
        self._seconds_waited = 0.0

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if self.received is None and _is_writing(frame) and self._seconds_waited < _SECONDS_TO_WRITE:
            # An exception there would have a line cut off, or written once more at the process's end.
            self._seconds_waited += _SECONDS_BETWEEN_TRIES
            again = threading.Timer(_SECONDS_BETWEEN_TRIES, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            return
        if self.received is None and not _is_importing(frame):
            self.received = number
            raise Interrupted(number)
        if self.received is None:
            interruption.write(self.line)
        os._exit(128 + number)


def _is_importing(frame: FrameType | None) -> bool:
    return any(code.co_filename == "<frozen importlib._bootstrap>" for code in _codes(frame))


def _is_writing(frame: FrameType | None) -> bool:
    return any(code is _Tolerant.write.__code__ for code in _codes(frame))


def _codes(frame: FrameType | None) -> Iterator[CodeType]:
    """What runs, from a frame outwards."""
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


class _Tolerant(io.FileIO):
    """A standard stream to which writing always succeeds."""

    loss: OSError | None = None

    def write(self, data: Any) -> int:
        """Writes, or forgets where that fails."""
        rest = memoryview(data)
        try:
            while rest:
                written = super().write(rest)
                if written is None:  # a terminal that some program before has set not to wait
                    select.select((), (self,), ())
                rest = rest[written or 0 :]
        except OSError as error:
            self.loss = error
        return len(data)


def _tolerant(stream: TextIO | None, descriptor: int) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8", errors=_ERRORS)
    if not isinstance(stream, io.TextIOWrapper) or _descriptor(stream) != descriptor:
        return stream
    with suppress(OSError):
        stream.flush()
    raw = _Tolerant(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),  # pyrefly: ignore
        encoding=stream.encoding,
        errors=_ERRORS,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _descriptor(stream: io.TextIOWrapper) -> int | None:
    """The stream's descriptor; None where it has none, as in memory, or is closed."""
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = escaped(error.object[error.start : error.end])
    return text.encode("ascii", "backslashreplace").decode(), error.end


def lost_output() -> str | None:
    """In words, what became of standard output where it broke otherwise than by its reader's end; else None."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        return None
    loss = output_loss()
    if loss is None or loss.errno in (errno.EPIPE, errno.EIO):
        return None
    return f"what it printed is lost ({loss.strerror})"
