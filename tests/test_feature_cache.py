"""The disk cache of encoded images: round trips, bound, races of threads and processes, broken disks."""

import hashlib
import logging
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from backend import feature_cache as cache_module
from backend.core.types import EncodedImage
from backend.errors import BadInputError, ConfigurationError
from backend.feature_cache import FeatureCache

SIGNATURE = "models-a"
ENTRY_BYTES = 100 * 1024
MB = 2**20


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def encoded(number: int = 0, *, size_bytes: int = ENTRY_BYTES, signature: str = SIGNATURE) -> EncodedImage:
    """About `size_bytes` in memory and on disk, told apart by `number`."""
    features = np.full((2, 2, 8), number, np.float16)
    return EncodedImage((30, 40), features, {"image": np.full(size_bytes, number % 251, np.uint8)}, signature)


def same(one: EncodedImage | None, other: EncodedImage) -> bool:
    if one is None or (one.size_hw, one.signature) != (other.size_hw, other.signature):
        return False
    ours, theirs = one.to_arrays(), other.to_arrays()
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and np.array_equal(ours[name], theirs[name]) for name in ours
    )


def on_disk(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "evict.lock"]


def disk_only(folder: Path, max_mb: float = 10, signature: str = SIGNATURE) -> FeatureCache:
    return FeatureCache(folder, max_mb, signature, memory_mb=0)


def never() -> EncodedImage:
    raise AssertionError("encoded although it was there")


def finish(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )


class TestKeeping:
    @settings(max_examples=25, deadline=None)
    @given(
        grid=st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(1, 9)),
        dtype=st.sampled_from([np.uint8, np.float32, np.float16, np.bool_, np.int64]),
        is_transposed=st.booleans(),
    )
    def test_survives_a_restart_bit_for_bit(
        self, grid: tuple[int, int, int], dtype: type[np.generic], is_transposed: bool
    ) -> None:
        features = np.random.default_rng(0).random(grid).astype(np.float16)
        features = features.transpose(1, 0, 2) if is_transposed else features
        given_one = EncodedImage(
            (3, 4), features, {"a": np.ones((2, 3), dtype).T, "b.c": np.zeros(0, dtype)}, SIGNATURE
        )
        with tempfile.TemporaryDirectory() as folder:
            disk_only(Path(folder)).put(key(1), given_one)
            assert same(disk_only(Path(folder)).get(key(1)), given_one)

    def test_unknown_is_none(self, tmp_path: Path) -> None:
        cache = FeatureCache(tmp_path, 10, SIGNATURE)
        assert cache.get(key(1)) is None
        assert (cache.stats.misses, cache.stats.hits) == (1, 0)

    def test_other_models_do_not_see_it(self, tmp_path: Path) -> None:
        disk_only(tmp_path).put(key(1), encoded(1))
        assert disk_only(tmp_path, signature="models-b").get(key(1)) is None
        with pytest.raises(ValueError, match="models-b"):
            disk_only(tmp_path).put(key(1), encoded(1, signature="models-b"))

    def test_a_later_entry_takes_the_place_of_an_older(self, tmp_path: Path) -> None:
        for memory_mb in (0, 1):
            cache = FeatureCache(tmp_path, 10, SIGNATURE, memory_mb=memory_mb)
            cache.put(key(1), encoded(1))
            cache.put(key(1), encoded(2))
            assert same(cache.get(key(1)), encoded(2))
        assert (len(on_disk(tmp_path)), cache.stats.entries) == (1, 1)

    def test_files_are_for_their_owner_only(self, tmp_path: Path) -> None:
        disk_only(tmp_path / "cache").put(key(1), encoded(1))
        modes = {path.stat().st_mode & 0o077 for path in [tmp_path / "cache", *(tmp_path / "cache").rglob("*")]}
        assert modes == {0}

    @pytest.mark.parametrize("wrong", ["", "../../etc/passwd", key(1).upper(), key(1) + "\n", key(1)[1:]])
    def test_nothing_but_a_digest_becomes_a_file_name(self, tmp_path: Path, wrong: str) -> None:
        cache = FeatureCache(tmp_path, 10, SIGNATURE)
        for call in (cache.get, lambda name: cache.put(name, encoded()), lambda name: cache.get_or_encode(name, never)):
            with pytest.raises(BadInputError, match="64 lower-case hex digits"):
                call(wrong)
        assert on_disk(tmp_path) == []

    @pytest.mark.parametrize("sizes", [(-1.0, 1.0), (1.0, -1.0), (float("nan"), 1.0)])
    def test_negative_bounds_are_refused(self, tmp_path: Path, sizes: tuple[float, float]) -> None:
        with pytest.raises(ConfigurationError, match="0 MB or more"):
            FeatureCache(tmp_path, sizes[0], SIGNATURE, memory_mb=sizes[1])


