"""One line of the log, and metrics, for each request."""

import logging
import secrets
import time

from flask import Flask, Response, g, request

from backend.metrics import Metrics

logger = logging.getLogger(__name__)

_QUIET = ("/health", "/metrics")
"""Routes that programs ask every few seconds: logged at DEBUG unless they fail."""


def log_requests(app: Flask, metrics: Metrics) -> None:
    """Give every request an id and a clock, and log and count it once it is answered."""

    @app.before_request
    def start_clock() -> None:
        g.started = time.perf_counter()
        g.request_id = secrets.token_hex(4)

    @app.after_request
    def count(response: Response) -> Response:
        seconds = time.perf_counter() - g.get("started", time.perf_counter())
        route = request.url_rule.rule if request.url_rule else "unknown"
        metrics.requests.labels(route, str(response.status_code)).inc()
        metrics.request_seconds.labels(route).observe(seconds)
        level = logging.DEBUG if route in _QUIET and response.status_code < 400 else logging.INFO
        identifier, milliseconds = g.get("request_id", "-"), round(1000 * seconds)
        figures = {"status": response.status_code, **g.get("figures", {}), "ms": milliseconds}
        logger.log(
            level, "request=%s %s %s %s",
            identifier, request.method, route, " ".join(f"{name}={value}" for name, value in figures.items()),
            extra={"figures": {"request": identifier, "method": request.method, "route": route, **figures}},
        )  # fmt: skip
        response.headers["X-Request-Id"] = identifier
        return response


def note(**figures: object) -> None:
    """Set the figures that the log line of the running request has; they replace earlier ones."""
    g.figures = figures
