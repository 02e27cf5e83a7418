"""How many requests predict at a time, and whether anybody still waits for one."""

import select
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from backend.errors import ModelUnavailableError
from backend.metrics import Metrics

_PREDICTING_SHARE = 0.75
"""Share of the threads that may predict or wait for the models. The others stay free for /health, /setup and /webhook,
on whose quick answers Label Studio insists."""


class PredictionSlots:
    """Bounds how many requests predict at a time; one more is refused at once, instead of taking the last thread.

    Args:
        threads: of the service.
        metrics: which count what runs.
    """

    def __init__(self, threads: int, metrics: Metrics) -> None:
        self._most = most = max(1, int(threads * _PREDICTING_SHARE))
        self._free = threading.BoundedSemaphore(most)
        self._running = metrics.predictions_running

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold a slot inside.

        Raises:
            ModelUnavailableError: all are taken.
        """
        if not self._free.acquire(blocking=False):
            raise ModelUnavailableError(
                f"the backend is busy: {self._most} requests for predictions run or wait; try again in some seconds"
            )
        try:
            with self._running.track_inprogress():
                yield
        finally:
            self._free.release()


def client_is_gone(environ: Mapping[str, Any]) -> bool:
    """Return whether the sender of a request closed the connection; False if that cannot be seen.

    Args:
        environ: of WSGI; gunicorn and werkzeug put the client's socket into it.
    """
    client = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
    if client is None:
        return False
    try:
        poll = select.poll()
        poll.register(client, select.POLLIN)
        # After a request there is nothing to read but its end, or a pipelined next request, which is someone alive.
        return bool(poll.poll(0)) and client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except (BlockingIOError, ValueError):  # nothing to read after all; TLS, which cannot be peeked into
        return False
    except OSError:
        return True
