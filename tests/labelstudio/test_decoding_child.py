"""Images are decoded in another process, within bounds: no file takes this one's memory or time, or its life."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from backend.cli.process.gunicorn_worker import PatientThreadWorker
from backend.errors import BadInputError, DecodingUnavailableError
from backend.jobs import tasks
from backend.labelstudio import image_decoding
from backend.labelstudio.decoding_pool import MOST_CHILDREN, DecodingPool
from backend.labelstudio.image_decoding import allow_decoding, decode_file, decode_image, stop_decoding
from tests.labelstudio.bombs import progressive_jpeg_with_scans, tiff_with_a_huge_tile

ROOT = Path(__file__).parents[2]


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 6), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def in_use(pool: DecodingPool) -> Iterator[DecodingPool]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(image_decoding, "pool", pool)
        yield pool
    pool.allow()
    pool.end()


@pytest.fixture(autouse=True)
def pool() -> Iterator[DecodingPool]:
    """Children of a test's own, which it may kill."""
    with in_use(DecodingPool()) as pool:
        yield pool


@pytest.fixture(scope="module")
def long_jpeg() -> bytes:
    """Seconds of work for a decoder, within every bound."""
    return progressive_jpeg_with_scans(100, 8000, 8000)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def script(code: str) -> list[str]:
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]


@pytest.mark.parametrize("side", [32768, 8192, 65536])
def test_a_tiff_with_a_huge_tile_is_refused(side: int) -> None:
    with pytest.raises(BadInputError, match=rf"TIFF of 8 x 8 px must have tiles .* got {side} x {side} px: save it"):
        decode_image(tiff_with_a_huge_tile(side))


def test_a_jpeg_with_too_many_scans_is_refused() -> None:
    assert decode_image(progressive_jpeg_with_scans(100)).shape == (64, 64, 3)
    with pytest.raises(BadInputError, match="up to 100 scans, got more"):
        decode_image(progressive_jpeg_with_scans(101))


@pytest.mark.slow
def test_a_thumbnail_in_the_metadata_is_no_scan() -> None:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 8)).save(buffer, "JPEG", exif=b"Exif\0\0" + b"\xff\xda\0\x02" * 200)
    assert decode_image(buffer.getvalue()).shape == (8, 8, 3)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("lossless", [False, True])
def test_a_large_webp_has_the_memory_that_it_needs(mode: str, lossless: bool) -> None:
    buffer = io.BytesIO()
    PIL.Image.new(mode, (7000, 5000), "green").save(buffer, "WEBP", method=0, quality=0, lossless=lossless)
    assert decode_image(buffer.getvalue()).shape == (5000, 7000, 3)
    with pytest.raises(BadInputError, match="at most 34 megapixels, got 7000 x 5000"):
        decode_image(buffer.getvalue(), 34e6)


@pytest.mark.slow
def test_memory_is_bounded_by_the_size_that_a_file_declares() -> None:
    """What no check sees coming."""
    code = """
from backend.labelstudio import decoding_child as child
from tests.labelstudio.bombs import tiff_with_a_huge_tile
child.check_tiles = lambda image: None
import PIL.Image; PIL.Image.init()
print(list(child.answer(tiff_with_a_huge_tile(), 1e6, False, child.own_memory_bytes()))[-1])
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
"""
    done = subprocess.run(script(code), capture_output=True, text=True, check=True, timeout=120)
    told, kilobytes = done.stdout.splitlines()
    assert told.startswith("(b'R', ")
    assert int(kilobytes) < 300_000


@pytest.mark.slow
def test_what_takes_too_long_is_refused_and_the_next_file_decoded(long_jpeg: bytes) -> None:
    with in_use(DecodingPool(seconds=1.0)):
        with pytest.raises(BadInputError, match="decodable within 1 s, got one that takes longer: save it anew"):
            decode_image(long_jpeg)
        assert decode_image(png(7))[0, 0].tolist() == [7, 0, 0]


def kill_those_at_work(pool: DecodingPool, is_over: threading.Event) -> None:
    while not is_over.wait(0.01):
        for child in pool.busy:
            child.kill()


