"""A run's directory, `STORAGE/NAME/`, on a local disk or an object store."""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote

import pyarrow.fs as pafs

from dist_resnet.terminal import not_text

RECIPE_FILE = "recipe.json"
SWEEP_FILE = "sweep.json"
SUMMARY_FILE = "summary.json"
_LOCAL = ("file", "local")
_CHUNK_BYTES = 16 << 20
# Taken for a path it would be a folder of that name in the working directory.
_HALF_A_URI = re.compile(r"(s3a?|gs|gcs|hdfs|abfss?|https?):(?!//[^/])|file:(?!///)", re.IGNORECASE)
# What is not quoted in a URI as people write it; nobody means a fragment.
_SAFE = "%/:?[]@!$&'()*+,;=~"
# A full disk still has room for a file in which there is nothing.
_MARK = b"writable\n" * 500


def absolute_uri(uri: str) -> str:
    """A local path made absolute with `~` expanded, so that it means the same in every process; URIs as they are.

    Raises ValueError for `~NAME` of nobody, for what lacks the slashes or the bucket of a URI, and where a relative
    path means nothing because the working directory is gone.
    """
    if _HALF_A_URI.match(uri):
        raise ValueError(f"{uri!r} is no whole URI; give s3://bucket/path, gs://bucket/path, or a local path")
    if "://" in uri:
        return uri
    path = os.path.expanduser(uri)
    if path.startswith("~"):
        raise ValueError(f"{uri!r} begins with a user of whom nothing is known here; give the whole path")
    try:
        path = os.path.abspath(path)
    except FileNotFoundError as error:
        raise ValueError(f"{uri!r} is relative to a working directory that is gone; give the whole path") from error
    return f"/{path.lstrip('/')}"


