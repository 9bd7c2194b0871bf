"""What messages say of errors and of long lists, in a line."""

from collections.abc import Sequence


def one_line(error: BaseException, *, most: int = 300) -> str:
    """What an error says in at most so many characters, its kind if it says nothing.

    >>> one_line(OSError("no such\\n  file")), one_line(ValueError())
    ('no such file', 'ValueError')
    """
    return " ".join(str(error).split())[:most] or type(error).__name__


def some(names: Sequence[str], *, most: int = 3) -> str:
    """The first names, and how many more there are.

    >>> some(["a", "b", "c"]), some(["a", "b", "c"], most=2), some([])
    ('a, b, c', 'a, b and 1 more', '')
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
