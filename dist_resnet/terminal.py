"""A command's output and signals: printing never changes its exit code, and Ctrl-C ends it with one line.

Standard streams may be closed, broken, full or in an encoding that lacks most characters; a file name may be bytes that
are not text; a signal may come at any moment, even during an import.
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
# A signal waits up to this long for a write to end, and checks this often.
_SECONDS_TO_WRITE, _SECONDS_BETWEEN_TRIES = 1.0, 0.01


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM, `number`, has come."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def escaped(text: str | bytes) -> str:
    r"""A name that can be printed: bytes that are not UTF-8 become backslash, x and two digits.

    >>> print(escaped(b"caf\xe9"), escaped("caf\udce9"), escaped("café"))
    caf\xe9 caf\xe9 café
    """
    encoded = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    return encoded.decode("utf-8", "backslashreplace")


def not_text(name: str | bytes) -> str:
    """The message about a file name whose bytes are not UTF-8, which Arrow and Parquet need."""
    return f"the name {escaped(name)} is not UTF-8; rename it (convmv renames whole folders)"


def said_of(error: UnicodeError) -> str:
    """The message about bytes that are not text: a file's name, unless they are too long for one."""
    if not isinstance(error, (UnicodeDecodeError, UnicodeEncodeError)) or len(error.object) > _LONGEST_NAME:
        return str(error)
    return not_text(error.object)


def program() -> str | None:
    """The file name of the program that this process runs; None in a notebook, at a prompt or under `python -c`."""
    return os.path.basename(sys.argv[0]) if hasattr(sys.modules.get("__main__"), "__file__") else None


def check_working_directory() -> None:
    """Raises ValueError if the working directory was deleted or recreated, because then torch ends the process."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise ValueError('the working directory is gone; cd to an existing one, such as by `cd "$PWD"`') from error


def open_streams() -> None:
    """Makes standard output and standard error accept any text, and discard without an error what cannot be written.

    Characters that the stream's encoding lacks are escaped. A closed stream is replaced by /dev/null, so that no file
    gets its descriptor. Streams that are not the process's own, such as a test's, stay.
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
    """Why text printed on standard output was lost; None if none was."""
    buffer = getattr(sys.stdout, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    return raw.loss if isinstance(raw, _Tolerant) else None


@contextmanager
def ending_in_a_line(advice: str = "") -> Iterator[None]:
    """Within the block and after it, SIGINT and SIGTERM end the command with one line, which ends with the advice.

    The first raises `Interrupted`; at the block's end the exit code is 128 plus the signal's number, 130 for SIGINT.
    One that comes during an import, which may swallow it, and every further one ends the process at once. Outside the
    main thread, where Python handles no signals, only a KeyboardInterrupt ends the command so.
    """
    signals = _Signals(interruption.line(advice))
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            # An ignored signal, as after `nohup` or in the background of a script, stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signals.receive)
    try:
        yield
    except BaseException as error:
        # Ray exits with 15 if a SIGTERM comes while it starts.
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM:
            signals.received = signal.SIGTERM
        # Libraries turn the exception into others, so only the received signal counts.
        if signals.received is None and not isinstance(error, KeyboardInterrupt):
            raise
        number = signals.received or signal.SIGINT
        signals.received = number
        interruption.write(signals.line)
        raise SystemExit(128 + number) from None


@contextmanager
def keeping_handlers() -> Iterator[None]:
    """Restores at the block's end the handlers of SIGINT and SIGTERM, which a library may change; also a decorator.

    Then raises `Interrupted` if a signal came and the library swallowed it, as compiled code can.
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
    """The handler of SIGINT and SIGTERM, and the first signal received."""

    def __init__(self, line: str) -> None:
        self.line = line
        self.received: int | None = None
        self._seconds_waited = 0.0

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        if self.received is None and _is_writing(frame) and self._seconds_waited < _SECONDS_TO_WRITE:
            # An exception during a write would cut a line off, or write it again at the process's end.
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
    """The running code, from a frame outwards."""
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


class _Tolerant(io.FileIO):
    """A standard stream on which writing always succeeds."""

    loss: OSError | None = None

    def write(self, data: Any) -> int:
        """Writes the data, or discards it if that fails."""
        rest = memoryview(data)
        try:
            while rest:
                written = super().write(rest)
                if written is None:  # an earlier program has made the terminal non-blocking
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
    """The stream's descriptor; None if it has none, as in memory, or is closed."""
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
    """A message if standard output was lost for another reason than its reader's end; else None."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        return None
    loss = output_loss()
    if loss is None or loss.errno in (errno.EPIPE, errno.EIO):
        return None
    return f"its output is lost ({loss.strerror})"
