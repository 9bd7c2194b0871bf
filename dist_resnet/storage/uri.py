"""Addresses of files: local paths and URIs of object stores, joined, opened and listed.

`SCHEMES` describes each kind of storage; a new kind is a new entry.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from dist_resnet.terminal import escaped, not_text
from dist_resnet.wording import one_line

_URI = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# Characters that are not quoted in a URI as people write it; `#` is quoted, for nobody means a fragment.
_SAFE, _BRACKETS = "%/:?@!$&'()*+,;=~", "[]"
_SAFE_IN_NAMES = "/*[]!~="
_SECRET_OPTIONS = "password|secret_key|account_key|client_secret|sas_token|sig"


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A kind of storage."""

    names: tuple[str, ...]
    """What its URIs have before `://`; the first is the usual one."""
    example: str
    """An address for messages."""
    type_name: str
    """Arrow's name of the file system."""
    open: Callable[[str], tuple[pafs.FileSystem, str]] = pafs.FileSystem.from_uri
    """Gives the file system of a quoted URI and the path in it; raises ValueError or OSError if there is none."""
    credentials: str = ""
    """The environment variables for credentials, for messages."""
    lists_folders: bool = True
    """Whether Arrow lists folders that have no marker object; this package creates none."""
    appears_whole: bool = True
    """Whether an object that is being written is not there before all of it is."""
    folders_must_exist: bool = False
    """Whether a file is written only into a folder that is there, as on a disk; object stores have none."""
    has_account: bool = False
    """Whether the part before an @ is a container and not a user."""


def _open_local(uri: str) -> tuple[pafs.FileSystem, str]:
    path = unquote(uri.partition("?")[0].removeprefix("file://")) if is_uri(uri) else uri
    if escaped(path) != path:
        raise ValueError(not_text(path))
    return pafs.LocalFileSystem(), path


def _open_azure(uri: str) -> tuple[pafs.FileSystem, str]:
    """Opens az://CONTAINER/PATH, also as abfs and abfss, or abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/PATH."""
    parts = urlsplit(uri)
    before, at, after = parts.netloc.rpartition("@")
    container, host = (before, after) if at else (after, "")
    if ":" in container:
        raise ValueError("an address must not contain a key; set AZURE_STORAGE_KEY")
    account, _, domain = host.partition(".")
    account = account or os.environ.get("AZURE_STORAGE_ACCOUNT", "")
    if not account:
        raise ValueError("set AZURE_STORAGE_ACCOUNT, or give abfs://container@ACCOUNT.dfs.core.windows.net/path")
    options = dict(parse_qsl(parts.query))
    if unknown := options.keys() - {"blob_storage_authority", "blob_storage_scheme"}:
        raise ValueError(
            f"unknown option {min(unknown)}; the options are blob_storage_authority and blob_storage_scheme"
        )
    # Sovereign clouds have other domains, each with both services.
    suffix = domain.partition(".")[2]
    authority = options.get("blob_storage_authority")
    protocol = options.get("blob_storage_scheme")
    key, sas = (os.environ.get(f"AZURE_STORAGE_{name}") for name in ("KEY", "SAS_TOKEN"))
    filesystem = pafs.AzureFileSystem(
        account,
        account_key=key or None,
        sas_token=None if key else sas or None,
        blob_storage_authority=authority or (f".blob.{suffix}" if suffix else None),
        dfs_storage_authority=authority or (f".dfs.{suffix}" if suffix else None),
        blob_storage_scheme=protocol,
        dfs_storage_scheme=protocol,
    )
    if not key and not sas:
        # A failed login raises here only: on the container itself, or later, it makes Arrow end the process.
        try:
            filesystem.get_file_info(f"{container}/login")
        except pa.ArrowException as error:
            raise OSError(f"set AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, or log in: {error}") from error
    return filesystem, container + unquote(parts.path)


