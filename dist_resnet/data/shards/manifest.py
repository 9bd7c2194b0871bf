"""The manifest of a prepared set, `manifest.json`, and its comparison with the shards.

From a preparation's start to its end the folder has a `preparing.json`; until then it must not be read.
"""

import fnmatch
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs

from dist_resnet.storage.files import exists, read_json, write_bytes
from dist_resnet.wording import some

FORMAT = 1
MANIFEST = "manifest.json"
PREPARING = "preparing.json"
_CHUNK_BYTES = 16 << 20

# Keys that earlier versions wrote.
_RENAMED = {
    "pictures": "images",
    "picture": "image",
    "picture_bytes": "image_bytes",
    "source_picture_bytes": "source_image_bytes",
}


@dataclass(frozen=True, kw_only=True)
class Found:
    """A shard in storage: path, size, images, and sha256 of its footer."""

    path: str
    bytes: int
    images: int
    footer_sha256: str


def write_manifest(filesystem: pafs.FileSystem, folder: str, manifest: dict[str, Any]) -> None:
    """Writes the manifest, with one line for each shard, damaged image and so on."""
    lines = [f'  "{key}": {json.dumps(value)}' for key, value in manifest.items() if key != "splits"]
    splits = ",\n".join(f'    "{name}": {_split_text(split)}' for name, split in manifest["splits"].items())
    text = "{\n" + ",\n".join([*lines, f'  "splits": {{\n{splits}\n  }}']) + "\n}\n"
    write_bytes(filesystem, f"{folder}/{MANIFEST}", text.encode())


def _split_text(split: dict[str, Any]) -> str:
    lines = []
    for key, value in split.items():
        rows = value and isinstance(value, list) and isinstance(value[0], dict)
        inner = ",\n".join(f"        {json.dumps(row)}" for row in value) if rows else ""
        lines.append(f'      "{key}": ' + (f"[\n{inner}\n      ]" if rows else json.dumps(value)))
    return "{\n" + ",\n".join(lines) + "\n    }"


def renamed(content: Any) -> Any:
    """JSON that preparing wrote, with today's keys.

    >>> renamed({"shards": [{"pictures": 7, "bytes": 9}]})
    {'shards': [{'images': 7, 'bytes': 9}]}
    """
    if isinstance(content, dict):
        return {_RENAMED.get(key, key): renamed(value) for key, value in content.items()}
    return [renamed(one) for one in content] if isinstance(content, list) else content


def read_manifest(filesystem: pafs.FileSystem, folder: str) -> dict[str, Any] | None:
    """The manifest of a folder, or None if it has none. Raises ValueError if it is damaged or of another format."""
    manifest = renamed(read_json(filesystem, f"{folder}/{MANIFEST}"))
    if manifest is None:
        return None
    try:
        known = manifest["format"]
        shards = [shard for split in manifest["splits"].values() for shard in split["shards"]]
        is_complete = all({"file", "images", "bytes", "sha256", "footer_sha256"} <= shard.keys() for shard in shards)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder}/{MANIFEST} is not the manifest of a prepared set ({error!r}); restore it"
        ) from error
    if known != FORMAT or not is_complete:
        raise ValueError(f"{folder}/{MANIFEST} has format {known}, this version reads format {FORMAT}; upgrade")
    return manifest


def check_opened(filesystem: pafs.FileSystem, names: str, shards: Sequence[Found]) -> None:
    """Compares a split's shards, whose names match the glob `names`, with the manifests in their folders.

    Folders without a manifest pass. Raises ValueError if a set is not fully prepared, a shard differs from the
    manifest, is not in it or is missing, or the shards are of several splits.
    """
    folders = {shard.path.rpartition("/")[0] for shard in shards}
    for folder in sorted(folders):
        _check_ended(filesystem, folder)
        if manifest := read_manifest(filesystem, folder):
            _compare(folder, names, manifest, [one for one in shards if one.path.rpartition("/")[0] == folder])


def _check_ended(filesystem: pafs.FileSystem, folder: str) -> None:
    if exists(filesystem, f"{folder}/{PREPARING}"):
        raise ValueError(
            f"{folder} is not fully prepared, it still has {PREPARING}; run jobs/prepare_imagenet.py again with the "
            "same options to finish it"
        )


