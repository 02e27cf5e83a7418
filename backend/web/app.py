"""The HTTP face: Label Studio's ML backend protocol on Flask.

/health, /setup and /webhook wait for no model; tracebacks stay in the log, the client gets a message and an id.
"""

import logging
import secrets
import select
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flask import Flask, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException

from backend import __version__
from backend.core.cancellation import CancelledWorkError, cancellable
from backend.errors import (
    BadInputError,
    ConfigurationError,
    ConflictError,
    ForbiddenError,
    LabelStudioError,
    LabelStudioUnavailableError,
    ModelUnavailableError,
    NotFoundError,
    OutputError,
    QueueUnavailableError,
    SoftmatcherError,
    StoreUnavailableError,
)
from backend.jobs.queue import JobQueue
from backend.metrics import Metrics
from backend.projects.composition import Projects
from backend.web.access import MOST_BODY_BYTES, PREDICT_PATH, WEBHOOK_PATH, guard
from backend.web.json_body import read_json_object
from backend.web.pages import create_pages
from backend.web.webhooks import WebhookReceiver

logger = logging.getLogger(__name__)

_STATUS: dict[type[SoftmatcherError], int] = {
    BadInputError: 422,
    NotFoundError: 404,
    ConflictError: 409,
    ForbiddenError: 403,
    ConfigurationError: 500,
    LabelStudioUnavailableError: 503,
    LabelStudioError: 502,
    ModelUnavailableError: 503,
    QueueUnavailableError: 503,
    StoreUnavailableError: 503,
    OutputError: 507,
}
_OPENAPI = Path(__file__).parent / "openapi.json"
_RETRY_AFTER_S = 5
_PREDICTING_SHARE = 0.75
"""Of the threads: as many requests may predict or wait for the models at a time. The others stay free for /health,
/setup and /webhook, on whose quick answers Label Studio insists."""
_DATABASE_GONE = "the database file was deleted or replaced while the backend ran; its log says what to do"
_CLIENT_CLOSED_REQUEST = 499
"""nginx' status for it; nobody reads it but the log and /metrics."""


