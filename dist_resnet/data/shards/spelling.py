"""Names of classes that people take for one: in two Unicode forms, or apart in nothing but case and spaces."""

import unicodedata
from collections.abc import Iterable, Sequence


def key(name: str) -> str:
    """What is compared of a name: some systems spell an accented letter as two characters."""
    return unicodedata.normalize("NFC", name)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """A name that differs in nothing but case and spaces."""
    return next((near for near in names if _folded(near) == _folded(name)), None)


def describe_alike(names: Sequence[str], what: str) -> list[str]:
    """A line on classes that differ in case, spaces or Unicode form alone, if any do; `what` has them, for the line."""
    known: dict[str, str] = {}
    pairs = [(first, name) for name in names if (first := known.setdefault(_folded(name), name)) != name]
    if not pairs:
        return []
    first, second = map(ascii, pairs[0])
    more = f", and so do {len(pairs) - 1} more" if len(pairs) > 1 else ""
    return [
        f"the classes {first} and {second} of the {what} differ in case, spaces or Unicode form alone{more}; they are "
        "taken for different ones"
    ]


def _folded(name: str) -> str:
    return "".join(key(name).split()).casefold()