class TestMemory:
    def test_answers_without_the_disk(self, tmp_path: Path) -> None:
        cache = FeatureCache(tmp_path, 10, SIGNATURE)
        given_one = encoded(1)
        cache.put(key(1), given_one)
        on_disk(tmp_path)[0].unlink()
        assert cache.get(key(1)) is given_one
        assert (cache.stats.hits, cache.stats.memory_hits) == (1, 1)

    def test_what_came_from_disk_is_remembered(self, tmp_path: Path) -> None:
        disk_only(tmp_path).put(key(1), encoded(1))
        cache = FeatureCache(tmp_path, 10, SIGNATURE)
        assert cache.get(key(1)) is cache.get(key(1))
        assert (cache.stats.hits, cache.stats.memory_hits) == (2, 1)

    def test_is_bounded_by_bytes_and_keeps_the_last_used(self, tmp_path: Path) -> None:
        cache = FeatureCache(tmp_path, 0, SIGNATURE, memory_mb=0.35)
        for number in range(3):
            cache.put(key(number), encoded(number))
        assert cache.get(key(0)) is not None
        cache.put(key(3), encoded(3))
        assert [cache.get(key(number)) is not None for number in range(4)] == [True, False, True, True]
        assert 0 < cache.stats.memory_bytes <= 0.35 * MB
        cache.put(key(9), encoded(9, size_bytes=MB))
        assert cache.get(key(9)) is None
        assert cache.get(key(3)) is not None


