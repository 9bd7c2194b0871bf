"""Byte ranges; oracle: the bytes of the file, and counts of what was asked of the store."""

import errno
import os
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pytest

from dist_resnet.data import ranges
from dist_resnet.data.ranges import Access, RangeCache, RangeReader

CONTENT = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8)


class CountedStore:
    """Counts the reads of a local file system that passes for a remote one."""

    def __init__(self, failures: int = 0) -> None:
        self.reads, self.failures = 0, failures
        self._local = pafs.LocalFileSystem()

    def open_input_file(self, path: str):
        if self.failures:
            self.failures -= 1
            raise OSError("connection reset by peer")
        store, file = self, self._local.open_input_file(path)

        class Counted:
            def read_at(self, length: int, start: int) -> bytes:
                store.reads += 1
                return file.read_at(length, start)

        return Counted()


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "shard.parquet"
    path.write_bytes(CONTENT.tobytes())
    return str(path)


def remote(store: CountedStore, monkeypatch: pytest.MonkeyPatch, access: Access) -> RangeReader:
    monkeypatch.setattr(ranges, "filesystem_of", lambda uri: (store, uri))
    return RangeReader("s3://bucket/shards", access)


def cached(folder: Path, limit: int = 10_000_000) -> Access:
    return Access(cache=str(folder), cache_bytes=limit)


def test_a_local_file_is_mapped_and_not_copied(file: str) -> None:
    reader = RangeReader(file, Access())
    part = reader.read(file, 5_000, 70_000, version="1")
    np.testing.assert_array_equal(part, CONTENT[5_000:75_000])
    assert not part.flags.owndata
    assert not part.flags.writeable


def test_what_was_read_once_is_not_asked_for_again_even_by_another_process(file, tmp_path, monkeypatch) -> None:
    store = CountedStore()
    for _ in range(3):  # a reader each time, as after a restart
        reader = remote(store, monkeypatch, cached(tmp_path / "cache"))
        for start in (0, 40_000):
            np.testing.assert_array_equal(
                reader.read(file, start, 30_000, version="1"), CONTENT[start : start + 30_000]
            )
    assert store.reads == 2


def test_a_file_with_new_content_is_read_anew(file, tmp_path, monkeypatch) -> None:
    store = CountedStore()
    reader = remote(store, monkeypatch, cached(tmp_path / "cache"))
    reader.read(file, 0, 100, version="1")
    Path(file).write_bytes(CONTENT[::-1].tobytes())
    again = remote(store, monkeypatch, cached(tmp_path / "cache"))
    np.testing.assert_array_equal(again.read(file, 0, 100, version="2"), CONTENT[::-1][:100])


@pytest.mark.parametrize("harm", ["truncated", "a flipped bit", "zeros", "empty"])
def test_a_torn_entry_is_never_served(file, tmp_path, monkeypatch, harm, caplog) -> None:
    store = CountedStore()
    reader = remote(store, monkeypatch, cached(tmp_path / "cache"))
    reader.read(file, 0, 50_000, version="1")
    (entry,) = [path for path in (tmp_path / "cache").iterdir() if path.name != "lock"]
    content = bytearray(entry.read_bytes())
    content[20_000] ^= 4
    torn = {
        "truncated": entry.read_bytes()[:30_000],
        "a flipped bit": bytes(content),
        "zeros": bytes(len(content)),
        "empty": b"",
    }
    entry.write_bytes(torn[harm])
    np.testing.assert_array_equal(reader.read(file, 0, 50_000, version="1"), CONTENT[:50_000])
    assert "is torn; fetching it again" in caplog.text
    assert store.reads == 2
    reader.read(file, 0, 50_000, version="1")
    assert store.reads == 2


def test_the_cache_keeps_within_its_bound_and_what_was_used_last(file, tmp_path, monkeypatch) -> None:
    limit = 300_000
    store = CountedStore()
    reader = remote(store, monkeypatch, cached(tmp_path / "cache", limit))
    for start in range(0, 90_000, 1_000):
        reader.read(file, 0, 10_000, version="kept")
        reader.read(file, start, 10_000, version="passing")
        held = sum(path.stat().st_size for path in (tmp_path / "cache").iterdir())
        assert held <= limit
        os.utime(_entry(tmp_path / "cache", "kept 0 10000"), (2e9, 2e9))  # clocks of files are coarse
    assert store.reads == 1 + 90
    assert held > limit / 2


def _entry(folder: Path, key: str) -> Path:
    return folder / ranges.hashlib.sha256(key.encode()).hexdigest()


def test_a_full_disk_costs_one_warning_and_no_read(file, tmp_path, monkeypatch, caplog) -> None:
    store = CountedStore()
    reader = remote(store, monkeypatch, cached(tmp_path / "cache"))

    def full(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    for start in (0, 1_000):
        np.testing.assert_array_equal(reader.read(file, start, 500, version="1"), CONTENT[start : start + 500])
    assert caplog.text.count("No space left on device") == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]


def test_a_store_that_fails_for_a_moment_is_asked_again_with_one_warning(file, monkeypatch, caplog) -> None:
    reader = remote(CountedStore(failures=2), monkeypatch, Access(patience_seconds=60))
    np.testing.assert_array_equal(reader.read(file, 10, 20, version="1"), CONTENT[10:30])
    assert caplog.text.count("cannot be read (connection reset by peer)") == 1
    assert "the storage works again" in caplog.text


def test_a_store_that_keeps_failing_is_an_error_in_the_end(file, monkeypatch) -> None:
    reader = remote(CountedStore(failures=99), monkeypatch, Access(patience_seconds=0.05))
    with pytest.raises(OSError, match="connection reset"):
        reader.read(file, 10, 20, version="1")


def test_a_file_that_is_too_short_is_an_error(file, monkeypatch) -> None:
    reader = remote(CountedStore(), monkeypatch, Access())
    with pytest.raises(OSError, match="ends 10 bytes before byte 100010"):
        reader.read(file, 99_990, 20, version="1")


def test_the_cache_of_two_machines_worth_of_threads_serves_whole_entries_alone(tmp_path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    caches = [RangeCache(tmp_path, 200_000) for _ in range(2)]

    def read(number: int) -> bool:
        start = 1_000 * (number % 40)
        wanted = CONTENT[start : start + 20_000]
        found = caches[number % 2].get(f"k {start}", 20_000, lambda: wanted)
        return bool((found == wanted).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(400)))
