"""Images by where they are stored, in a fixed order, which blocks of them keep."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dist_resnet.storage.uri import open_uri, uri_of


@dataclass(frozen=True, kw_only=True)
class Files:
    """Image files of one file system."""

    uri: str
    """An address on their file system, with the options of its store."""
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, start: int, stop: int) -> "Files":
        """The images start .. stop - 1."""
        return replace(self, paths=self.paths[start:stop])

    def names(self) -> list[str]:
        """The address of each image: a local path or a URI."""
        filesystem, _ = open_uri(self.uri)
        return [uri_of(filesystem, path) for path in self.paths]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of one row group of a Parquet file."""

    uri: str
    """An address on the file's file system, with the options of its store."""
    file: str
    """The file's path."""
    columns: tuple[str, str | None, str | None]
    """The columns of images, of their bytes and of their paths."""
    group: int
    """The row group's number."""
    first: int
    """The group's first row in the file."""
    start: int
    """The first row in the group."""
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def take(self, start: int, stop: int) -> "Rows":
        """The images start .. stop - 1."""
        return replace(self, start=self.start + start, stop=min(self.start + stop, self.stop))

    def names(self) -> list[str]:
        """`FILE#ROW` for each image; rows count from 0 through the file."""
        filesystem, _ = open_uri(self.uri)
        address = uri_of(filesystem, self.file)
        return [f"{address}#{self.first + row}" for row in range(self.start, self.stop)]


Images = Files | Rows


def cut(images: Sequence[Images], size: int) -> Iterator[list[Images]]:
    """The images in their order, `size` at a time; fewer only at the end."""
    block: list[Images] = []
    room = size
    for part in images:
        start = 0
        while start < len(part):
            taken = part.take(start, min(start + room, len(part)))
            block.append(taken)
            start, room = start + len(taken), room - len(taken)
            if not room:
                yield block
                block, room = [], size
    if block:
        yield block


def count(images: Sequence[Images]) -> int:
    """The number of images."""
    return sum(map(len, images))
