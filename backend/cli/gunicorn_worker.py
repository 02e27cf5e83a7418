"""gunicorn's threaded worker, whose threads no slow client can hold."""

import functools
import selectors
import socket
import time
from typing import Any

from gunicorn.workers.gthread import TConn, ThreadWorker

SILENCE_S = 30.0
"""Between two parts of a body. Label Studio sends it as fast as it can."""
_LONGEST_HEAD = 1 << 20
"""Above what gunicorn accepts: 100 headers of 8,190 bytes."""


class PatientThreadWorker(ThreadWorker):  # type: ignore[misc]
    """Gives a request a thread once its head is there; one whose head takes longer than the keepalive time is closed.

    gunicorn's own gives every new connection a thread for five seconds, and half a head one for ever: as many slow
    clients as there are threads would make /health fail.
    """

    def accept(self, listener: socket.socket) -> None:
        """Wait for the head in the event loop, which takes no thread."""
        try:
            client, address = listener.accept()
        except OSError:
            return  # gone again
        self.nr_conns += 1
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
        conn.sock.settimeout(SILENCE_S)
        return super().handle_request(req, conn)


def _has_head(client: socket.socket) -> bool:
    """Whether a whole request head waits to be read, or nothing more will come."""
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
