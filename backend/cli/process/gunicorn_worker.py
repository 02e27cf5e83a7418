"""gunicorn's threaded worker, whose threads and connections no slow client can hold."""

import functools
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from types import FrameType
from typing import Any

from gunicorn.workers.gthread import TConn, ThreadWorker

from backend.labelstudio.image_decoding import DECODING_ENDS_AFTER_S, stop_decoding

SILENCE_S = 5.0
"""Longest wait for the next part of a body, seconds. Label Studio sends it as fast as it can."""
BODY_GRACE_S = 10.0
"""Time that every body is given, seconds; beyond it the body has to come at `BODY_LEAST_RATE`."""
BODY_LEAST_RATE = 256 * 1024
"""Bytes per second that a long body has to come at on average."""
MOST_WAITING = 256
"""Connections without a request that are kept, of each kind: new ones, kept-alive ones, ones about to be closed. One
more closes the oldest, so that idle connections never keep a client out."""
_ANSWER_TIMEOUT_S = 30.0
"""Longest wait for a client that does not take its answer."""
_LINGER_S = 2.0
"""Time in which a client may take the answer of a connection that is closed with a body unread."""
_LINGER_BYTES = 4 << 20
_REFUSED = ("400", "401", "403", "408", "413", "429")
"""Statuses after which the connection is closed: whoever is refused keeps nothing of ours."""
_LONGEST_HEAD = 1 << 20
"""Above what gunicorn accepts: 100 headers of 8,190 bytes."""


class PatientThreadWorker(ThreadWorker):  # type: ignore[misc]
    """Gives a request a thread once its head is there; one whose head takes longer than the keepalive time is closed.

    gunicorn's own gives every new connection a thread for five seconds, and half a head one for ever; it reads what is
    left of a refused body in the thread, and closes connections in the event loop, which waits two seconds for each: as
    many slow clients as there are threads would make /health fail.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.max_keepalived = MOST_WAITING
        self._lingering: deque[TConn] = deque()

    def load_wsgi(self) -> None:
        """Load the application, with connections closed after what was refused or not read."""
        super().load_wsgi()  # what is wrong with the application shows up here
        self.wsgi: Callable[..., Iterable[bytes]] = _closing_unread(self.app.wsgi())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM: requests get the time that they need, but images that take long are not decoded to their end."""
        stop_decoding(after_s=DECODING_ENDS_AFTER_S)
        super().handle_exit(sig, frame)

    def accept(self, listener: socket.socket) -> None:
        """Wait for the head in the event loop, which takes no thread."""
        try:
            client, address = listener.accept()
        except OSError:
            return  # gone again
        self.nr_conns += 1
        self._make_room(self.pending_conns)
        connection = TConn(self.cfg, client, address, listener.getsockname())
        connection.timeout = time.monotonic() + self.cfg.keepalive
        self.pending_conns.append(connection)
        on_data = functools.partial(self.on_pending_socket_readable, connection)
        self.poller.register(client, selectors.EVENT_READ, on_data)

    def on_pending_socket_readable(self, conn: TConn, client: socket.socket) -> None:
        """In the event loop: something came on a new connection."""
        if _has_head(client):
            super().on_pending_socket_readable(conn, client)

    def on_client_socket_readable(self, conn: TConn, client: socket.socket) -> None:
        """In the event loop: something came on a connection that had a request before."""
        if _has_head(client):
            super().on_client_socket_readable(conn, client)

    def handle_request(self, req: Any, conn: TConn) -> Any:
        """In a thread: the head is read, the body not yet."""
        conn.sock.settimeout(_ANSWER_TIMEOUT_S)
        conn.parser.unreader.sock = PacedSocket(conn.sock)
        return super().handle_request(req, conn)

    def _keepalive_after(self, conn: TConn, keepalive: bool) -> bool:
        """In a thread: whether the connection may be used again, which what is left of a body forbids."""
        if not keepalive or _is_unread(conn.parser.mesg.body):
            return False
        # The time of a body is over with its request: the event loop sees to it that the next head is there.
        conn.parser.unreader.sock = conn.sock
        return bool(super()._keepalive_after(conn, keepalive))

    def finish_request(self, conn: TConn, fs: "Future[Any]") -> None:
        """In the event loop: the answer is sent."""
        if fs.cancelled() or fs.exception() is not None or fs.result():
            super().finish_request(conn, fs)
        else:
            self._linger(conn)

    def _linger(self, conn: TConn) -> None:
        """Say that nothing more comes, and throw away what still arrives, so that the answer is not lost to a reset."""
        self._make_room(self._lingering)
        try:
            conn.sock.setblocking(False)
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:  # closed by the client
            self.nr_conns -= 1
            conn.close()
            return
        conn.timeout = time.monotonic() + _LINGER_S
        conn.left = _LINGER_BYTES
        self._lingering.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, functools.partial(self._discard, conn))

    def _discard(self, conn: TConn, client: socket.socket) -> None:
        try:
            received = len(client.recv(65536))
        except BlockingIOError:
            return
        except OSError:
            received = 0
        conn.left -= received
        if not received or conn.left < 0:
            self._lingering.remove(conn)
            self._drop(conn)

    def murder_pending(self) -> None:
        """In the event loop: close what has waited long enough."""
        super().murder_pending()
        while self._lingering and self._lingering[0].timeout <= time.monotonic():
            self._drop(self._lingering.popleft())

    def _make_room(self, waiting: "deque[TConn]") -> None:
        while len(waiting) >= MOST_WAITING:
            self._drop(waiting.popleft())

    def _drop(self, conn: TConn) -> None:
        with suppress(OSError, KeyError, ValueError):  # not registered any more
            self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()


