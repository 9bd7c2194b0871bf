"""Class names that people take for the same: in two Unicode forms, or different only in case and spaces."""

import unicodedata
from collections.abc import Iterable, Sequence


def key(name: str) -> str:
    """The normal form of a name for comparison: some systems store an accented letter as two characters."""
    return unicodedata.normalize("NFC", name)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The first name that differs only in case and spaces; None without one."""
    return next((near for near in names if _folded(near) == _folded(name)), None)


def describe_alike(names: Sequence[str], what: str) -> list[str]:
    """A line about classes that differ only in case, spaces or Unicode form, if there are any; `what` has them."""
    known: dict[str, str] = {}
    pairs = [(first, name) for name in names if (first := known.setdefault(_folded(name), name)) != name]
    if not pairs:
        return []
    first, second = map(ascii, pairs[0])
    more = f", and so do {len(pairs) - 1} more" if len(pairs) > 1 else ""
    return [
        f"the classes {first} and {second} of the {what} differ only in case, spaces or Unicode form{more}; they are "
        "taken as different classes"
    ]


def _folded(name: str) -> str:
    return "".join(key(name).split()).casefold()