@pytest.mark.slow
def test_a_file_that_kills_its_process_is_refused_and_the_next_one_decoded(
    long_jpeg: bytes, pool: DecodingPool
) -> None:
    is_over = threading.Event()
    killer = threading.Thread(target=kill_those_at_work, args=(pool, is_over))
    killer.start()
    try:
        with pytest.raises(BadInputError, match=r"ended the process that decodes it 2 times \(signal 9\)"):
            decode_image(long_jpeg)
    finally:
        is_over.set()
        killer.join()
    assert decode_image(png(7))[0, 0].tolist() == [7, 0, 0]


@pytest.mark.slow
def test_a_child_that_somebody_killed_is_replaced(pool: DecodingPool) -> None:
    decode_image(png(1))
    (child,) = pool.idle
    os.kill(child.pid, signal.SIGKILL)
    assert decode_image(png(2))[0, 0].tolist() == [2, 0, 0]
    assert child.exit_code == -signal.SIGKILL, "it was reaped"


@pytest.mark.slow
def test_a_process_that_is_to_end_ends_what_it_decodes(long_jpeg: bytes) -> None:
    stop_decoding(after_s=0.3)
    with pytest.raises(DecodingUnavailableError, match="about to end"):
        decode_image(long_jpeg)
    with pytest.raises(DecodingUnavailableError, match="about to end"):
        decode_image(png(7))
    allow_decoding()
    assert decode_image(png(7)).shape == (6, 8, 3)


def test_worker_and_service_end_their_decoding_at_sigterm(pool: DecodingPool) -> None:
    tasks.ask_to_stop()
    will_end = [pool.will_end]
    tasks.use_projects(None)
    will_end.append(pool.will_end)
    worker = object.__new__(PatientThreadWorker)
    worker.alive = False  # nothing else is to be done
    worker.handle_exit(signal.SIGTERM, None)
    assert [*will_end, pool.will_end] == [True, False, True]


@pytest.mark.parametrize(
    ("python", "problem"), [("/nowhere/python", "cannot be started"), ("/bin/false", r"got none \(exit code 1\)")]
)
def test_no_process_to_be_had_is_no_fault_of_the_image(python: str, problem: str) -> None:
    with in_use(DecodingPool(python=python)), pytest.raises(DecodingUnavailableError, match=problem):
        decode_image(png(7))


@pytest.mark.slow
def test_threads_get_their_own_pixels(pool: DecodingPool) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda value: int(decode_image(png(value))[0, 0, 0]), range(200)))
    assert found == list(range(200))
    assert len(pool.idle) <= MOST_CHILDREN


def test_a_child_has_no_secret(monkeypatch: pytest.MonkeyPatch, pool: DecodingPool) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "very-secret")
    decode_image(png(1))
    (child,) = pool.idle
    assert b"very-secret" not in Path(f"/proc/{child.pid}/environ").read_bytes()


@pytest.mark.slow
def test_a_fork_has_children_of_its_own() -> None:
    code = """
import os, io, PIL.Image
from backend.labelstudio import image_decoding as decoding
buffer = io.BytesIO(); PIL.Image.new("RGB", (4, 4)).save(buffer, "PNG"); data = buffer.getvalue()
def decode():
    assert decoding.decode_image(data).shape == (4, 4, 3)
    return decoding.pool.idle[0].pid
first = decode()
if (pid := os.fork()) == 0:
    os._exit(0 if decode() != first else 1)
assert os.waitpid(pid, 0)[1] == 0
assert decode() == first
print("ok")
"""
    done = subprocess.run(script(code), capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("ok\n", "")


@pytest.mark.slow
def test_no_child_outlives_a_parent_that_is_killed(tmp_path: Path, long_jpeg: bytes) -> None:
    (tmp_path / "long.jpg").write_bytes(long_jpeg)
    code = f"""
import threading, time
from backend.labelstudio import image_decoding as decoding
data = open({str(tmp_path / "long.jpg")!r}, "rb").read()
threading.Thread(target=decoding.decode_image, args=(data,), daemon=True).start()
while not decoding.pool.busy:
    time.sleep(0.01)
print(*(child.pid for child in decoding.pool.busy), flush=True)
time.sleep(600)
"""
    with subprocess.Popen(script(code), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_running(child)
        parent.kill()
    wait_until(lambda: not is_running(child))


@pytest.mark.slow
def test_what_a_file_says_of_itself_comes_with_its_pixels() -> None:
    decoded = decode_file(png(3))
    assert (decoded.kind, decoded.has_orientation) == ("PNG", False)
    assert np.array_equal(decoded.pixels, decode_image(png(3)))