class TestBound:
    def test_never_more_bytes_than_allowed(self, tmp_path: Path) -> None:
        cache = disk_only(tmp_path, max_mb=1)
        for number in range(30):
            cache.put(key(number), encoded(number))
            used_bytes = sum(path.stat().st_size for path in on_disk(tmp_path))
            assert used_bytes <= MB
            assert (cache.stats.bytes, cache.stats.entries) == (used_bytes, len(on_disk(tmp_path)))
        assert cache.stats.entries >= 8
        assert cache.stats.evictions == 30 - cache.stats.entries
        assert cache.get(key(29)) is not None

    def test_the_least_recently_used_goes_first(self, tmp_path: Path) -> None:
        cache = disk_only(tmp_path, max_mb=0.5)
        for number in range(4):
            cache.put(key(number), encoded(number))
            time.sleep(0.01)
        assert cache.get(key(0)) is not None
        time.sleep(0.01)
        cache.put(key(4), encoded(4))
        cache.put(key(5), encoded(5))
        assert [cache.get(key(number)) is not None for number in range(6)] == [True, False, False, True, True, True]

    def test_a_hit_in_memory_counts_as_use_on_disk(self, tmp_path: Path) -> None:
        cache = FeatureCache(tmp_path, 0.5, SIGNATURE)
        for number in range(4):
            cache.put(key(number), encoded(number))
            time.sleep(0.01)
        cache.get(key(0))
        cache.put(key(4), encoded(4))
        cache.put(key(5), encoded(5))
        restarted = disk_only(tmp_path, max_mb=0.5)
        assert restarted.get(key(0)) is not None
        assert restarted.get(key(1)) is None

    def test_entries_of_old_models_count_and_go(self, tmp_path: Path) -> None:
        old = disk_only(tmp_path, max_mb=1, signature="models-old")
        for number in range(8):
            old.put(key(number), encoded(number, signature="models-old"))
        cache = disk_only(tmp_path, max_mb=1)
        assert cache.stats.entries == 8
        time.sleep(0.01)
        for number in range(8):
            cache.put(key(number), encoded(number))
        assert sum(path.stat().st_size for path in on_disk(tmp_path)) <= MB
        assert all(cache.get(key(number)) is not None for number in range(8))
        for number in range(8, 12):
            cache.put(key(number), encoded(number))
        assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1
        old.put(key(1), encoded(1, signature="models-old"))
        assert old.get(key(1)) is not None

    def test_a_smaller_bound_is_applied_at_the_start(self, tmp_path: Path) -> None:
        cache = disk_only(tmp_path, max_mb=1)
        for number in range(8):
            cache.put(key(number), encoded(number))
        assert disk_only(tmp_path, max_mb=0.3).stats.entries == 2
        assert disk_only(tmp_path, max_mb=0).stats.bytes == 0
        assert on_disk(tmp_path) == []

    def test_beyond_the_bound_nothing_is_written_and_nothing_evicted(self, tmp_path: Path) -> None:
        cache = disk_only(tmp_path, max_mb=0.3)
        cache.put(key(1), encoded(1))
        cache.put(key(2), encoded(2, size_bytes=MB))
        assert cache.get(key(2)) is None
        assert cache.get(key(1)) is not None

    def test_a_large_cache_is_not_looked_through_at_every_write(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cache_module, "FEW_ENTRIES", 5)
        looks: list[Path] = []
        list_files = cache_module.list_entries

        def note(folder: Path) -> Any:
            looks.append(folder)
            return list_files(folder)

        monkeypatch.setattr(cache_module, "list_entries", note)
        cache = disk_only(tmp_path, max_mb=32)
        for number in range(45):
            cache.put(key(number), encoded(number))
        assert len(looks) < 20
        assert (cache.stats.entries, cache.stats.bytes) == (45, sum(p.stat().st_size for p in on_disk(tmp_path)))

    def test_foreign_files_are_neither_counted_nor_removed(self, tmp_path: Path) -> None:
        foreign = [
            tmp_path / "photo.jpg",
            tmp_path / "0123456789abcdef" / "x.encoded",
            tmp_path / "d" / f"{key(1)}.encoded",
        ]
        for path in foreign:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(bytes(MB))
        cache = disk_only(tmp_path, max_mb=0.3)
        for number in range(5):
            cache.put(key(number), encoded(number))
        assert cache.stats.bytes <= 0.3 * MB
        assert all(path.exists() for path in foreign)

    def test_what_a_killed_writer_left_is_swept(self, tmp_path: Path) -> None:
        cache = disk_only(tmp_path)
        cache.put(key(1), encoded(1))
        left, being_written = (on_disk(tmp_path)[0].with_name(f"{key(2)}.encoded.{digit * 16}") for digit in "ab")
        for path in (left, being_written):
            path.write_bytes(b"half")
        os.utime(left, (1, 1))
        cache.put(key(3), encoded(3))
        assert not left.exists()
        assert being_written.exists()
        assert cache.stats.evictions == 0


