"""Byte ranges; oracle: the bytes of the file, and counts of what was asked of the store."""

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pytest

from dist_resnet.storage import range_cache, ranges
from dist_resnet.storage.range_cache import RangeCache
from dist_resnet.storage.ranges import Access, RangeReader

CONTENT = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8)


class CountedStore:
    """Counts the reads of a local file system that passes for a remote one."""

    def __init__(self, failures: int = 0, error: OSError | None = None) -> None:
        self.reads, self.failures = 0, failures
        self.error = error or OSError("connection reset by peer")
        self._local = pafs.LocalFileSystem()

    def open_input_file(self, path: str):
        if self.failures:
            self.failures -= 1
            raise self.error
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
    monkeypatch.setattr(ranges, "open_uri", lambda uri: (store, uri))
    return RangeReader("s3://bucket/shards", access)


def cached(folder: Path, limit: int = 10_000_000) -> Access:
    return Access(cache=str(folder), cache_bytes=limit)


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name != "dist_resnet.lock"]


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
    (entry,) = entries(tmp_path / "cache")
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
        held = sum(path.stat().st_size for path in entries(tmp_path / "cache"))
        assert held <= limit
        os.utime(_entry(tmp_path / "cache", "kept 0 10000"), (2e9, 2e9))  # clocks of files are coarse
    assert store.reads == 1 + 90
    assert held > limit / 2


def _entry(folder: Path, key: str) -> Path:
    return folder / hashlib.sha256(key.encode()).hexdigest()


