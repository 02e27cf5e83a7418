"""The feature cache: encoded images on this machine's disk, bounded in bytes; the least recently used go first.

A file is `<folder>/<16 hex digits of the models' signature>/<image sha256>.encoded`: 4 bytes "SME1", the CRC-32 of the
rest (little-endian), then safetensors. Threads and processes may share the folder. Nothing here is worth a failure:
with a full, read-only or broken disk everything is encoded again.
"""

import fcntl
import hashlib
import logging
import os
import re
import struct
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from backend.atomic_files import replacing
from backend.core.types import EncodedImage
from backend.errors import BadInputError, ConfigurationError

_log = logging.getLogger(__name__)

_BYTES_A_MB: Final = 2**20
_MAGIC: Final = b"SME1"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
# Only what these match is ever counted or removed: the folder may be set to one that holds other things.
_SIGNATURE_FOLDER: Final = re.compile(r"[0-9a-f]{16}")
_ENTRY: Final = re.compile(r"[0-9a-f]{64}\.encoded")
_UNFINISHED: Final = re.compile(r"[0-9a-f]{64}\.encoded\.[0-9a-f]{16}")
_UNFINISHED_KEPT_S: Final = 600.0
LOCK_WAIT_S: Final = 2.0
_EVICT_TO: Final = 15 / 16
# Looking at every file after every write costs 3 us a file; beyond this many it is done once per 1/64 of the bound.
FEW_ENTRIES: Final = 500
_LOOK_EVERY: Final = 1 / 64


@dataclass(frozen=True)
class CacheStats:
    """Counts of this process since it started, and sizes as it last saw them.

    Attributes:
        hits: answered without encoding, from memory or disk, or by another thread's encoding.
        memory_hits: of these, from memory.
        misses: looked for and not found.
        evictions: files removed to keep the bound.
        damaged: files removed because they could not be read.
        failures: reads and writes that the disk refused.
        bytes: on disk, of all signatures and processes.
        entries: files on disk, of all signatures and processes.
        memory_bytes: of the arrays in memory.
    """

    hits: int = 0
    memory_hits: int = 0
    misses: int = 0
    evictions: int = 0
    damaged: int = 0
    failures: int = 0
    bytes: int = 0
    entries: int = 0
    memory_bytes: int = 0


class _File(NamedTuple):
    used_ns: int
    path: str
    size_bytes: int
    is_finished: bool