class TestSingleFlight:
    def test_threads_that_ask_for_one_image_encode_once(self, tmp_path: Path) -> None:
        cache = FeatureCache(tmp_path, 10, SIGNATURE)
        calls = []

        def encode() -> EncodedImage:
            calls.append(1)
            time.sleep(0.1)
            return encoded(1)

        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda _: cache.get_or_encode(key(1), encode), range(8)))
        assert len(calls) == 1
        assert all(answer is answers[0] for answer in answers)
        assert (cache.stats.misses, cache.stats.hits) == (1, 7)
        assert same(disk_only(tmp_path).get_or_encode(key(1), never), encoded(1))

    def test_holds_without_any_room(self, tmp_path: Path) -> None:
        cache = FeatureCache(tmp_path, 0, SIGNATURE, memory_mb=0)
        barrier = threading.Barrier(4)
        calls = []

        def encode() -> EncodedImage:
            calls.append(1)
            time.sleep(0.2)
            return encoded(1)

        def ask(_: int) -> EncodedImage:
            barrier.wait()
            return cache.get_or_encode(key(1), encode)

        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(ask, range(4)))
        assert len(calls) == 1
        assert all(same(answer, encoded(1)) for answer in answers)

    def test_different_images_do_not_wait_for_each_other(self, tmp_path: Path) -> None:
        cache = FeatureCache(tmp_path, 10, SIGNATURE)
        barrier = threading.Barrier(3)

        def encode(number: int) -> Callable[[], EncodedImage]:
            def wait_for_others() -> EncodedImage:
                barrier.wait(timeout=10)
                return encoded(number)

            return wait_for_others

        with ThreadPoolExecutor(3) as threads:
            answers = list(threads.map(lambda number: cache.get_or_encode(key(number), encode(number)), range(3)))
        assert all(same(answer, encoded(number)) for number, answer in enumerate(answers))

    def test_a_failure_is_its_callers_own_and_is_not_kept(self, tmp_path: Path) -> None:
        cache = FeatureCache(tmp_path, 10, SIGNATURE)
        is_encoding, may_fail = threading.Event(), threading.Event()

        def fail() -> EncodedImage:
            is_encoding.set()
            may_fail.wait(10)
            raise BadInputError("too slow")

        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(cache.get_or_encode, key(1), fail)
            is_encoding.wait(10)
            second = threads.submit(cache.get_or_encode, key(1), lambda: encoded(1))
            time.sleep(0.05)
            may_fail.set()
            with pytest.raises(BadInputError, match="too slow"):
                first.result(10)
            assert same(second.result(10), encoded(1))
        assert cache.get_or_encode(key(1), never) is second.result()