def test_a_full_disk_costs_one_warning_and_no_read(file, tmp_path, monkeypatch, caplog) -> None:
    store = CountedStore()
    reader = remote(store, monkeypatch, cached(tmp_path / "cache"))

    def full(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    for start in (0, 1_000):
        np.testing.assert_array_equal(reader.read(file, start, 500, version="1"), CONTENT[start : start + 500])
    assert caplog.text.count("No space left on device") == 1
    assert not entries(tmp_path / "cache")


def test_a_disk_that_is_full_when_the_cache_is_opened_costs_a_warning_and_no_run(tmp_path, monkeypatch, caplog) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    cache = RangeCache(tmp_path, 10_000)
    np.testing.assert_array_equal(cache.get("k", 500, lambda: CONTENT[:500]), CONTENT[:500])
    assert caplog.text.count("No space left on device") == 1


def test_caches_that_share_a_folder_keep_within_its_bound_together(tmp_path) -> None:
    limit, length = 300_000, 1_000
    caches = [RangeCache(tmp_path, limit) for _ in range(16)]
    sizes = []
    for start in range(400):
        caches[start % 16].get(f"k {start}", length, lambda: CONTENT[:length])
        sizes.append(sum(path.stat().st_size for path in entries(tmp_path)))
    assert 0.99 * limit < max(sizes) <= limit
    assert min(sizes[300:]) > 0.89 * limit


def test_entries_that_are_being_written_have_their_room_already(tmp_path, monkeypatch) -> None:
    limit, length, sizes = 300_000, 10_000, []
    header = range_cache._header

    def counting(content: np.ndarray) -> bytes:
        sizes.append(sum(path.stat().st_size for path in entries(tmp_path)))
        if len(sizes) < 40:  # another is begun before this one is there
            RangeCache(tmp_path, limit).get(f"k {len(sizes)}", length, lambda: CONTENT[:length])
        return header(content)

    monkeypatch.setattr(range_cache, "_header", counting)
    monkeypatch.setattr(RangeCache, "__post_init__", lambda self: None)
    RangeCache(tmp_path, limit).get("k 0", length, lambda: CONTENT[:length])
    assert len(sizes) == 40
    assert 0.9 * limit < max(sizes) <= limit


def test_what_else_lies_in_the_folder_is_left_alone(file, tmp_path, monkeypatch, caplog) -> None:
    folder = tmp_path / "cache"
    (folder / "lost+found").mkdir(parents=True)
    (folder / ("0" * 64)).mkdir()
    others = [folder / "thesis.pdf", folder / "lock", folder / ("0" * 63), folder / f"{'0' * 64}.jpg"]
    for other in others:
        other.write_bytes(bytes(50_000))
        os.utime(other, (1, 1))
    left = [folder / ("1" * 64), folder / f"{'1' * 64}.{'2' * 32}.partial"]  # by a run that was killed
    for entry in left:
        entry.write_bytes(bytes(9_000))
        os.utime(entry, (1, 1))
    reader = remote(CountedStore(), monkeypatch, cached(folder, 20_000))
    for start in range(0, 60_000, 4_000):
        reader.read(file, start, 4_000, version="1")
    assert [other.stat().st_size for other in others] == [50_000] * 4
    assert (folder / "lost+found").is_dir()
    assert not any(entry.exists() for entry in left)
    assert not caplog.text


def test_a_cache_without_room_that_cannot_be_made_costs_one_warning_and_no_read(
    file, tmp_path, monkeypatch, caplog
) -> None:
    store = CountedStore()
    reader = remote(store, monkeypatch, cached(tmp_path / "cache", 10_000))

    def refused(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "unlink", refused)
    for start in range(0, 40_000, 4_000):
        np.testing.assert_array_equal(reader.read(file, start, 4_000, version="1"), CONTENT[start : start + 4_000])
    assert caplog.text.count("Permission denied") == 1
    assert sum(path.stat().st_size for path in entries(tmp_path / "cache")) <= 10_000


def test_what_is_larger_than_the_bound_is_not_kept(file, tmp_path, monkeypatch, caplog) -> None:
    reader = remote(CountedStore(), monkeypatch, cached(tmp_path / "cache", 10_000))
    reader.read(file, 0, 5_000, version="1")
    for _ in range(2):
        np.testing.assert_array_equal(reader.read(file, 0, 10_000, version="1"), CONTENT[:10_000])
    assert caplog.text.count("10064 bytes are more than its bound of 10000") == 1
    assert len(entries(tmp_path / "cache")) == 1


def test_a_store_that_fails_for_a_moment_is_asked_again_with_one_warning(file, monkeypatch, caplog) -> None:
    reader = remote(CountedStore(failures=2), monkeypatch, Access(patience_seconds=60))
    np.testing.assert_array_equal(reader.read(file, 10, 20, version="1"), CONTENT[10:30])
    assert caplog.text.count("cannot be read (connection reset by peer)") == 1
    assert "the storage works again" in caplog.text


def test_a_store_that_keeps_failing_is_an_error_in_the_end(file, monkeypatch) -> None:
    reader = remote(CountedStore(failures=99), monkeypatch, Access(patience_seconds=0.05))
    with pytest.raises(OSError, match="connection reset"):
        reader.read(file, 10, 20, version="1")


def _side_by_side(read: Callable[[], object], times: int = 8) -> list[BaseException | None]:
    """What each of so many threads that read at once has raised."""
    start = threading.Barrier(times)

    def reading() -> object:
        start.wait()
        return read()

    with ThreadPoolExecutor(times) as pool:
        return [future.exception() for future in [pool.submit(reading) for _ in range(times)]]


def test_threads_have_the_patience_of_one_together(file, monkeypatch) -> None:
    store = CountedStore(failures=10_000)
    reader = remote(store, monkeypatch, Access(patience_seconds=1.0))
    begun = time.monotonic()
    errors = _side_by_side(lambda: reader.read(file, 10, 20, version="1"))
    assert time.monotonic() - begun < 1.9
    assert [str(error) for error in errors] == ["connection reset by peer"] * 8

    # Later reads ask once, not patiently, until the store works; then it may fail again for a moment.
    asked = 10_000 - store.failures
    with pytest.raises(OSError, match="connection reset"):
        reader.read(file, 10, 20, version="1")
    assert 10_000 - store.failures == asked + 1
    store.failures = 0
    np.testing.assert_array_equal(reader.read(file, 10, 20, version="1"), CONTENT[10:30])
    reader._files.clear()
    store.failures = 2
    np.testing.assert_array_equal(reader.read(file, 40, 20, version="1"), CONTENT[40:60])
    assert store.failures == 0


def test_a_file_that_is_not_there_is_an_error_at_once(file, monkeypatch) -> None:
    store = CountedStore(failures=1, error=FileNotFoundError("no such key"))
    reader = remote(store, monkeypatch, Access(patience_seconds=60))
    with pytest.raises(FileNotFoundError, match="no such key"):
        reader.read(file, 10, 20, version="1")
    np.testing.assert_array_equal(reader.read(file, 10, 20, version="1"), CONTENT[10:30])


def test_a_file_that_turns_out_not_to_be_there_ends_no_other_read(file, monkeypatch) -> None:
    reader = remote(CountedStore(failures=1), monkeypatch, Access(patience_seconds=60))
    with pytest.raises(FileNotFoundError):
        reader.read(f"{file}.gone", 10, 20, version="1")
    monkeypatch.setattr(reader._filesystem, "failures", 1)
    np.testing.assert_array_equal(reader.read(file, 10, 20, version="1"), CONTENT[10:30])


@pytest.mark.parametrize(
    "error", [PermissionError(13, "denied"), OSError("When reading: AWS Error ACCESS_DENIED during HeadObject")]
)
def test_denied_access_is_waited_for_a_moment_alone(file, monkeypatch, error) -> None:
    reader = remote(CountedStore(failures=1, error=error), monkeypatch, Access(patience_seconds=60, denied_seconds=0.7))
    np.testing.assert_array_equal(reader.read(file, 10, 20, version="1"), CONTENT[10:30])
    reader, begun = (
        remote(CountedStore(failures=99, error=error), monkeypatch, Access(patience_seconds=60, denied_seconds=0.7)),
        time.time(),
    )
    with pytest.raises(OSError, match=r"denied|ACCESS_DENIED"):
        reader.read(file, 40, 20, version="1")
    assert time.time() - begun < 5


def test_a_reader_says_that_it_is_alive_while_it_waits_for_the_store(file, monkeypatch) -> None:
    told: list[int] = []
    reader = remote(CountedStore(failures=2), monkeypatch, Access(patience_seconds=60, alive=lambda: told.append(1)))
    reader.read(file, 10, 20, version="1")
    assert len(told) == 2
    reader.read(file, 40, 20, version="1")
    assert len(told) == 2


def test_a_file_that_is_too_short_is_an_error(file, monkeypatch) -> None:
    reader = remote(CountedStore(), monkeypatch, Access())
    with pytest.raises(OSError, match="ends 10 bytes before byte 100010"):
        reader.read(file, 99_990, 20, version="1")


def test_the_cache_of_two_machines_worth_of_threads_serves_whole_entries_alone(tmp_path) -> None:
    caches = [RangeCache(tmp_path, 200_000) for _ in range(2)]

    def read(number: int) -> bool:
        start = 1_000 * (number % 40)
        wanted = CONTENT[start : start + 20_000]
        found = caches[number % 2].get(f"k {start}", 20_000, lambda: wanted)
        return bool((found == wanted).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(400)))
