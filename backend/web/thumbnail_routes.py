"""The small pictures of a project's page."""

import hashlib

from flask import Blueprint, Response, request

from backend.projects.composition import Projects
from backend.web.known_projects import project_of

_KEPT_S = 3600
"""Seconds for which a browser shows a picture without asking again."""


def create_thumbnail_routes(projects: Projects) -> Blueprint:
    """Return the routes, over one set of projects."""
    routes = Blueprint("thumbnails", __name__, url_prefix="/projects/<int:project_id>")

    @routes.get("/references/<int:reference_id>.jpg")
    def of_reference(project_id: int, reference_id: int) -> Response:
        return jpeg_response(projects.thumbnails.of_reference(project_of(projects.store, project_id), reference_id))

    @routes.get("/tasks/<int:task_id>.jpg")
    def of_prediction(project_id: int, task_id: int) -> Response:
        return jpeg_response(projects.thumbnails.of_prediction(project_of(projects.store, project_id), task_id))

    return routes


def jpeg_response(content: bytes) -> Response:
    """Return a picture that a browser keeps for a while, and asks for by its content after that."""
    response = Response(content, content_type="image/jpeg")
    response.headers["Cache-Control"] = f"private, max-age={_KEPT_S}"
    response.set_etag(hashlib.sha256(content).hexdigest()[:32])
    response.make_conditional(request)
    return response
