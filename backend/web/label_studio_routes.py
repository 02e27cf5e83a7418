"""Label Studio's ML backend protocol: /setup, /versions, /predict, /webhook.

/setup and /webhook wait for no model: Label Studio insists on their quick answers.
"""

import logging
from collections.abc import Sequence

from flask import Blueprint, g, request

from backend.core.cancellation import cancellable
from backend.core.types import Json
from backend.errors import BadInputError, QueueUnavailableError
from backend.jobs.queue import JobQueue
from backend.projects.composition import Projects
from backend.store.records import ProjectKey
from backend.web.access import PREDICT_PATH, WEBHOOK_PATH
from backend.web.json_body import read_json_object
from backend.web.prediction_slots import PredictionSlots, client_is_gone
from backend.web.request_log import note
from backend.web.webhooks import WebhookReceiver

logger = logging.getLogger(__name__)


def create_label_studio_routes(projects: Projects, queue: JobQueue, slots: PredictionSlots) -> Blueprint:
    """Return the routes, over one set of projects."""
    routes = Blueprint("label_studio", __name__)
    webhooks, predictions = WebhookReceiver(projects, queue), _PredictionAnswers(projects, queue)

    @routes.post("/setup")
    def setup() -> Json:
        body = read_json_object()
        project_key = _text(body, "project")
        note(project=project_key)
        access_token = body.get("access_token")
        model_version = projects.setup(
            project_key,
            label_config=_text(body, "schema"),
            extra_params=body.get("extra_params"),
            hostname=body.get("hostname"),
            access_token=access_token if isinstance(access_token, str) else None,
            backend_url=projects.settings.public_url or request.url_root.rstrip("/"),
        )
        return {"model_version": model_version}

    @routes.get("/versions")
    def versions() -> Json:
        # Label Studio asks without naming a project, so there is no version of a project's references to list.
        return {"versions": projects.versions()}

    @routes.post(PREDICT_PATH)
    def predict() -> Json:
        body, environ = read_json_object(), request.environ
        tasks = body.get("tasks")
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            raise BadInputError(f'expected "tasks": a list of tasks, got {type(tasks).__name__}')
        label_config = _text(body, "label_config")
        params = body.get("params") or {}
        context = params.get("context") if isinstance(params, dict) else None
        project_key = projects.project_key(body.get("project"), tasks)
        note(project=project_key, tasks=len(tasks))
        with slots.one(), cancellable(lambda: client_is_gone(environ)):
            if isinstance(context, dict):  # null in a batch; in a click an object, empty once its last mark is deleted
                return predictions.interact(project_key, label_config, tasks, context)
            return predictions.predict(project_key, label_config, tasks)

    @routes.post(WEBHOOK_PATH)
    def webhook() -> tuple[Json, int]:
        body = read_json_object()
        note(action=_text(body, "action"))
        return webhooks.receive(body, g.get("webhook_project")), 201

    return routes


class _PredictionAnswers:
    """Answers /predict, and defers to workers what a request has no time for."""

    def __init__(self, projects: Projects, queue: JobQueue) -> None:
        self._projects = projects
        self._queue = queue

    def interact(self, project_key: ProjectKey, label_config: str, tasks: Sequence[Json], context: Json) -> Json:
        """Return the masks of a labeler's marks on one task."""
        if len(tasks) != 1:
            raise BadInputError(f"an interactive request has one task, got {len(tasks)}")
        marks = context.get("result") or []
        if not isinstance(marks, list):
            raise BadInputError(f'expected "context.result": a list, got {type(marks).__name__}')
        return {"results": [self._projects.interactive.predict(project_key, label_config, tasks[0], marks)]}

    def predict(self, project_key: ProjectKey, label_config: str, tasks: Sequence[Json]) -> Json:
        """Return the predictions of tasks; those of unfinished ones are empty, and workers make them."""
        answer = self._projects.predictions.predict(project_key, label_config, tasks)
        note(project=project_key, tasks=len(tasks), found=answer.found, handed_on=len(answer.unfinished))
        if answer.unfinished:
            self._defer(project_key, answer.unfinished)
        return {"results": answer.results}

    def _defer(self, project_key: ProjectKey, task_ids: Sequence[int]) -> None:
        propagation_id = self._projects.propagations.defer(project_key, task_ids)
        try:
            if propagation_id is not None:
                self._queue.ensure_propagation_jobs(project_key, propagation_id, len(task_ids))
        except QueueUnavailableError as error:
            # What is done is answered all the same; maintenance calls workers when the queue is back.
            logger.warning("project=%s propagation=%s waits for the queue: %s", project_key, propagation_id, error)


def _text(body: Json, name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise BadInputError(f'expected "{name}": a text, got {type(value).__name__}')
    return value