class RunDirectory:
    """Files below one local path or s3:// or gs:// URI, written whole or not at all.

    Raises ValueError where the URI names no file system that is known here. Picklable: it holds no connection until
    it is used.
    """

    def __init__(self, uri: str) -> None:
        uri = absolute_uri(uri)
        self.uri = (quote(uri, safe=_SAFE, errors="surrogateescape") if "://" in uri else uri).rstrip("/") or "/"
        self._opened: tuple[pafs.FileSystem, str] | None = None
        self._known = False
        self.open()
        # From now on a failure to open is the storage's, in another process for instance, and not the URI's.
        self._known = True

    def open(self) -> tuple[pafs.FileSystem, str]:
        """The file system and the path within it."""
        if self._opened is None:
            try:
                self._opened = pafs.FileSystem.from_uri(self.uri)
            except UnicodeEncodeError as error:
                raise ValueError(not_text(self.uri)) from error
            except (ValueError, NotImplementedError, OSError) as error:
                if self._known and isinstance(error, OSError):
                    raise
                raise ValueError(
                    f"storage {self.uri} cannot be opened ({error}); give a local path, s3://bucket/path or "
                    "gs://bucket/path"
                ) from error
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri, "_opened": None, "_known": True}

    @property
    def parent(self) -> "RunDirectory":
        """The storage that the run lies on."""
        location, options = self._split()
        return RunDirectory((location.rpartition("/")[0] or "/") + options)

    @property
    def name(self) -> str:
        """What the run is called on its storage."""
        name = self._split()[0].rpartition("/")[2]
        return unquote(name) if "://" in self.uri else name

    @property
    def is_local(self) -> bool:
        """Whether the files lie on a file system that can append and rename."""
        return self.open()[0].type_name in _LOCAL

    def check_present(self) -> None:
        """Raises FileNotFoundError where the directory is not, or no longer, that of a run, which has a recipe.

        Workers ask before they read or write: a folder below the mount point of a disk that is no longer mounted is
        not a run that has yet to begin.
        """
        if not self.exists(RECIPE_FILE):
            raise FileNotFoundError(f"{self.child(RECIPE_FILE)} is not there; is its disk mounted?")

    def check_kind(self, kind: Literal["run", "sweep", "probe"]) -> None:
        """Raises ValueError where the directory is that of something of another kind."""
        recipe = self.read_json(RECIPE_FILE)
        found = (
            "sweep" if self.exists(SWEEP_FILE) else None if recipe is None else "probe" if "probe" in recipe else "run"
        )
        if found not in (None, kind):
            raise ValueError(f"{self.uri} is that of a {found}; use another --execution.name for a {kind}")

    def path(self, name: str) -> str:
        """The path of `name` within the file system."""
        return f"{self.open()[1]}/{name}" if name else self.open()[1]

    def child(self, name: str) -> str:
        """The URI of `name`."""
        location, options = self._split()
        return f"{location.rstrip('/')}/{quote(name) if '://' in self.uri else name}{options}"

    def _split(self) -> tuple[str, str]:
        """The URI and, from a question mark on, its options, such as those of another S3 server."""
        location, question, options = self.uri.partition("?") if "://" in self.uri else (self.uri, "", "")
        return location, question + options

    def write(self, name: str, content: bytes) -> None:
        """Writes a file such that a reader, also after a crash, finds the old file or the whole new one."""
        filesystem, path = self.open()[0], self.path(name)
        if not self.is_local:
            with filesystem.open_output_stream(path) as stream:
                stream.write(content)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.{os.getpid()}.partial"
        try:
            with naming(path), open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):  # what it takes of a full disk
                os.unlink(temporary)
            raise
        _sync_folder(os.path.dirname(path))

    @contextlib.contextmanager
    def staged(self, name: str) -> Iterator[Path]:
        """A path on this machine for a large file; at the end of the block it becomes `name`, whole or not at all."""
        if not self.is_local:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "staged")
                yield path
                with path.open("rb") as source, self.open()[0].open_output_stream(self.path(name)) as target:
                    shutil.copyfileobj(source, target, _CHUNK_BYTES)
            return
        path = Path(self.path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            with naming(str(path)):
                yield temporary
            # Some libraries make files that their owner alone can read.
            temporary.chmod(0o644)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(str(path.parent))
        finally:
            temporary.unlink(missing_ok=True)

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """The content of a file from byte `start` on, at most `size` bytes. Raises FileNotFoundError."""
        with self.open()[0].open_input_file(self.path(name)) as file:
            file.seek(start)
            return file.read(size)

    def write_json(self, name: str, value: Any) -> None:
        """Writes a value as indented JSON."""
        self.write(name, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The object in a JSON file, or None if there is no file. Raises ValueError, naming it, if it holds none."""
        try:
            content = json.loads(self.read(name))
        except FileNotFoundError:
            return None
        except ValueError as error:  # no JSON, or no text at all
            raise ValueError(
                f"{self.child(name)} is damaged, it is no JSON ({error}); restore it from a copy"
            ) from None
        if not isinstance(content, dict):
            raise ValueError(f"{self.child(name)} is damaged, it holds no JSON object; restore it from a copy")
        return content

    def read_run(self) -> dict[str, Any]:
        """What `recipe.json` holds. Raises FileNotFoundError if the directory is not that of a run."""
        known = self.read_json(RECIPE_FILE)
        if known is None:
            raise FileNotFoundError(
                f"{self.uri} is not a run: it has no {RECIPE_FILE}; give the directory STORAGE/NAME of a run"
            )
        return known

    def list(self, name: str) -> list[tuple[str, int]]:
        """Name and size of each entry directly in a folder, sorted; a folder's size is -1. Empty where it is not."""
        filesystem, folder = self.open()[0], self.path(name).rstrip("/")
        # Of Google's store Arrow lists such folders alone as an empty object stands for, and nothing here makes those.
        selector = pafs.FileSelector(folder, recursive=filesystem.type_name == "gcs", allow_not_found=True)
        entries = {}
        for info in filesystem.get_file_info(selector):
            try:
                path = info.path
            except UnicodeDecodeError:
                continue  # Nothing here gives such names.
            entry, _, below = path[len(folder) + 1 :].partition("/")
            entries[entry] = info.size if info.is_file and not below else -1
        return sorted(entries.items())

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        return self.open()[0].get_file_info(self.path(name)).type != pafs.FileType.NotFound

    def delete(self, name: str) -> None:
        """Deletes a folder and all in it, or a file, if it is there."""
        filesystem, path = self.open()[0], self.path(name)
        kind = filesystem.get_file_info(path).type
        # An object store may list a folder's marker that is no object any more.
        with contextlib.suppress(FileNotFoundError):
            if kind == pafs.FileType.Directory:
                filesystem.delete_dir(path)
            elif kind == pafs.FileType.File:
                filesystem.delete_file(path)

    def check_writable(self) -> None:
        """Writes and removes a marker. Raises ValueError, saying why, where that fails."""
        marker = f".writable-{os.getpid()}"
        try:
            self.write(marker, _MARK)
            self.open()[0].delete_file(self.path(marker))
        except OSError as error:
            raise ValueError(
                f"storage {self.uri} cannot be written ({error}); make room or rights there, or give another "
                "path or URI: --execution.storage URI"
            ) from error


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Has an OSError of the block say which file it is about, where writing failed and not opening."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = path
        raise


def _sync_folder(path: str) -> None:
    """Makes a rename in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
