"""GET /projects/<id>/tasks/<id>/explain.png: why the masks of a task are as they are."""

from flask import Blueprint, Response

from backend.projects.composition import Projects
from backend.web.prediction_slots import PredictionSlots
from backend.web.request_log import note


def create_explain_routes(projects: Projects, slots: PredictionSlots) -> Blueprint:
    """Return the route; its requests take the slots of predictions."""
    routes = Blueprint("explain", __name__)

    @routes.get("/projects/<int:project_id>/tasks/<int:task_id>/explain.png")
    def explain(project_id: int, task_id: int) -> Response:
        note(project=project_id, task=task_id)
        with slots.one():
            picture = projects.explanations.explain(project_id, task_id)
        return Response(picture, content_type="image/png", headers={"Cache-Control": "no-store"})

    return routes