def _compare(folder: str, names: str, manifest: dict[str, Any], shards: list[Found]) -> None:
    split_of = {shard["file"]: name for name, split in manifest["splits"].items() for shard in split["shards"]}
    known = {shard["file"]: shard for split in manifest["splits"].values() for shard in split["shards"]}
    found = {shard.path.rpartition("/")[2]: shard for shard in shards}
    for name, shard in found.items():
        if name not in known:
            raise ValueError(f"{shard.path} is not in {folder}/{MANIFEST}; remove it, or keep it in another folder")
        here = {"images": shard.images, "bytes": shard.bytes, "footer_sha256": shard.footer_sha256}
        for key, value in here.items():
            if known[name][key] != value:
                raise ValueError(
                    f"{shard.path} differs from its {MANIFEST}: {key} {_short(value)} instead of "
                    f"{_short(known[name][key])}; restore it, or prepare the set again into an empty folder"
                )
    wanted = {name for name in known if fnmatch.fnmatchcase(name, names)}
    if missing := sorted(wanted - found.keys()):
        raise ValueError(
            f"{folder} lacks {some(missing, most=1)} of its {MANIFEST}; restore the missing shards, or prepare the "
            "set again into an empty folder"
        )
    if len(splits := sorted({split_of[name] for name in found})) > 1:
        raise ValueError(
            f"{folder} holds the splits {' and '.join(splits)}; give one of them, as in {folder}/{splits[0]}-*.parquet"
        )


def _short(value: object) -> str:
    return f"{value[:12]}..." if isinstance(value, str) else str(value)


def check_sizes(filesystem: pafs.FileSystem, folder: str, manifest: dict[str, Any]) -> None:
    """Compares the sizes of all shards with the manifest, in one listing. Raises ValueError if one differs."""
    sizes = {one.base_name: one.size for one in filesystem.get_file_info(pafs.FileSelector(folder))}
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            name, size = shard["file"], sizes.get(shard["file"])
            if size != shard["bytes"]:
                here = "is missing" if size is None else f"has {size} bytes instead of {shard['bytes']}"
                raise ValueError(
                    f"{folder}/{name} {here}, says its {MANIFEST}; restore it, or empty the folder and prepare "
                    "the set again"
                )


def verify(
    filesystem: pafs.FileSystem,
    folder: str,
    *,
    threads: int,
    begin: Callable[[int], None],
    advance: Callable[[int], None],
) -> tuple[dict[str, Any], list[str]]:
    """Reads every byte of a prepared set: (its manifest, a line for each shard that differs from it).

    `begin` is called with the number of images once there is a set to be read, `advance` with the images of each shard
    that was read. Raises FileNotFoundError if there is no manifest,
    ValueError if it cannot be read or the set is not fully prepared.
    """
    _check_ended(filesystem, folder)
    manifest = read_manifest(filesystem, folder)
    if manifest is None:
        raise FileNotFoundError(f"{folder} has no {MANIFEST}; only sets of jobs/prepare_imagenet.py can be checked")
    shards = [shard for split in manifest["splits"].values() for shard in split["shards"]]
    begin(sum(shard["images"] for shard in shards))
    with ThreadPoolExecutor(threads) as pool:
        complaints = []
        results = pool.map(lambda shard: _verify_shard(filesystem, folder, shard), shards)
        for shard, complaint in zip(shards, results, strict=True):
            complaints += [complaint] if complaint else []
            advance(shard["images"])
    return manifest, complaints


def _verify_shard(filesystem: pafs.FileSystem, folder: str, shard: dict[str, Any]) -> str | None:
    digest, size = hashlib.sha256(), 0
    try:
        with filesystem.open_input_stream(f"{folder}/{shard['file']}") as file:
            for chunk in _chunks(file):
                digest.update(chunk)
                size += len(chunk)
    except FileNotFoundError:
        return f"{shard['file']} is missing"
    except OSError as error:
        return f"{shard['file']} cannot be read ({' '.join(str(error).split())})"
    if size != shard["bytes"]:
        return f"{shard['file']} has {size} bytes instead of {shard['bytes']}"
    if digest.hexdigest() != shard["sha256"]:
        return f"{shard['file']} has sha256 {digest.hexdigest()[:12]}... instead of {shard['sha256'][:12]}..."
    return None


def _chunks(file: Any) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk
