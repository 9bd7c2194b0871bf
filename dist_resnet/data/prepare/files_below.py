"""The files below a folder, found by what a table says of them."""

from collections.abc import Iterator

import pyarrow.fs as pafs

from dist_resnet.data.image.kinds import is_named_image
from dist_resnet.data.prepare.left_out import LeftOut
from dist_resnet.data.prepare.tree import leads_back, walk


class FilesBelow:
    """The files below a folder, found by their paths, the ends of their paths, or their names without ending."""

    def __init__(self, filesystem: pafs.FileSystem, folder: str) -> None:
        self.folder = folder
        self.left = LeftOut()
        """Counts of hidden and tools' files."""
        self.sizes: dict[str, int] = dict(sorted(_walk(filesystem, folder, self.left)))
        """The bytes of each file, by its path below the folder."""
        self._by_name: dict[str, list[str]] = {}
        for path in self.sizes:
            name = path.rpartition("/")[2]
            self._by_name.setdefault(name, []).append(path)
            if is_named_image(name):
                self._by_name.setdefault(name.rpartition(".")[0], []).append(path)

    def find(self, text: str) -> list[str]:
        """The paths that end in a text, with or without an image's ending.

        If one is exactly the text, or in the folder itself, only that one.
        """
        text = text.replace("\\", "/").removeprefix("./")
        ends = f"/{text}"
        found = [
            path
            for path in self._by_name.get(text.rpartition("/")[2], [])
            if f"/{path}".endswith(ends) or f"/{path.rpartition('.')[0]}".endswith(ends)
        ]
        exact = [path for path in found if path == text] or [path for path in found if path.rpartition(".")[0] == text]
        return exact or found


def _walk(filesystem: pafs.FileSystem, root: str, left: LeftOut) -> Iterator[tuple[str, int]]:
    """(path below the root, bytes) of each file, each folder once; links are followed."""
    waiting, known = [""], set()
    while waiting:
        place = waiting.pop()
        for one in walk(filesystem, f"{root}/{place}".rstrip("/"), left):
            here = f"{place}{one.place}"
            if one.real and one.real in known:
                left.links.append(f"{root}/{here}".rstrip("/"))
                continue
            known.add(one.real)
            yield from ((f"{here}{name}", size) for name, size in one.files)
            back = [link for link in one.links if leads_back(f"{root}/{here}{link}")]
            left.links += [f"{root}/{here}{link}" for link in back]
            waiting += [f"{here}{link}/" for link in one.links if link not in back]
