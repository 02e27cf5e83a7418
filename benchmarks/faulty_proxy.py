"""What stands between the backend and Label Studio, and can get in the way of some of the requests."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

_HOP_BY_HOP = ("content-length", "transfer-encoding", "connection", "content-encoding", "keep-alive", "host")


@dataclass(frozen=True)
class Answer:
    """What a client gets: a status, bytes and headers."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


Fault = Callable[[str, str, bytes], Answer | None]
"""Method, path and body of a request -> an answer of the proxy's own, or None to pass it on."""


class FaultyProxy:
    """Passes every request on to one server, but for those that the present fault answers itself.

    Attributes:
        url: of the proxy.
        fault: the present one, asked in the thread of the request, so it may take its time.
        seen: called with path, request body and the server's answer after each request that was passed on.
    """

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self.seen: Callable[[str, bytes, Answer], None] | None = None
        self.target = ""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                self.session = requests.Session()
                self.session.trust_env = False

            def finish(self) -> None:
                self.session.close()
                super().finish()

            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = proxy.fault
                answer = fault(self.command, self.path, body) if fault is not None else None
                if answer is None:
                    answer = self._of_server(body)
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

            def _of_server(self, body: bytes) -> Answer:
                kept = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
                try:
                    given = self.session.request(
                        self.command, proxy.target + self.path, data=body or None, allow_redirects=False, timeout=120,
                        headers=kept | {"Accept-Encoding": "identity"},
                    )  # fmt: skip
                except requests.RequestException as error:
                    return Answer(502, f"bad gateway: {type(error).__name__}".encode(), {"Content-Type": "text/plain"})
                headers = {name: value for name, value in given.headers.items() if name.lower() not in _HOP_BY_HOP}
                answer = Answer(given.status_code, given.content, headers)
                if proxy.seen is not None:
                    proxy.seen(self.path, body, answer)
                return answer

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _pass_on  # noqa: N815

            def handle(self) -> None:
                try:
                    super().handle()
                except (BrokenPipeError, ConnectionResetError):
                    return  # the client gave up meanwhile

            def log_message(self, format: str, *args: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def lead_to(self, target: str) -> str:
        """Pass requests on to this server from now on; the address to use in its place."""
        self.target = target
        return self.url

    def close(self) -> None:
        """Take no more requests."""
        self._server.shutdown()
        self._server.server_close()
