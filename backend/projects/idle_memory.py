"""Gives memory that freed objects leave behind back to the system, once nothing uses the models any more."""

import ctypes
import threading
import time
from collections.abc import Callable
from contextlib import suppress

IDLE_S = 10.0
"""Seconds without a model call after which memory is given back."""


def trim_memory() -> None:
    """Give freed memory back to the system; nothing where the C library has no such call."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class IdleMemory:
    """Trims the process's memory after each busy time.

    Args:
        idle_s: seconds without any use after which it is trimmed.
        trim: what is called then.
    """

    def __init__(self, *, idle_s: float = IDLE_S, trim: Callable[[], None] = trim_memory) -> None:
        self._idle_s = idle_s
        self._trim = trim
        self._lock = threading.Lock()
        self._last_use = 0.0
        self._timer: threading.Timer | None = None

    def used(self) -> None:
        """Note that the models were used; whatever the number of calls, one thread waits for them to end."""
        with self._lock:
            self._last_use = time.monotonic()
            if self._timer is None:
                self._wait(self._idle_s)

    def _wait(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._look)
        self._timer.daemon = True
        self._timer.start()

    def _look(self) -> None:
        with self._lock:
            left = self._last_use + self._idle_s - time.monotonic()
            if left > 0:
                self._wait(left)
                return
            self._timer = None
        self._trim()
