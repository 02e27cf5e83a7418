"""gunicorn's worker with our changes, over real sockets, without models: slow, idle and refused clients."""

import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from backend.cli.process.gunicorn_worker import MOST_WAITING, PacedSocket
from backend.cli.process.supervisor import LOOPBACK, free_port

THREADS = 4
_SERVER = """
    import sys
    import time
    from flask import Flask, jsonify, request
    from gunicorn.app.base import BaseApplication
    from backend.web.access import guard
    from backend.cli.process import gunicorn_worker
    from backend.errors import BadInputError, ModelUnavailableError
    from backend.settings import load_settings

    gunicorn_worker.SILENCE_S, gunicorn_worker.BODY_GRACE_S = 1.0, 2.0

    class Service(BaseApplication):
        def load_config(self):
            options = {"bind": f"127.0.0.1:{sys.argv[1]}", "workers": 1, "threads": 4, "keepalive": 5,
                       "worker_class": gunicorn_worker.PatientThreadWorker, "loglevel": "error",
                       "forwarder_headers": ""}
            for name, value in options.items():
                self.cfg.set(name, value)

        def load(self):
            app = Flask("test")
            guard(app, load_settings(basic_auth_user="ls", basic_auth_pass="secret", service_threads=4))
            app.register_error_handler(ModelUnavailableError, lambda error: (str(error), 503))
            app.register_error_handler(BadInputError, lambda error: (str(error), 422))
            app.add_url_rule("/slow", "slow", view_func=lambda: time.sleep(2.5) or "UP")
            app.add_url_rule("/health", view_func=lambda: "UP", methods=["GET", "POST"])
            return app

    Service().run()
"""
AUTH = b"Authorization: Basic bHM6c2VjcmV0\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n" + AUTH
POST = b"POST /health HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 500000\r\n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    number = free_port()
    command = [sys.executable, "-c", textwrap.dedent(_SERVER), str(number)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[3]) as process:
        for _ in range(300):
            try:
                _connect(number).close()
                break
            except OSError:
                time.sleep(0.1)
        yield number
        process.terminate()


def _connect(port: int) -> socket.socket:
    return socket.create_connection((LOOPBACK, port), timeout=60)


def _ask(port: int, request: bytes) -> bytes:
    with _connect(port) as connection:
        connection.sendall(request)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def _is_healthy(port: int) -> bool:
    return _ask(port, HEALTH + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 200")


def _status(connection: socket.socket) -> bytes:
    """The status of an answer whose body is `UP`."""
    answer = b""
    while not answer.endswith(b"UP"):
        part = connection.recv(4096)
        assert part, answer
        answer += part
    return answer.split(b" ")[1]


def _rest(connection: socket.socket) -> bytes:
    """All that still comes; a reset after it counts as its end."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


@pytest.mark.slow
def test_a_refused_body_is_not_waited_for(port: int) -> None:
    """More senders of slow bodies without a password than there are threads."""
    with ExitStack() as stack:
        clients = [stack.enter_context(_connect(port)) for _ in range(4 * THREADS)]
        for client in clients:
            client.sendall(POST + b"\r\n{")
        answers = [client.recv(4096) for client in clients]
        for _ in range(5):
            for client in clients:
                with suppress(OSError):  # closed by the service
                    client.sendall(b"x")
            assert _is_healthy(port)
    assert not [answer for answer in answers if not answer.startswith(b"HTTP/1.1 401")]
    assert not [answer for answer in answers if b"Connection: close" not in answer]


def test_a_large_body_that_is_refused_still_gets_its_answer(port: int) -> None:
    """Label Studio must be told that the password is wrong, not that the connection broke."""
    with _connect(port) as client:
        client.sendall(POST + b"\r\n" + b"x" * 400_000)
        time.sleep(0.2)
        client.sendall(b"x" * 100_000)
        assert _rest(client).startswith(b"HTTP/1.1 401")


@pytest.mark.slow
def test_a_slow_body_behind_the_password_ends_and_leaves_threads(port: int) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(_connect(port)) for _ in range(4 * THREADS)]
        for client in clients:
            client.sendall(POST + AUTH + b"\r\n{")
        statuses = set()
        for client in clients:
            client.settimeout(0.3)
        waiting = list(clients)
        while waiting:
            for client in tuple(waiting):
                try:
                    client.sendall(b"x")
                    answer = client.recv(4096)
                except TimeoutError:
                    continue
                except OSError:
                    answer = b""
                statuses.add(answer[9:12])
                waiting.remove(client)
            assert _is_healthy(port)
    assert statuses <= {b"400", b"503", b""}
    assert b"400" in statuses


def test_idle_connections_keep_nobody_out(port: int) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(_connect(port)) for _ in range(MOST_WAITING + 200)]
        assert _is_healthy(port)
        assert idle[0].recv(1) == b"", "the oldest made room"


def test_a_connection_is_kept_for_whoever_may_come_in(port: int) -> None:
    with _connect(port) as client:
        for _ in range(3):
            client.sendall(HEALTH + b"\r\n")
            assert _status(client) == b"200"
        client.sendall(b"POST /health HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n" + AUTH + b"\r\n{}")
        assert _status(client) == b"200"
        client.sendall(HEALTH + b"\r\n")
        assert _status(client) == b"200"


@pytest.mark.slow
def test_a_connection_may_be_used_again_after_an_answer_that_took_long(port: int) -> None:
    with _connect(port) as connection:
        connection.sendall(b"GET /slow HTTP/1.1\r\nHost: 127.0.0.1\r\n" + AUTH + b"\r\n")
        assert _status(connection) == b"200", "longer than a body may take"
        time.sleep(0.2)
        connection.sendall(HEALTH + b"\r\n")
        assert _status(connection) == b"200"


@pytest.mark.parametrize("header", [b"SCRIPT_NAME: /elsewhere\r\n", b"PATH_INFO: /nowhere\r\n"])
def test_a_header_does_not_move_the_application(port: int, header: bytes) -> None:
    answer = _ask(port, HEALTH + header + b"Connection: close\r\n\r\n")
    assert answer.split(b" ")[1] in (b"200", b"400")


@pytest.mark.slow
def test_a_body_is_paced() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(30.0)
        now = [100.0]
        paced = PacedSocket(ours, clock=lambda: now[0])
        theirs.sendall(b"abc")
        assert paced.recv(10) == b"abc"
        assert paced.gettimeout() == 30.0
        now[0] += 60.0
        theirs.sendall(b"abc")
        with pytest.raises(TimeoutError, match="less than"):
            paced.recv(10)