class FeatureCache:
    """Encoded images of one set of models. Its arrays are shared between callers: do not write into them."""

    def __init__(
        self, folder: Path, max_mb: float, signature: str, *, memory_mb: float = 64, with_text: bool = False
    ) -> None:
        """Look at what is there and cut it to the bound.

        Args:
            folder: made if missing, readable by this user only: it holds what images show.
            max_mb: bound of all files together, in 2**20 bytes; 0 writes none. Several processes may exceed it for the
                moment between a write and the look that follows, by one entry each (or 1/64 of it beyond 500 entries).
            signature: of the models; another one's entries are not seen, but count and are evicted like any other.
            memory_mb: bound of the entries kept in memory in front of the disk, in 2**20 bytes.
            with_text: of images encoded with text features; they have a folder of their own.

        Raises:
            ConfigurationError: a bound is negative.
        """
        if not (max_mb >= 0 and memory_mb >= 0):
            raise ConfigurationError(f"cache sizes must be 0 MB or more, got {max_mb} on disk, {memory_mb} in memory")
        self._folder = folder
        named = f"{signature}+text" if with_text else signature
        self._own_folder = folder / hashlib.sha256(named.encode()).hexdigest()[:16]
        self._signature = signature
        self._max_bytes = int(max_mb * _BYTES_A_MB)
        self._memory_max_bytes = int(memory_mb * _BYTES_A_MB)
        self._lock = threading.Lock()
        self._memory: OrderedDict[str, EncodedImage] = OrderedDict()
        self._in_flight: dict[str, Future[EncodedImage]] = {}
        self._stats = CacheStats()
        self._unseen_bytes = 0
        self._has_told_of_failure = False
        self._evicting = threading.Lock()
        self._has_more_to_evict = False
        self._evict()

    @property
    def stats(self) -> CacheStats:
        """Return the current counters."""
        with self._lock:
            return self._stats

    def get(self, image_sha256: str) -> EncodedImage | None:
        """Return the entry of an image, which then is the most recently used; None if there is none.

        Raises:
            BadInputError: not a sha256 in 64 hex digits.
        """
        path = self._path(image_sha256)
        encoded = self._find(image_sha256, path)
        if encoded is None:
            self._count(misses=1)
        return encoded

    def put(self, image_sha256: str, encoded: EncodedImage) -> None:
        """Keep an entry, in place of an older one. A disk that refuses is logged once, not raised.

        Raises:
            BadInputError: not a sha256 in 64 hex digits.
            ValueError: encoded by other models than the cache's.
        """
        path = self._path(image_sha256)
        if encoded.signature != self._signature:
            raise ValueError(f"signature must be {self._signature!r}, got {encoded.signature!r}")
        self._remember(image_sha256, encoded)
        content = _pack(encoded)
        if len(content) > self._max_bytes:
            return
        try:
            with replacing(path, mode=0o600, folder_mode=0o700) as file:
                file.write(content)
        except OSError as error:
            self._tell_of_failure(error)
            return
        self._note_written(len(content))

    def get_or_encode(self, image_sha256: str, encode: Callable[[], EncodedImage]) -> EncodedImage:
        """Return the entry of an image, made by `encode` if there is none; threads that ask meanwhile wait for it.

        If `encode` raises, its own caller gets the exception, and those who waited try for themselves.

        Raises:
            BadInputError: not a sha256 in 64 hex digits.
            ValueError: encoded by other models than the cache's.
        """
        path = self._path(image_sha256)

        def find_or_encode() -> EncodedImage:
            encoded = self._find(image_sha256, path)
            if encoded is None:
                self._count(misses=1)
                encoded = encode()
                self.put(image_sha256, encoded)
            return encoded

        while True:
            making, is_own = self._claim(image_sha256)
            if is_own:
                return self._make(image_sha256, making, find_or_encode)
            if making.exception() is None:
                self._count(hits=1)
                return making.result()

    def encode_if_absent(self, image_sha256: str, encode: Callable[[], EncodedImage]) -> bool:
        """Make the entry of an image unless it exists or is being made; return False then. Waits for no other thread.

        Raises:
            BadInputError: not a sha256 in 64 hex digits.
            ValueError: encoded by other models than the cache's.
        """
        path = self._path(image_sha256)
        if self._recall(image_sha256) is not None or path.exists():
            return False

        def encode_and_put() -> EncodedImage:
            encoded = encode()
            self.put(image_sha256, encoded)
            return encoded

        making, is_own = self._claim(image_sha256)
        if is_own:
            self._make(image_sha256, making, encode_and_put)
        return is_own

    def _claim(self, image_sha256: str) -> tuple[Future[EncodedImage], bool]:
        """What an entry comes out of that is being made, and whether it is the caller who has to `_make` it."""
        with self._lock:
            making = self._in_flight.get(image_sha256)
            if making is not None:
                return making, False
            own = self._in_flight[image_sha256] = Future()
            return own, True

    def _make(self, image_sha256: str, own: Future[EncodedImage], call: Callable[[], EncodedImage]) -> EncodedImage:
        """Make a claimed entry; threads that wait for it get it, or the exception."""
        try:
            encoded = call()
        except BaseException as error:
            own.set_exception(error)
            raise
        else:
            own.set_result(encoded)
            return encoded
        finally:
            with self._lock:
                del self._in_flight[image_sha256]

    # -- memory

    def _remember(self, image_sha256: str, encoded: EncodedImage) -> None:
        size_bytes = _size_bytes(encoded)
        with self._lock:
            used_bytes = self._stats.memory_bytes
            replaced = self._memory.pop(image_sha256, None)
            used_bytes -= _size_bytes(replaced) if replaced is not None else 0
            if size_bytes <= self._memory_max_bytes:
                self._memory[image_sha256] = encoded
                used_bytes += size_bytes
            while used_bytes > self._memory_max_bytes:
                used_bytes -= _size_bytes(self._memory.popitem(last=False)[1])
            self._stats = replace(self._stats, memory_bytes=used_bytes)

    def _recall(self, image_sha256: str) -> EncodedImage | None:
        with self._lock:
            encoded = self._memory.get(image_sha256)
            if encoded is not None:
                self._memory.move_to_end(image_sha256)
            return encoded

    # -- disk

    def _find(self, image_sha256: str, path: Path) -> EncodedImage | None:
        encoded = self._recall(image_sha256)
        is_remembered = encoded is not None
        if encoded is None:
            encoded = self._read(path)
            if encoded is None:
                return None
            self._remember(image_sha256, encoded)
        now_ns = time.time_ns()
        with suppress(OSError):
            os.utime(path, ns=(now_ns, now_ns))
        self._count(hits=1, memory_hits=int(is_remembered))
        return encoded

    def _read(self, path: Path) -> EncodedImage | None:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._tell_of_failure(error)
            return None
        try:
            return _unpack(content, self._signature)
        except (ValueError, KeyError, SafetensorError) as error:
            _log.warning("removed damaged cache entry %s, it is encoded again: %s", path.name, error)
            with suppress(OSError):
                path.unlink()
            self._count(damaged=1)
            return None

    def _path(self, image_sha256: str) -> Path:
        # It becomes a file name: nothing but a digest may.
        if not _SHA256.fullmatch(image_sha256):
            raise BadInputError(f"image sha256 must be 64 lower-case hex digits, got {image_sha256!r}")
        return self._own_folder / f"{image_sha256}.encoded"

    def _note_written(self, size_bytes: int) -> None:
        with self._lock:
            self._has_told_of_failure = False
            self._unseen_bytes += size_bytes
            stats = self._stats = replace(
                self._stats, bytes=self._stats.bytes + size_bytes, entries=self._stats.entries + 1
            )
            is_time_to_look = (
                stats.bytes > self._max_bytes
                or stats.entries <= FEW_ENTRIES
                or self._unseen_bytes >= self._max_bytes * _LOOK_EVERY
            )
        if is_time_to_look:
            self._evict_once()

    def _evict_once(self) -> None:
        """`_evict`, but a thread that comes while another does it leaves it to that one, which then looks again."""
        self._has_more_to_evict = True
        while self._has_more_to_evict and self._evicting.acquire(blocking=False):
            try:
                self._has_more_to_evict = False
                self._evict()
            finally:
                self._evicting.release()

    def _evict(self) -> None:
        """Remove unfinished files that their writer left, then the least recently used until the bound is kept."""
        evicted = 0
        with locked(self._folder / "evict.lock"):
            files = sorted(list_entries(self._folder))
            total_bytes = sum(file.size_bytes for file in files)
            left_before_ns = time.time_ns() - int(_UNFINISHED_KEPT_S * 1e9)
            goal_bytes = self._max_bytes * _EVICT_TO if total_bytes > self._max_bytes else self._max_bytes
            entries = sum(file.is_finished for file in files)
            for file in files:
                is_left_over = not file.is_finished and file.used_ns < left_before_ns
                if not is_left_over and (total_bytes <= goal_bytes or not file.is_finished):
                    continue
                try:
                    os.unlink(file.path)
                except FileNotFoundError:
                    pass
                except OSError as error:
                    self._tell_of_failure(error)
                    continue
                total_bytes -= file.size_bytes
                entries -= file.is_finished
                evicted += file.is_finished
            self._remove_empty_folders()
        with self._lock:
            self._unseen_bytes = 0
            self._stats = replace(
                self._stats, bytes=total_bytes, entries=entries, evictions=self._stats.evictions + evicted
            )

    def _remove_empty_folders(self) -> None:
        for folder in _signature_folders(self._folder):
            if folder != str(self._own_folder):
                with suppress(OSError):
                    os.rmdir(folder)

    # -- figures

    def _count(self, *, hits: int = 0, memory_hits: int = 0, misses: int = 0, damaged: int = 0) -> None:
        with self._lock:
            old = self._stats
            self._stats = replace(
                old,
                hits=old.hits + hits,
                memory_hits=old.memory_hits + memory_hits,
                misses=old.misses + misses,
                damaged=old.damaged + damaged,
            )

    def _tell_of_failure(self, error: OSError) -> None:
        with self._lock:
            self._stats = replace(self._stats, failures=self._stats.failures + 1)
            is_known = self._has_told_of_failure
            self._has_told_of_failure = True
        if not is_known:
            _log.warning(
                "the feature cache in %s cannot be used (%s): images are encoded each time until it has room and this "
                "user may read and write it",
                self._folder,
                error,
            )


