"""Answers to errors: a status, a message, an id; tracebacks stay in the log."""

import logging

from flask import Flask, Response, g, jsonify, render_template, request
from werkzeug.exceptions import HTTPException

from backend.core.cancellation import CancelledWorkError
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
from backend.web.request_log import note

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
_RETRY_AFTER_S = 5
_CLIENT_CLOSED_REQUEST = 499
"""Status of nginx for a client that went away; only the log and /metrics read it."""


def answer_errors(app: Flask) -> None:
    """Turn every error of a request into an answer."""

    @app.errorhandler(HTTPException)
    def answer_http_error(error: HTTPException) -> tuple[Response, int]:
        return _answer(error.description or "the request cannot be answered", error.code or 500), error.code or 500

    @app.errorhandler(CancelledWorkError)
    def answer_nobody(error: CancelledWorkError) -> tuple[Response, int]:
        note(client="gone")
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
        response = _answer(message, status)
        if status == 503:
            response.headers["Retry-After"] = str(_RETRY_AFTER_S)
        return response, status


def _answer(message: str, status: int) -> Response:
    """Return an error as JSON, or as a page for a browser that asks for one."""
    # Browsers name types of pictures and of signed pages besides; who takes anything gets JSON.
    wanted = request.accept_mimetypes.best_match(["application/json", "text/html"])
    wants_page = request.method == "GET" and wanted == "text/html"
    if not wants_page:
        return jsonify(error=message, id=g.get("request_id"))
    heading = "Not found" if status == 404 else f"Error {status}"
    page = render_template("error.html", heading=heading, message=message, request_id=g.get("request_id"))
    return Response(page, content_type="text/html; charset=utf-8")
