"""Where Ray keeps its own small files: in the run's directory, on every store of `storage.uri.SCHEMES`."""

from typing import Any

import pyarrow.fs as pafs
from fsspec.implementations.arrow import ArrowFSWrapper

from dist_resnet.storage.uri import open_uri, opened_by_arrow


def of(uri: str) -> dict[str, Any]:
    """The storage options of Ray's RunConfig for a run's directory.

    Ray opens the schemes that Arrow parses; for others it is given the file system.
    """
    if opened_by_arrow(uri):
        return {"storage_path": uri}
    filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(_Reopened(uri)))
    return {"storage_path": open_uri(uri)[1], "storage_filesystem": filesystem}


class _Reopened(ArrowFSWrapper):
    """A file system that each process opens by its address with its own credentials; none are sent along."""

    cachable = False

    def __init__(self, uri: str) -> None:
        super().__init__(open_uri(uri)[0])
        self._uri = uri

    def __reduce__(self) -> tuple[type["_Reopened"], tuple[str]]:  # pyrefly: ignore
        return _Reopened, (self._uri,)
