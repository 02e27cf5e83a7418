"""A real HTTP server in a thread, for tests: routes are functions from request to answer, requests are kept."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    stream: Callable[[Any], object] | None = None
    """Writes the answer to the socket's file itself, headers and all."""


Route = Callable[[Request], Answer]


def _not_found(request: Request) -> Answer:
    return Answer(status=404)


@dataclass
class Web:
    url: str
    port: int
    routes: dict[str, Route] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def always(self, path: str, *answers: Answer) -> None:
        """Gives the answers one after the other, then the last one again and again."""
        left = list(answers)
        self.routes[path] = lambda _: left.pop(0) if len(left) > 1 else left[0]


@contextmanager
def serve() -> Iterator[Web]:
    web = Web("", 0)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, parts.path, parse_qs(parts.query), headers, body)
            web.requests.append(request)
            route = web.routes.get(parts.path, _not_found)
            answer = route(request)
            if answer.stream is not None:
                self.close_connection = True
                answer.stream(self.wfile)
                return
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # clients that hang up are part of the tests

    server = Server(("127.0.0.1", 0), Handler)
    web.port = server.server_address[1]
    web.url = f"http://127.0.0.1:{web.port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