def _pack(encoded: EncodedImage) -> bytes:
    # safetensors writes a transposed array's memory under its transposed shape, which silently is another array.
    arrays = {name: np.asarray(array, order="C") for name, array in encoded.to_arrays().items()}
    content: bytes = safetensors.numpy.save(arrays)
    return _MAGIC + struct.pack("<I", zlib.crc32(content)) + content


def _unpack(packed: bytes, signature: str) -> EncodedImage:
    content = packed[8:]
    if packed[:4] != _MAGIC or packed[4:8] != struct.pack("<I", zlib.crc32(content)):
        raise ValueError(f"{len(packed)} bytes do not match their checksum")
    return EncodedImage.from_arrays(safetensors.numpy.load(content), signature)


def _size_bytes(encoded: EncodedImage) -> int:
    return encoded.features.nbytes + sum(array.nbytes for array in encoded.embedding.values())


def _signature_folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries if _SIGNATURE_FOLDER.fullmatch(entry.name) and entry.is_dir()]
    except OSError:
        return []


def list_entries(folder: Path) -> Iterator[_File]:
    """Return the files of a cache, those of other processes and unfinished ones too."""
    for signature_folder in _signature_folders(folder):
        # Files and folders may go while they are looked at: another process evicts too.
        with suppress(OSError), os.scandir(signature_folder) as entries:
            for entry in entries:
                is_finished = bool(_ENTRY.fullmatch(entry.name))
                if is_finished or _UNFINISHED.fullmatch(entry.name):
                    with suppress(OSError):
                        status = entry.stat(follow_symlinks=False)
                        yield _File(status.st_mtime_ns, entry.path, status.st_size, is_finished)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep others from evicting the same files for nothing; after 2 s, or without a lock file, go on anyway."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        yield
        return
    try:
        deadline = time.monotonic() + LOCK_WAIT_S
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.005)
            except OSError:
                break
        yield
    finally:
        os.close(descriptor)
