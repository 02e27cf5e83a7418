"""Stands between a backend and Label Studio, and can take Label Studio away at a chosen moment."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests


class FlakyProxy:
    """Passes requests on until `images_left` images have been fetched; after that, connections are cut.

    Each image takes `image_delay_s` seconds longer, so that there is a middle in which something can happen.
    """

    def __init__(self, target: str, port: int) -> None:
        self.images_left: int | None = None
        self.answers_itself = False
        """True: every request gets an ingress' own 404, as if no Label Studio was behind it."""
        self.image_delay_s = 0.0
        self.target = target
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def _pass_on(self) -> None:
                if proxy.answers_itself:
                    self.rfile.read(int(self.headers.get("Content-Length") or 0))
                    refusal = b"default backend - 404"
                    self.send_response(404)
                    self.send_header("Content-Type", "text/plain")
                    self.send_header("Content-Length", str(len(refusal)))
                    self.end_headers()
                    self.wfile.write(refusal)
                    return
                if proxy.is_cut("/data/upload/" in self.path):
                    self.close_connection = True
                    self.connection.close()
                    return
                if "/data/upload/" in self.path:
                    time.sleep(proxy.image_delay_s)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                answer = requests.request(
                    self.command, proxy.target + self.path, data=body, headers=headers, allow_redirects=False,
                    timeout=60,
                )  # fmt: skip
                self.send_response(answer.status_code)
                for name in ("Content-Type", "Location"):
                    if name in answer.headers:
                        self.send_header(name, answer.headers[name])
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            do_GET = do_POST = do_PATCH = do_DELETE = _pass_on  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def is_cut(self, is_image: bool) -> bool:
        with self._lock:
            if self.images_left is None:
                return False
            if is_image and self.images_left > 0:
                self.images_left -= 1
                return False
            return self.images_left == 0

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
