"""A web server that breaks off, changes its mind and lies, as real ones do."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class WeightsServer:
    """What it serves and how.

    Attributes:
        content: of every file.
        cut_after: bytes after which each of the next answers breaks off; one entry an answer, None: never.
        statuses: statuses of the next answers in place of the file.
        etag: of the file; None: it has neither ETag nor date.
        has_ranges: answers Range requests with the part.
        content_type: of the file.
        requests: Range headers (or None) that came.
    """

    content: bytes
    cut_after: list[int | None] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    etag: str | None = '"one"'
    has_ranges: bool = True
    content_type: str = "application/octet-stream"
    requests: list[str | None] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve_weights(content: bytes) -> Iterator[WeightsServer]:
    """A server on loopback."""
    state = WeightsServer(content)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.requests.append(wanted)
            if state.statuses:
                self.send_response(state.statuses.pop(0))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start = 0
            is_same = self.headers.get("If-Range") in (None, state.etag)
            if wanted and state.has_ranges and is_same:
                start = int(re.findall(r"\d+", wanted)[0])
                if start >= len(state.content):
                    self.send_response(416)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
            else:
                self.send_response(200)
            body = state.content[start:]
            self.send_header("Content-Type", state.content_type)
            self.send_header("Content-Length", str(len(body)))
            if state.etag:
                self.send_header("ETag", state.etag)
            self.end_headers()
            cut = state.cut_after.pop(0) if state.cut_after else None
            self.wfile.write(body[:cut])
            self.wfile.flush()
            if cut is not None and cut < len(body):
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
