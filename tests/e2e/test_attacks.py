"""Raw connections to the running service: slow clients hold no thread, paths lead nowhere else, nothing breaks it."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from tests.e2e.scene import Backend

MORE_THAN_THREADS = 24


def _connect(backend: Backend) -> socket.socket:
    parts = urlsplit(backend.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=60)


def _say(backend: Backend, request: bytes) -> bytes:
    """All that comes back until the service closes the connection."""
    with _connect(backend) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.fixture
def slow_clients(backend: Backend) -> Iterator[list[socket.socket]]:
    """More than there are threads: silent ones, half heads, heads without their body."""
    starts = (b"", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
    with ExitStack() as stack:
        clients = [stack.enter_context(_connect(backend)) for _ in range(MORE_THAN_THREADS)]
        for number, client in enumerate(clients):
            client.sendall(starts[number % len(starts)])
        yield clients


def test_slow_clients_hold_up_nobody(backend: Backend, slow_clients: list[socket.socket]) -> None:
    """gunicorn's own worker would give each a thread: idle ones for 5 s, half a head for ever."""
    for _ in range(10):
        for client in slow_clients[1::2]:
            client.sendall(b"x")
        time.sleep(0.05)
        assert backend.get("/health").json()["status"] == "UP"
    slow_clients[1].sendall(b"\r\n\r\n")
    assert b" 200 " in slow_clients[1].recv(20), "slow, but then whole"
    for client in (*slow_clients[0::2], *slow_clients[3::2]):
        try:
            assert client.recv(65536) == b"", "given up by the service"
        except ConnectionResetError:
            continue  # given up, with what it had sent unread


@pytest.mark.parametrize(
    "path",
    [
        "/projects/static/../../service.py", "/projects/static/..%2f..%2fservice.py",
        "/projects/static/%2e%2e/openapi.json",
        "/projects/static/..\\..\\service.py", "/projects/static//etc/passwd", "/projects/static/%00page.css",
        "/projects/static/....//service.py", "/../../etc/passwd",
        "//etc/passwd", "/projects/static/", "/projects/static/.",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_folder_of_pages(backend: Backend, path: str) -> None:
    answer = _say(backend, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    assert answer.split(b" ")[1] in (b"404", b"400", b"308"), answer[:200]
    assert b"import" not in answer
    assert b"root:" not in answer


@pytest.mark.parametrize(
    "request_text",
    [
        "GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "POST /webhook HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked"
        "\r\n\r\n0\r\n\r\n{}",
        "POST /webhook HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n{}",
        "POST /webhook HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
        "POST /webhook HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{}",
        "POST /webhook HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + "X-Long: " + "x" * 20_000 + "\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + "X-Many: x\r\n" * 2_000 + "\r\n",
        "GET /" + "x" * 20_000 + " HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        "\x00\x01\x02 nonsense\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n",
        "GET http://127.0.0.1:1/ HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
    ],
)
def test_broken_requests_get_a_4xx_and_leave_nothing_behind(backend: Backend, request_text: str) -> None:
    answer = _say(backend, request_text.encode("latin-1"))
    assert not answer or answer.split(b" ")[1][:1] == b"4" or b" 200 " in answer[:20], answer[:200]
    assert b"Traceback" not in answer
    assert backend.get("/health").status_code == 200