def create_app(projects: Projects, queue: JobQueue) -> Flask:
    """The Flask application over one set of projects; owns no state of its own."""
    app = Flask("softmatcher", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MOST_BODY_BYTES
    events = WebhookReceiver(projects, queue)
    metrics, settings = projects.metrics, projects.settings
    slots = _Slots(max(1, int(settings.service_threads * _PREDICTING_SHARE)), metrics)

    @app.before_request
    def start_clock() -> None:
        g.started = time.perf_counter()
        g.request_id = secrets.token_hex(4)

    guard(app, settings)

    @app.after_request
    def count(response: Response) -> Response:
        seconds = time.perf_counter() - g.get("started", time.perf_counter())
        route = request.url_rule.rule if request.url_rule else "unknown"
        metrics.requests.labels(route, str(response.status_code)).inc()
        metrics.request_seconds.labels(route).observe(seconds)
        level = logging.DEBUG if route in ("/health", "/metrics") and response.status_code < 400 else logging.INFO
        identifier, milliseconds = g.get("request_id", "-"), round(1000 * seconds)
        figures = {"status": response.status_code, **g.get("figures", {}), "ms": milliseconds}
        logger.log(
            level, "request=%s %s %s %s",
            identifier, request.method, route, " ".join(f"{name}={value}" for name, value in figures.items()),
            extra={"figures": {"request": identifier, "method": request.method, "route": route, **figures}},
        )  # fmt: skip
        response.headers["X-Request-Id"] = identifier
        return response

    @app.get("/")
    @app.get("/health")
    def health() -> tuple[dict[str, Any], int]:
        state = {"model_class": "Softmatcher", "version": __version__, "model": projects.models.state}
        problem = projects.store.file_problem()
        if problem is None:
            return {"status": "UP", **state}, 200
        logger.error("%s", problem)
        return {"status": "DOWN", **state, "store": _DATABASE_GONE}, 503

    @app.get("/openapi.json")
    def describe() -> Response:
        return Response(_OPENAPI.read_bytes(), content_type="application/json")

    @app.get("/metrics")
    def show_metrics() -> Response:
        return Response(metrics.render(), content_type="text/plain; version=0.0.4; charset=utf-8")

    @app.post("/setup")
    def setup() -> dict[str, Any]:
        body = read_json_object()
        project_key = _text(body, "project")
        _note(project=project_key)
        model_version = projects.setup(
            project_key,
            label_config=_text(body, "schema"),
            extra_params=body.get("extra_params"),
            hostname=body.get("hostname"),
            access_token=body.get("access_token") if isinstance(body.get("access_token"), str) else None,
            backend_url=settings.public_url or request.url_root.rstrip("/"),
        )
        return {"model_version": model_version}

    @app.get("/versions")
    def versions() -> dict[str, Any]:
        # Label Studio asks without naming a project, so there is no version of a project's references to list.
        return {"versions": projects.versions()}

    @app.post(PREDICT_PATH)
    def predict() -> dict[str, Any]:
        body = read_json_object()
        tasks, environ = body.get("tasks"), request.environ
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            raise BadInputError(f'expected "tasks": a list of tasks, got {type(tasks).__name__}')
        label_config = _text(body, "label_config")
        params = body.get("params") or {}
        context = params.get("context") if isinstance(params, dict) else None
        project_key = projects.project_key(body.get("project"), tasks)
        _note(project=project_key, tasks=len(tasks))
        with slots.one(), cancellable(lambda: client_is_gone(environ)):
            return answer_prediction(project_key, label_config, tasks, context)

    def answer_prediction(
        project_key: str, label_config: str, tasks: list[dict[str, Any]], context: object
    ) -> dict[str, Any]:
        if isinstance(context, dict):  # null in a batch; in a click an object, empty once its last mark is deleted
            if len(tasks) != 1:
                raise BadInputError(f"an interactive request has one task, got {len(tasks)}")
            marks = context.get("result") or []
            if not isinstance(marks, list):
                raise BadInputError(f'expected "context.result": a list, got {type(marks).__name__}')
            return {"results": [projects.interactive.predict(project_key, label_config, tasks[0], marks)]}
        answer = projects.predictions.predict(project_key, label_config, tasks)
        _note(project=project_key, tasks=len(tasks), found=answer.found, handed_on=len(answer.unfinished))
        if answer.unfinished:
            defer(project_key, answer.unfinished)
        return {"results": answer.results}

    @app.get("/projects/<int:project_id>/tasks/<int:task_id>/explain.png")
    def explain(project_id: int, task_id: int) -> Response:
        _note(project=project_id, task=task_id)
        with slots.one():
            picture = projects.explanations.explain(project_id, task_id)
        return Response(picture, content_type="image/png", headers={"Cache-Control": "no-store"})

    def defer(project_key: str, task_ids: Sequence[int]) -> None:
        propagation_id = projects.propagations.defer(project_key, task_ids)
        try:
            if propagation_id is not None:
                queue.ensure_propagation_jobs(project_key, propagation_id, len(task_ids))
        except QueueUnavailableError as error:
            # What is done is answered all the same; upkeep calls workers when the queue is back.
            logger.warning("project=%s propagation=%s waits for the queue: %s", project_key, propagation_id, error)

    @app.post(WEBHOOK_PATH)
    def webhook() -> tuple[dict[str, Any], int]:
        body = read_json_object()
        _note(action=_text(body, "action"))
        return events.receive(body, g.get("webhook_project")), 201

    app.register_blueprint(create_pages(projects, queue))

    @app.errorhandler(HTTPException)
    def answer_http_error(error: HTTPException) -> tuple[Response, int]:
        return jsonify(error=error.description, id=g.get("request_id")), error.code or 500

    @app.errorhandler(CancelledWorkError)
    def answer_nobody(error: CancelledWorkError) -> tuple[Response, int]:
        _note(client="gone")
        return jsonify(error="the client went away"), _CLIENT_CLOSED_REQUEST

    @app.errorhandler(Exception)
    def answer_error(error: Exception) -> tuple[Response, int]:
        if isinstance(error, RecursionError):
            # The body's nesting is bounded while it is read, but what looks through it needs some frames a level too.
            error = BadInputError("what was sent must be nested less deeply: correct it")
        status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
        if isinstance(error, SoftmatcherError):
            logger.warning("request=%s %s: %s", g.get("request_id"), type(error).__name__, error)
            # Where the database lies and what its driver says is the operator's to know.
            is_inner = isinstance(error, StoreUnavailableError)
            message = (
                "the backend's database cannot be used; its log has details under this id" if is_inner else str(error)
            )
        else:
            logger.exception("request=%s", g.get("request_id"))
            message = "internal error; the backend's log has the details under this id"
        response = jsonify(error=message, id=g.get("request_id"))
        if status == 503:
            response.headers["Retry-After"] = str(_RETRY_AFTER_S)
        return response, status

    return app


class _Slots:
    """How many requests may predict at a time; one more is refused at once, instead of taking the last thread."""

    def __init__(self, most: int, metrics: Metrics) -> None:
        self._most = most
        self._free = threading.BoundedSemaphore(most)
        self._running = metrics.predictions_running

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold one inside.

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
    """True if whoever sent the request closed the connection; False if that cannot be seen.

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


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise BadInputError(f'expected "{name}": a text, got {type(value).__name__}')
    return value


def _note(**figures: object) -> None:
    """Figures for the request's log line."""
    g.figures = figures