SCHEMES = (
    Scheme(names=("file",), example="a local path", type_name="local", open=_open_local),
    Scheme(
        names=("s3",),
        example="s3://bucket/path",
        type_name="s3",
        credentials="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
    Scheme(
        names=("gs", "gcs"),
        example="gs://bucket/path",
        type_name="gcs",
        credentials="GOOGLE_APPLICATION_CREDENTIALS",
        lists_folders=False,
    ),
    Scheme(
        names=("az", "abfs", "abfss"),
        example="az://container/path",
        type_name="abfs",
        open=_open_azure,
        credentials="AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY",
        appears_whole=False,
        has_account=True,
    ),
)
_LOCAL = SCHEMES[0]
_BY_NAME = {name: scheme for scheme in SCHEMES for name in scheme.names}
_BY_TYPE = {scheme.type_name: scheme for scheme in SCHEMES}
ADDRESSES = f"{', '.join(scheme.example for scheme in SCHEMES[:-1])} or {SCHEMES[-1].example}"
"""The addresses that are accepted, for messages."""

# Incomplete URIs, which would otherwise become folders of that name in the working directory.
_HALF_A_URI = re.compile(
    rf"({'|'.join([*_BY_NAME.keys() - {'file'}, 's3a', 'hdfs', 'https?'])}):(?!//[^/])|file:(?!///)", re.IGNORECASE
)
_ACCOUNTS = "|".join(name for scheme in SCHEMES if scheme.has_account for name in scheme.names)
_USER = re.compile(rf"(?<![\w+.-])(?!(?:{_ACCOUNTS})://[^/\s:]*@)([\w+.-]+)://[^/\s]*@")


def is_uri(address: str) -> bool:
    """Whether an address is a URI, such as that of an object store, and not a local path."""
    return bool(_URI.match(address))


def absolute_uri(uri: str) -> str:
    """A local path made absolute with `~` expanded, so that it means the same in every process; a URI quoted.

    Raises ValueError for `~NAME` of an unknown user, for a URI without slashes or bucket, and for a relative path if
    the working directory no longer exists.
    """
    if _HALF_A_URI.match(uri):
        raise ValueError(f"{uri!r} is an incomplete URI; give {ADDRESSES}")
    if is_uri(uri):
        return quote(uri, safe=_SAFE + _BRACKETS, errors="surrogateescape")
    path = os.path.expanduser(uri)
    if path.startswith("~"):
        raise ValueError(f"{uri!r} begins with an unknown user; give the full path")
    try:
        path = os.path.abspath(path)
    except FileNotFoundError as error:
        raise ValueError(
            f"{uri!r} is relative to a working directory that no longer exists; give the full path"
        ) from error
    return f"/{path.lstrip('/')}"


def open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a local path or URI, and the path in it, with its wildcards.

    Raises ValueError if the scheme is unknown or the file system cannot be opened.
    """
    uri = absolute_uri(uri)
    if not is_uri(uri):
        return _LOCAL.open(uri)
    location, options = _split_options(uri)
    name, _, rest = location.partition("://")
    # Arrow does not accept wildcards in a URI.
    fixed = rest[: match.start()].rpartition("/")[0] if (match := re.search(r"[*\[]", rest)) else rest
    try:
        if name.lower() not in _BY_NAME:
            raise ValueError(f"unknown scheme {name}://")
        filesystem, path = _BY_NAME[name.lower()].open(f"{name.lower()}://{quote(fixed, safe=_SAFE)}{options}")
    except (ValueError, OSError, ImportError, pa.ArrowException) as error:
        address, reason = without_credentials(uri), without_credentials(one_line(error))
        raise ValueError(f"{address} cannot be opened ({reason}); give {ADDRESSES}") from error
    return filesystem, (path + unquote(rest[len(fixed) :])).rstrip("/") or "/"


def opened_by_arrow(uri: str) -> bool:
    """Whether Arrow itself opens an address: a local path, or a URI of a scheme that it parses.

    >>> opened_by_arrow("/runs"), opened_by_arrow("s3://bucket/runs"), opened_by_arrow("az://container/runs")
    (True, True, False)
    """
    scheme = _BY_NAME.get(uri.partition("://")[0].lower(), _LOCAL) if is_uri(uri) else _LOCAL
    return scheme is _LOCAL or scheme.open is pafs.FileSystem.from_uri


def child_uri(uri: str, name: str) -> str:
    """The address of `name`, which may have wildcards, in the folder at a local path or URI.

    >>> child_uri("s3://bucket/set?region=eu-west-1", "a run")
    's3://bucket/set/a%20run?region=eu-west-1'
    """
    location, options = _split_options(uri)
    return f"{location.rstrip('/')}/{quote(name, safe=_SAFE_IN_NAMES) if is_uri(uri) else name}{options}"


def parent_uri(uri: str) -> str:
    """The address of the folder that holds a file or folder.

    >>> parent_uri("s3://bucket/set/train?region=eu-west-1"), parent_uri("/set")
    ('s3://bucket/set?region=eu-west-1', '/')
    """
    location, options = _split_options(uri)
    return (location.rpartition("/")[0] or "/") + options


def name_of(uri: str) -> str:
    """The last part of an address: the name of the file or folder.

    >>> name_of("s3://bucket/a%20run?region=eu-west-1"), name_of("/runs/a%20run")
    ('a run', 'a%20run')
    """
    name = _split_options(uri)[0].rpartition("/")[2]
    return unquote(name) if is_uri(uri) else name


def uri_of(filesystem: pafs.FileSystem, path: str) -> str:
    """The address of a path in a file system that `open_uri` opened, without the options of its store."""
    scheme = _BY_TYPE[filesystem.type_name]
    return path if scheme is _LOCAL else f"{scheme.names[0]}://{quote(path, safe=_SAFE_IN_NAMES)}"


def is_local(filesystem: pafs.FileSystem) -> bool:
    """Whether the file system is a local one, which can append and rename."""
    return isinstance(filesystem, pafs.LocalFileSystem)


def lists_folders(filesystem: pafs.FileSystem) -> bool:
    """Whether a listing of a folder contains its subfolders, and not only the files below them."""
    return _known(filesystem).lists_folders


def folders_must_exist(filesystem: pafs.FileSystem) -> bool:
    """Whether the folder of a file has to be made before the file is."""
    return _known(filesystem).folders_must_exist


def appears_whole(filesystem: pafs.FileSystem) -> bool:
    """Whether a file only appears there when it is completely written."""
    return not is_local(filesystem) and _known(filesystem).appears_whole


class Entry(NamedTuple):
    """A file or folder in a folder; bytes of its name that are not UTF-8 are surrogates."""

    name: str
    kind: pafs.FileType
    size: int
    """Bytes, of a file."""


def list_entries(filesystem: pafs.FileSystem, folder: str, *, folders: bool = True) -> list[Entry]:
    """The entries of a folder, sorted by name; none if there is no such folder.

    Without `folders`, subfolders may be left out, and the listing is one request, however much is below the folder.
    """
    folder = folder.rstrip("/")
    is_deep = folders and not lists_folders(filesystem)
    entries = {}
    for info in filesystem.get_file_info(pafs.FileSelector(folder or "/", recursive=is_deep, allow_not_found=True)):
        name, _, below = path_of(info)[len(folder) + 1 :].partition("/")
        kind = pafs.FileType.Directory if below else info.type
        if name:
            entries[name, kind.value] = Entry(name, kind, 0 if below else info.size or 0)
    return [entries[key] for key in sorted(entries)]


def path_of(info: pafs.FileInfo) -> str:
    """The path of a file or folder; bytes of a name that are not UTF-8 are surrogates."""
    try:
        return info.path
    except UnicodeDecodeError as error:
        return error.object.decode("utf-8", "surrogateescape")


def check_no_password(name: str, uri: str) -> None:
    """Raises ValueError if an address contains a secret, which would appear in logs, journals and tags."""
    if re.search(rf"://[^/\s]*:[^/\s]*@|[?&]({_SECRET_OPTIONS})=", uri):
        scheme = _BY_NAME.get(uri.partition("://")[0].lower(), _LOCAL)
        such_as = f", such as {scheme.credentials}" if scheme.credentials else ""
        raise ValueError(
            f"{name} contains a password, {without_credentials(uri)}; leave it out and give credentials in "
            f"environment variables{such_as}"
        )


def without_credentials(text: str) -> str:
    """The text with the user and password of every URI masked.

    >>> without_credentials("https://me:p@ss@host/path and postgresql://host/db?password=secret")
    'https://***@host/path and postgresql://host/db?password=***'
    >>> without_credentials("abfs://runs@account.dfs.core.windows.net/first and az://me:key@runs/first")
    'abfs://runs@account.dfs.core.windows.net/first and az://***@runs/first'
    """
    masked = _USER.sub(r"\1://***@", text)
    return re.sub(rf"([?&](?:access_key|{_SECRET_OPTIONS})=)[^&\s\"']+", r"\1***", masked)


def _known(filesystem: pafs.FileSystem) -> Scheme:
    return _BY_TYPE.get(filesystem.type_name, _LOCAL)


def _split_options(uri: str) -> tuple[str, str]:
    """An address and, from the question mark on, the options of a URI, such as the server's address."""
    location, question, options = uri.partition("?") if is_uri(uri) else (uri, "", "")
    return location, question + options
