"""Processes that decode image files, a file at a time each (`decoding_child`), within bounds of memory and time."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL

from backend.core.types import Image
from backend.errors import BadInputError, DecodingUnavailableError
from backend.labelstudio import decoding_child
from backend.labelstudio.decoding_child import ANSWER, DESCRIPTION, PIXELS, READY, REJECTION, REQUEST, SECONDS

MOST_CHILDREN = max(2, min(8, os.cpu_count() or 1))
"""Files decoded at a time; each child is started when it is needed first, and stays."""
_FILES_A_CHILD = 1000
"""Then another child is started: what a decoder leaks does not add up."""
_BUFFER_BYTES = 4 << 20
_STARTS_WITHIN_S = 60.0
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "SYSTEMROOT")

_TURNS: dict[object, Callable[[Image], Image]] = {
    2: lambda rgb: rgb[:, ::-1],
    3: lambda rgb: rgb[::-1, ::-1],
    4: lambda rgb: rgb[::-1],
    5: lambda rgb: rgb.transpose(1, 0, 2),
    6: lambda rgb: rgb.transpose(1, 0, 2)[:, ::-1],
    7: lambda rgb: rgb.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda rgb: rgb.transpose(1, 0, 2)[::-1],
}
"""From how the picture is stored to how it is shown, by EXIF orientation."""
_LYING = (5, 6, 7, 8)
"""Orientations of a picture that is stored on its side."""


@dataclass(frozen=True, eq=False)
class DecodedFile:
    """An image file and what it says of itself.

    Attributes:
        pixels: (h, w, 3) uint8 RGB, upright; smaller than the image if it was asked for so.
        size_hw: natural size of the image, upright.
        kind: the format as Pillow names it ("JPEG").
        has_orientation: whether Pillow finds an orientation other than 1 in it, followed or not; True too if its
            metadata cannot be read.
    """

    pixels: Image
    size_hw: tuple[int, int]
    kind: str
    has_orientation: bool

    @property
    def is_reduced(self) -> bool:
        """Return whether the pixels are those of a part of its size."""
        return self.pixels.shape[:2] != self.size_hw


class ChildEndedError(Exception):
    """A child ended without an answer: killed by the system for want of memory, or by a fault of a decoder."""


class DecodingChild:
    """A process that decodes one file at a time.

    Args:
        seconds: for one file.
        python: the interpreter that it runs.

    Raises:
        DecodingUnavailableError: it cannot be started.
    """

    def __init__(self, *, seconds: float = SECONDS, python: str = sys.executable) -> None:
        self._seconds = seconds
        self._files = 0
        # Where its packages are: an isolated interpreter reads neither PYTHONPATH nor the folder of the user.
        packages = {str(Path(module.__file__ or "").parents[1]) for module in (np, PIL)}
        self._connection, other = socket.socketpair()
        for end in (self._connection, other):
            with suppress(OSError):  # what the system allows
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        with other:
            try:
                self._process = subprocess.Popen(  # noqa: S603
                    [python, "-I", decoding_child.__file__, *sorted(packages)],
                    stdin=other.fileno(),
                    stdout=subprocess.DEVNULL,
                    # A terminal's Ctrl-C does not reach it: Python would end with a traceback while it starts. It ends
                    # with this process, whose end of the socket closes then.
                    process_group=0,
                    # Nothing of ours that a decoder which was taken over could tell; one thread for NumPy.
                    env={name: os.environ[name] for name in _PASSED_ON if name in os.environ}
                    | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
                )
            except OSError as error:
                self._connection.close()
                raise DecodingUnavailableError(
                    f"a process that decodes images cannot be started ({error}): free memory or processes"
                ) from error
        self._deadline = time.monotonic() + _STARTS_WITHIN_S
        try:
            self._receive(bytearray(len(READY)))
        except (ChildEndedError, TimeoutError) as error:
            self.end()
            raise DecodingUnavailableError(
                f"a process that decodes images must start within {_STARTS_WITHIN_S:g} s, got none ({error}): the log "
                "has what it said"
            ) from error
        except BaseException:
            self.end()
            raise

    @property
    def pid(self) -> int:
        """Return the id of its process."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Return what its process ended with, negative for a signal; None while it runs."""
        return self._process.poll()

    @property
    def is_usable(self) -> bool:
        """Return whether it runs and may take another file."""
        return self._files < _FILES_A_CHILD and self.exit_code is None

    def decode(self, data: bytes, max_pixels: float, wanted: int, least_side_px: int = 0) -> DecodedFile:
        """Return what is in a file.

        Raises:
            BadInputError: the child refuses it.
            TimeoutError: it takes too long.
            ChildEndedError: the child ended.
        """
        self._files += 1
        self._deadline = time.monotonic() + self._seconds
        self._send(REQUEST.pack(len(data), max_pixels, wanted, least_side_px))
        self._send(data)
        received = json.loads(self._part(DESCRIPTION))
        rgb = np.empty((int(received["height"]), int(received["width"]), 3), np.uint8)
        rows = rgb.data.cast("B")
        while len(rows):
            rows = rows[self._receive_part(PIXELS, rows) :]
        turn = _TURNS.get(received["orientation"])
        upright = rgb if turn is None else np.ascontiguousarray(turn(rgb))
        whole_hw = int(received["whole_height"]), int(received["whole_width"])
        size_hw = whole_hw[::-1] if received["orientation"] in _LYING else whole_hw
        return DecodedFile(upright, size_hw, str(received["kind"]), bool(received.get("has_orientation", True)))

    def end(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def kill(self) -> None:
        """End it at once, from a thread that does not use it: who uses it notices."""
        self._process.kill()

    def forget(self) -> None:
        """Let go of what is another process' child: this one is a fork of its parent."""
        self._connection.close()
        self._process.returncode = 0

    def _part(self, kind: bytes) -> bytes:
        size = self._head(kind)
        content = bytearray(size)
        self._receive(content)
        return bytes(content)

    def _receive_part(self, kind: bytes, into: memoryview) -> int:
        size = self._head(kind)
        if size > len(into):
            raise ChildEndedError("it sent more than there is")
        self._receive(into[:size])
        return size

    def _head(self, kind: bytes) -> int:
        head = bytearray(ANSWER.size)
        self._receive(head)
        got, size = ANSWER.unpack(head)
        if got == REJECTION:
            reason = bytearray(size)
            self._receive(reason)
            raise BadInputError(reason.decode())
        if got != kind:
            raise ChildEndedError("it sent something else than an answer")
        return int(size)

    def _send(self, content: bytes) -> None:
        self._connection.settimeout(self._left_s())
        try:
            self._connection.sendall(content)
        except TimeoutError:
            raise
        except OSError as error:
            raise ChildEndedError(self._how_it_ended()) from error

    def _receive(self, into: bytearray | memoryview) -> None:
        left = memoryview(into)
        while len(left):
            self._connection.settimeout(self._left_s())
            try:
                got = self._connection.recv_into(left)
            except TimeoutError:
                raise
            except OSError as error:
                raise ChildEndedError(self._how_it_ended()) from error
            if not got:
                raise ChildEndedError(self._how_it_ended())
            left = left[got:]

    def _left_s(self) -> float:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s

    def _how_it_ended(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(5)
            return f"signal {-code}" if code < 0 else f"exit code {code}"
        return "it closed the connection"


class DecodingPool:
    """The children of this process: as many as files are decoded at a time, up to `MOST_CHILDREN`.

    Args:
        seconds: for one file.
        python: the interpreter that children run.
    """

    def __init__(self, *, seconds: float = SECONDS, python: str = sys.executable) -> None:
        self._seconds = seconds
        self._python = python
        self._free = threading.BoundedSemaphore(MOST_CHILDREN)
        self._lock = threading.Lock()
        self._idle: list[DecodingChild] = []
        self._busy: set[DecodingChild] = set()
        self._is_ending = False
        self._ending: threading.Timer | None = None

    @property
    def idle(self) -> tuple[DecodingChild, ...]:
        """Return the children that wait for a file."""
        return tuple(self._idle)

    @property
    def busy(self) -> tuple[DecodingChild, ...]:
        """Return the children that decode one."""
        with self._lock:
            return tuple(self._busy)

    @property
    def will_end(self) -> bool:
        """Return whether `stop_later` was called and not taken back."""
        return self._ending is not None

    def decode(self, data: bytes, max_pixels: float, wanted: int, least_side_px: int = 0) -> DecodedFile:
        """Decode a file in a child that is free, or as soon as one is.

        Raises:
            BadInputError, DecodingUnavailableError: as `decode_image`.
            ChildEndedError: the child ended.
        """
        with self._free:
            child = self._take()
            is_done = False
            try:
                decoded = child.decode(data, max_pixels, wanted, least_side_px)
                is_done = True
            except BadInputError:
                is_done = True
                raise
            except TimeoutError as error:
                raise BadInputError(
                    f"image must be decodable within {self._seconds:g} s, got one that takes longer: save it anew, "
                    "smaller or as a plain JPEG or PNG"
                ) from error
            except ChildEndedError as error:
                if self._is_ending:
                    raise _ending_error() from error
                raise
            finally:
                self._give_back(child, is_done=is_done)
            return decoded

    def _take(self) -> DecodingChild:
        child = None
        with self._lock:
            while self._idle and child is None:
                child = self._idle.pop()
                if not child.is_usable:
                    child.end()
                    child = None
        child = child or DecodingChild(seconds=self._seconds, python=self._python)
        with self._lock:
            self._busy.add(child)
            is_ending = self._is_ending
        if is_ending:
            self._give_back(child, is_done=False)
            raise _ending_error()
        return child

    def _give_back(self, child: DecodingChild, *, is_done: bool) -> None:
        if not is_done:  # in the middle of an answer
            child.end()
        with self._lock:
            self._busy.discard(child)
            if is_done:
                self._idle.append(child)

    def stop_later(self, after_s: float) -> None:
        """End all in `after_s` seconds, those at work too."""
        if self._ending is None:
            self._ending = threading.Timer(after_s, self._stop)
            self._ending.daemon = True
            self._ending.start()

    def _stop(self) -> None:
        with self._lock:
            self._is_ending = True
            for child in self._busy:
                child.kill()

    def allow(self) -> None:
        """Take back `stop_later`."""
        if self._ending is not None:
            self._ending.cancel()
        self._ending, self._is_ending = None, False

    def end(self) -> None:
        """End all: the interpreter ends."""
        self._stop()
        with self._lock:
            for child in self._idle:
                child.end()
            self._idle.clear()

    def forget(self) -> None:
        """Let go of children of the process that this one is a fork of."""
        for child in (*self._idle, *self._busy):
            child.forget()


def _ending_error() -> DecodingUnavailableError:
    return DecodingUnavailableError("this process is about to end and decodes no further image: try again")