class PacedSocket:
    """A connection's socket while a body is read: a total time, and a least rate beyond it.

    Args:
        client: the blocking socket.
        clock: of seconds.
    """

    def __init__(self, client: socket.socket, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._started = clock()
        self._received = 0

    def recv(self, size: int) -> bytes:
        """Return the next bytes.

        Raises:
            TimeoutError: they do not come in time, or the body came too slowly so far.
        """
        left_s = self._started + BODY_GRACE_S + self._received / BODY_LEAST_RATE - self._clock()
        if left_s <= 0:
            raise TimeoutError(f"the body came at less than {BODY_LEAST_RATE // 1024} kB a second")
        before = self._client.gettimeout()
        self._client.settimeout(min(SILENCE_S, left_s))
        try:
            part = self._client.recv(size)
        finally:
            self._client.settimeout(before)
        self._received += len(part)
        return part

    def gettimeout(self) -> float | None:
        """Return the socket's timeout, seconds."""
        return self._client.gettimeout()

    def settimeout(self, timeout_s: float | None) -> None:
        """Set the socket's timeout, seconds."""
        self._client.settimeout(timeout_s)


def _closing_unread(application: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """Close the connection after an answer that refuses the request or leaves its body unread."""

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        def start(status: str, *args: Any) -> Any:
            if status.startswith(_REFUSED) or _is_unread(environ["wsgi.input"]):
                start_response.__self__.force_close()
            return start_response(status, *args)

        return application(environ, start)

    return answer


def _is_unread(body: Any) -> bool:
    """Return whether a part of gunicorn's request body was not read, or one without a length was not ended."""
    if body is None:
        return False
    length, parser = getattr(body.reader, "length", None), getattr(body.reader, "parser", None)
    return bool(body.failed or length or parser is not None)


def _has_head(client: socket.socket) -> bool:
    """Return whether a whole request head waits to be read, or nothing more will come."""
    try:
        seen = client.recv(_LONGEST_HEAD, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True  # reset by the client: the thread finds that out
    is_whole = not seen or b"\r\n\r\n" in seen or len(seen) >= _LONGEST_HEAD
    # Until more has come than what was seen the poller shall keep still.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1 if is_whole else len(seen) + 1)
    return is_whole
