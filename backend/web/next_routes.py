"""Routes of what comes next: which tasks to label, which predictions to confirm, and Label Studio's own order."""

from contextlib import suppress

from flask import Blueprint, Response
from werkzeug.wrappers import Response as AnyResponse

from backend.core.types import Json
from backend.errors import QueueUnavailableError
from backend.jobs.queue import JobQueue
from backend.projects.composition import Projects
from backend.projects.task_order import STARTED_BY
from backend.store.records import PropagationFilter
from backend.web.known_projects import project_of
from backend.web.request_fields import answer_done


def create_next_routes(projects: Projects, queue: JobQueue) -> Blueprint:
    """Return the routes, over one set of projects."""
    routes = Blueprint("next", __name__, url_prefix="/projects/<int:project_id>/next")
    store = projects.store

    @routes.get("")
    def show(project_id: int) -> Json:
        project = project_of(store, project_id)
        return {
            "is_set": project.task_order is not None,
            "label": [
                {"task": one.prediction.task_id, "certainty": one.prediction.certainty, "reason": one.reason}
                for one in projects.next_tasks.to_label(project)
            ],
            "confirm": [
                {"task": one.task_id, "label": label, "score": one.score}
                for label, one in projects.next_tasks.to_confirm(project)
            ],
        }

    @routes.post("")
    def begin(project_id: int) -> tuple[Response, int] | AnyResponse:
        project = project_of(store, project_id)
        projects.task_order.begin(project)
        record = projects.propagations.start(project.key, PropagationFilter(), STARTED_BY, supersede=True)
        with suppress(QueueUnavailableError):  # it is in the store: maintenance calls workers
            queue.ensure_planned(project.key, record.id)
        return answer_done(project_id, projects.propagations.status(record), 202, tab="next")

    @routes.post("/undo")
    def undo(project_id: int) -> tuple[Response, int] | AnyResponse:
        project = project_of(store, project_id)
        now = projects.task_order.end(project)
        try:
            queue.order_tasks(project.key)
        except QueueUnavailableError:
            now["problem"] = "predictions without regions stay in Label Studio: the queue does not answer"
        return answer_done(project_id, now, 200, tab="next")

    return routes
