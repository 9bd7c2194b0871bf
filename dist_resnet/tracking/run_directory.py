"""A run's directory, `STORAGE/NAME/`, on a local disk or an object store."""

import contextlib
import os
from pathlib import Path
from typing import Any, Literal

import pyarrow.fs as pafs

from dist_resnet.storage import files
from dist_resnet.storage.uri import absolute_uri, child_uri, is_local, list_entries, name_of, open_uri, parent_uri
from dist_resnet.terminal import escaped

RECIPE_FILE = "recipe.json"
SWEEP_FILE = "sweep.json"
SUMMARY_FILE = "summary.json"
# A full disk still accepts an empty file.
_MARK = b"writable\n" * 500


class RunDirectory:
    """Files under one local path or object-store URI, written completely or not at all.

    Raises ValueError if the URI's file system is unknown. Picklable: it holds no connection until it is used.
    """

    def __init__(self, uri: str) -> None:
        self.uri = absolute_uri(uri).rstrip("/") or "/"
        self._opened: tuple[pafs.FileSystem, str] | None = None
        self._known = False
        self.open()
        # From now on a failure to open, such as in another process, is the storage's and not the URI's.
        self._known = True

    def open(self) -> tuple[pafs.FileSystem, str]:
        """The file system and the path within it."""
        if self._opened is None:
            try:
                self._opened = open_uri(self.uri)
            except ValueError as error:
                if self._known and isinstance(error.__cause__, OSError):
                    raise error.__cause__ from None
                raise
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri, "_opened": None, "_known": True}

    @property
    def parent(self) -> "RunDirectory":
        """The storage that the run is on."""
        return RunDirectory(parent_uri(self.uri))

    @property
    def name(self) -> str:
        """The run's name on its storage."""
        return name_of(self.uri)

    @property
    def is_local(self) -> bool:
        """Whether the files are on a file system that can append and rename."""
        return is_local(self.open()[0])

    def check_present(self) -> None:
        """Raises FileNotFoundError if the directory has no recipe.

        Workers check before they read or write: an unmounted disk leaves an empty folder, which must not be taken for a
        new run.
        """
        if not self.exists(RECIPE_FILE):
            raise FileNotFoundError(f"{self.child(RECIPE_FILE)} is missing; is its disk mounted?")

    def check_kind(self, kind: Literal["run", "sweep", "probe"]) -> None:
        """Raises ValueError if the directory belongs to something of another kind."""
        recipe = self.read_json(RECIPE_FILE)
        found = (
            "sweep" if self.exists(SWEEP_FILE) else None if recipe is None else "probe" if "probe" in recipe else "run"
        )
        if found not in (None, kind):
            raise ValueError(f"{self.uri} is the directory of a {found}; use another --execution.name for a {kind}")

    def path(self, name: str) -> str:
        """The path of `name` within the file system."""
        return f"{self.open()[1]}/{name}" if name else self.open()[1]

    def child(self, name: str) -> str:
        """The URI of `name`."""
        return child_uri(self.uri, name)

    def write(self, name: str, content: bytes) -> None:
        """Writes a file atomically: a reader, also after a crash, finds the old file or the complete new one."""
        files.write_bytes(self.open()[0], self.path(name), content)

    def staged(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """A path on this machine for a large file, which becomes `name` atomically at the end of the block."""
        return files.staged(self.open()[0], self.path(name))

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """The content of a file from byte `start`, at most `size` bytes. Raises FileNotFoundError."""
        return files.read_bytes(self.open()[0], self.path(name), start, size)

    def write_json(self, name: str, value: Any) -> None:
        """Writes a value as indented JSON."""
        files.write_json(self.open()[0], self.path(name), value, indent=2)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The object in a JSON file; None if there is no file. Raises ValueError, naming the file, if it has none."""
        content = files.read_json(self.open()[0], self.path(name), called=self.child(name))
        if not isinstance(content, dict | None):
            raise ValueError(f"{self.child(name)} is damaged, it has no JSON object; restore it from a copy")
        return content

    def read_run(self) -> dict[str, Any]:
        """The content of `recipe.json`. Raises FileNotFoundError if the directory is not a run's."""
        known = self.read_json(RECIPE_FILE)
        if known is None:
            raise FileNotFoundError(
                f"{self.uri} is not a run: it has no {RECIPE_FILE}; give the directory STORAGE/NAME of a run"
            )
        return known

    def list(self, name: str) -> list[tuple[str, int]]:
        """Name and size of each direct entry of a folder, sorted; a folder's size is -1. Empty without the folder."""
        return [
            (entry.name, entry.size if entry.kind == pafs.FileType.File else -1)
            for entry in list_entries(self.open()[0], self.path(name))
            if escaped(entry.name) == entry.name  # This project writes no other names.
        ]

    def exists(self, name: str) -> bool:
        """Whether the file or folder exists."""
        return files.exists(self.open()[0], self.path(name))

    def delete(self, name: str) -> None:
        """Deletes a file, or a folder with its content, if it exists."""
        files.delete(self.open()[0], self.path(name))

    def check_writable(self) -> None:
        """Writes and removes a marker file. Raises ValueError, with the reason, if that fails."""
        marker = f".writable-{os.getpid()}"
        try:
            self.write(marker, _MARK)
            self.open()[0].delete_file(self.path(marker))
        except OSError as error:
            raise ValueError(
                f"storage {self.uri} cannot be written ({error}); free some space, correct its permissions, or give "
                "another path or URI: --execution.storage URI"
            ) from error
