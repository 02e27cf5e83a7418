"""Routes for programs that watch the service: /health, /metrics, /openapi.json. They wait for no model."""

import logging
from pathlib import Path

from flask import Blueprint, Response

from backend import __version__
from backend.core.types import Json
from backend.projects.composition import Projects

logger = logging.getLogger(__name__)

_OPENAPI = Path(__file__).parent / "openapi.json"
_DATABASE_GONE = "the database file was deleted or replaced while the backend ran; its log says what to do"


def create_health_routes(projects: Projects) -> Blueprint:
    """Return the routes, over one set of projects."""
    routes = Blueprint("health", __name__)

    @routes.get("/")
    @routes.get("/health")
    def health() -> tuple[Json, int]:
        state = {"model_class": "Softmatcher", "version": __version__, "model": projects.models.state}
        problem = projects.store.file_problem()
        if problem is None:
            return {"status": "UP", **state}, 200
        logger.error("%s", problem)
        return {"status": "DOWN", **state, "store": _DATABASE_GONE}, 503

    @routes.get("/openapi.json")
    def describe() -> Response:
        return Response(_OPENAPI.read_bytes(), content_type="application/json")

    @routes.get("/metrics")
    def show_metrics() -> Response:
        return Response(projects.metrics.render(), content_type="text/plain; version=0.0.4; charset=utf-8")

    return routes