class TestDamage:
    @pytest.mark.parametrize("kind", ["empty", "truncated", "flipped", "longer", "foreign", "short header"])
    def test_a_damaged_entry_is_removed_and_made_again(
        self, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        disk_only(tmp_path).put(key(1), encoded(1))
        (path,) = on_disk(tmp_path)
        content = path.read_bytes()
        middle = len(content) // 2
        contents = {
            "empty": b"",
            "truncated": content[:-1],
            "flipped": content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :],
            "longer": content + b"\0",
            "foreign": b"\x89PNG" * 20,
            "short header": content[:6],
        }
        path.write_bytes(contents[kind])
        cache = disk_only(tmp_path)
        with caplog.at_level(logging.WARNING):
            assert cache.get(key(1)) is None
        assert "damaged" in caplog.text
        assert on_disk(tmp_path) == []
        assert same(cache.get_or_encode(key(1), lambda: encoded(1)), encoded(1))
        assert same(disk_only(tmp_path).get(key(1)), encoded(1))
        assert cache.stats.damaged == 1

    def test_arrays_that_are_missing_are_damage(self, tmp_path: Path) -> None:
        cache = disk_only(tmp_path)
        cache.put(key(1), encoded(1))
        wrong = safetensors.numpy.save({"features": np.zeros(3, np.float16)})
        packed = b"SME1" + zlib.crc32(wrong).to_bytes(4, "little") + wrong
        on_disk(tmp_path)[0].write_bytes(packed)
        assert cache.get(key(1)) is None
        assert cache.stats.damaged == 1

    def test_a_folder_that_cannot_be_made_is_told_once(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "file").touch()
        with caplog.at_level(logging.WARNING):
            cache = FeatureCache(tmp_path / "file" / "cache", 10, SIGNATURE, memory_mb=0.15)
            for number in (1, 2, 1):
                assert same(cache.get_or_encode(key(number), partial(encoded, number)), encoded(number))
        assert len(caplog.records) == 1
        assert "cannot be used" in caplog.text
        assert cache.stats.failures >= 3
        assert cache.get_or_encode(key(1), never) is not None

    def test_a_full_disk_leaves_no_half_files(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        cache = disk_only(tmp_path)
        # A limit on file size is the one full disk that a test may have: the kernel refuses the write half-way.
        old_limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (ENTRY_BYTES // 2, old_limits[1]))
        try:
            with caplog.at_level(logging.WARNING):
                for number in (1, 2):
                    assert same(cache.get_or_encode(key(number), partial(encoded, number)), encoded(number))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old_limits)
        assert on_disk(tmp_path) == []
        assert len([record for record in caplog.records if record.name == cache_module.__name__]) == 1
        cache.put(key(1), encoded(1))
        assert cache.get(key(1)) is not None

    @pytest.mark.parametrize("has_entry", [False, True])
    def test_a_read_only_folder(self, has_entry: bool, caplog: pytest.LogCaptureFixture) -> None:
        is_root = os.geteuid() == 0
        # Not under tmp_path, which nobody but its owner may enter: root has to become somebody else to be refused.
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            folder.chmod(0o755)
            if has_entry:
                disk_only(folder).put(key(1), encoded(1))
                for path in folder.rglob("*"):
                    path.chmod(0o555)
            folder.chmod(0o555)
            if is_root:
                os.seteuid(65534)
            try:
                cache = disk_only(folder)
                for _ in range(2):
                    assert same(cache.get_or_encode(key(1), never if has_entry else lambda: encoded(1)), encoded(1))
                assert same(cache.get_or_encode(key(2), lambda: encoded(2)), encoded(2))
                assert disk_only(folder, max_mb=0).stats.entries == int(has_entry)
            finally:
                if is_root:
                    os.seteuid(0)
                folder.chmod(0o755)
                for path in folder.iterdir():
                    path.chmod(0o755)
        assert "cannot be used" in caplog.text
        assert cache.stats.failures == (1 if has_entry else 3)


class TestAtOnce:
    @pytest.mark.slow
    def test_processes_share_a_folder_within_its_bound(self, tmp_path: Path) -> None:
        code = (
            "import sys, random; from pathlib import Path; from tests.test_feature_cache import *\n"
            "cache = disk_only(Path(sys.argv[1]), max_mb=1); rng = random.Random(int(sys.argv[2]))\n"
            "for _ in range(150):\n"
            "    number = rng.randrange(25)\n"
            "    assert same(cache.get_or_encode(key(number), lambda: encoded(number)), encoded(number))\n"
            "assert cache.stats.damaged == cache.stats.failures == 0, cache.stats\n"
        )
        finish([run_python(code, str(tmp_path), str(seed)) for seed in range(3)])
        assert sum(path.stat().st_size for path in on_disk(tmp_path)) <= MB
        survivors = [number for number in range(25) if disk_only(tmp_path).get(key(number)) is not None]
        assert len(survivors) >= 8

    def test_threads_share_a_cache_within_its_bound(self, tmp_path: Path) -> None:
        cache = FeatureCache(tmp_path, 1, SIGNATURE, memory_mb=0.35)

        def work(seed: int) -> None:
            for number in np.random.default_rng(seed).integers(0, 25, 100):
                found = cache.get_or_encode(key(int(number)), partial(encoded, int(number)))
                assert same(found, encoded(int(number)))

        with ThreadPoolExecutor(6) as threads:
            list(threads.map(work, range(6)))
        assert cache.stats.bytes == sum(path.stat().st_size for path in on_disk(tmp_path)) <= MB
        assert cache.stats.hits + cache.stats.misses == 600
        assert cache.stats.memory_bytes <= 0.35 * MB

    def test_a_stuck_evictor_does_not_stop_the_others(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cache_module, "LOCK_WAIT_S", 0.05)
        cache = disk_only(tmp_path, max_mb=0.3)
        with cache_module.locked(tmp_path / "evict.lock"):
            for number in range(4):
                cache.put(key(number), encoded(number))
        assert sum(path.stat().st_size for path in on_disk(tmp_path)) <= 0.3 * MB

    def test_signatures_are_told_apart_by_more_than_their_start(self, tmp_path: Path) -> None:
        for signature in ("m" * 300 + "1", "m" * 300 + "2"):
            disk_only(tmp_path, signature=signature).put(key(1), replace(encoded(len(signature)), signature=signature))
        assert len(on_disk(tmp_path)) == 2
