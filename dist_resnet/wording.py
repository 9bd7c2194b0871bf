"""Errors, long lists and durations as text for one-line messages."""

from collections.abc import Sequence


def one_line(error: BaseException, *, most: int = 300) -> str:
    """An error's message in one line of at most `most` characters; its type if it has no message.

    >>> one_line(OSError("no such\\n  file")), one_line(ValueError())
    ('no such file', 'ValueError')
    """
    return " ".join(str(error).split())[:most] or type(error).__name__


def some(names: Sequence[str], *, most: int = 3) -> str:
    """The first `most` names, and the number of further ones.

    >>> some(["a", "b", "c"]), some(["a", "b", "c"], most=2), some([])
    ('a, b, c', 'a, b and 1 more', '')
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def clock(seconds: float | None) -> str:
    """A duration as hours, minutes and seconds.

    >>> clock(3725), clock(59.6), clock(None)
    ('1:02:05', '0:01:00', '?')
    """
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
