"""Routes of one project beside its page: reconcile, and the expected quality."""

from flask import Blueprint, Response
from werkzeug.wrappers import Response as AnyResponse

from backend.core.types import Json
from backend.errors import QueueUnavailableError
from backend.jobs.queue import JobQueue
from backend.projects.composition import Projects
from backend.web.known_projects import project_of
from backend.web.request_fields import answer_done


def create_project_routes(projects: Projects, queue: JobQueue) -> Blueprint:
    """Return the routes, over one set of projects."""
    routes = Blueprint("project", __name__, url_prefix="/projects/<int:project_id>")
    store = projects.store

    @routes.post("/reconcile")
    def reconcile(project_id: int) -> tuple[Response, int] | AnyResponse:
        key = project_of(store, project_id).key
        try:
            answer: Json = {"job": queue.reconcile(key)}
        except QueueUnavailableError:
            store.save_project(key, needs_reconcile=True)  # maintenance queues it as soon as the queue is back
            answer = {"job": None}
        return answer_done(project_id, answer, 202, tab="references")

    @routes.post("/quality")
    def estimate(project_id: int) -> tuple[Response, int] | AnyResponse:
        return answer_done(
            project_id, {"job": queue.estimate_quality(project_of(store, project_id).key)}, 202, tab="quality"
        )

    @routes.get("/quality")
    def show_quality(project_id: int) -> Json:
        found = store.quality.newest(project_of(store, project_id).key)
        if found is None:
            return {"model_version": None, "estimated_at": None, "labels": {}, "iou": None}
        return {"model_version": found[0], "estimated_at": found[1], **found[2]}

    return routes
