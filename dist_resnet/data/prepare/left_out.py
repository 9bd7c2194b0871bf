"""Counts of what is left out of a set, one line for each reason."""

from collections import Counter
from dataclasses import dataclass, field

from dist_resnet.data.prepare.clutter import counted_as
from dist_resnet.wording import some

_COUNTED = 12


@dataclass
class LeftOut:
    """Counts of files and folders that were left out."""

    clutter: Counter[str] = field(default_factory=Counter)
    """Hidden and tools' files and folders, by name; the content of such a folder is not counted."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Files that are not images, by kind."""
    links: list[str] = field(default_factory=list)
    """Links to folders that are already read."""
    broken: list[str] = field(default_factory=list)
    """Broken links."""

    def skip(self, path: str) -> None:
        """Counts a hidden or tools' file or folder."""
        self.clutter[counted_as(path)] += 1

    def add(self, other: "LeftOut") -> None:
        """Adds another count."""
        self.clutter += other.clutter
        self.kinds += other.kinds
        self.links += other.links
        self.broken += other.broken

    def lines(self) -> list[str]:
        """A line for each reason."""
        lines = []
        if self.clutter:
            lines.append(f"{self.clutter.total()} hidden and tools' files and folders: {_counts(self.clutter)}")
        if self.kinds:
            lines.append(f"{self.kinds.total()} files that are not images: {_counts(self.kinds)}")
        if self.links:
            lines.append(f"{len(self.links)} links to folders that are already read: {some(sorted(self.links))}")
        if self.broken:
            lines.append(f"{len(self.broken)} broken links: {some(sorted(self.broken))}")
        return lines


def _counts(counter: Counter[str]) -> str:
    """The most frequent first, then by name: `Thumbs.db (3), .DS_Store (1)`."""
    ordered = sorted(counter.items(), key=lambda pair: (-pair[1], pair[0]))
    listed = ", ".join(f"{name} ({count})" for name, count in ordered[:_COUNTED])
    more = sum(count for _, count in ordered[_COUNTED:])
    return listed + (f" and {more} of other names" if more else "")
