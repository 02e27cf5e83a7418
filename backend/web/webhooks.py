"""Webhooks of Label Studio: which references change, which jobs are due.

Label Studio waits one second for the answer inside its user's request and never sends again, so events only mark and
enqueue. What a webhook says is a hint to look at Label Studio, never a reason to change or delete anything: whoever
knows one project's secret can send what they like. If Redis is away, the project is marked and reconciled later.
"""

import logging
from collections.abc import Callable

from backend.core.types import Json
from backend.errors import BadInputError, ForbiddenError, NotFoundError, QueueUnavailableError
from backend.jobs.queue import JobQueue
from backend.projects.composition import Projects
from backend.store.records import ProjectKey, PropagationFilter

logger = logging.getLogger(__name__)

_ONE_BY_ONE = 20
"""Most annotations of an event that get a job each; more are cheaper to look through together."""


class WebhookReceiver:
    """Turns webhook bodies into marks in the store and jobs in the queue."""

    def __init__(self, projects: Projects, queue: JobQueue) -> None:
        self._projects = projects
        self._queue = queue

    def receive(self, body: Json, secret_of: str | None = None) -> Json:
        """Act on one webhook and return what was done.

        Args:
            body: of the webhook.
            secret_of: key of the project whose secret came along; None if none is needed, or the password came.

        Raises:
            BadInputError: the body lacks what its action needs.
            ForbiddenError: it is about another project than its secret is.
        """
        action = str(body.get("action"))
        if action in _NOTHING_TO_DO:
            return {"status": "nothing to do"}
        handler = _HANDLERS.get(action)
        if handler is None:
            logger.info("webhook action %s is unknown: ignored", action)
            return {"status": "ignored"}
        key, is_news = self._projects.hinted_project(body.get("project"))
        if secret_of not in (None, key):
            raise ForbiddenError("this webhook's secret is another project's: connect the backend to the project again")
        # Jobs of annotations look at an unknown project themselves.
        if is_news and (action in _OF_THE_PROJECT or self._projects.store.project(key)):
            self._refresh(key)
        return handler(self, key, body)

    def _ingest_changed(self, project_key: ProjectKey, body: Json) -> Json:
        return self._ingest(project_key, _ids(body, "annotation"))

    def _ingest_deleted(self, project_key: ProjectKey, body: Json) -> Json:
        return self._ingest(project_key, _ids(body, "annotations"))

    def _ingest_of_deleted_tasks(self, project_key: ProjectKey, body: Json) -> Json:
        tasks = set(_ids(body, "tasks"))
        known = [each.annotation_id for each in self._projects.store.annotations(project_key) if each.task_id in tasks]
        return self._ingest(project_key, known) if known else {"status": "nothing to do"}

    def _start_training(self, project_key: ProjectKey, body: Json) -> Json:
        if self._projects.store.project(project_key) is None:
            raise NotFoundError(
                f"project {project_key} was not known here and is looked up in Label Studio now: "
                "try again in some seconds"
            )
        return self._propagate(project_key)

    def _be_done(self, project_key: ProjectKey, body: Json) -> Json:
        return {"status": "done"}

    def _refresh(self, project_key: ProjectKey) -> None:
        try:
            self._queue.refresh_project(project_key)
        except QueueUnavailableError as error:
            self._projects.store.mark_for_reconcile(project_key)
            logger.warning("project=%s waits for the queue: %s", project_key, error)

    def _reconcile(self, project_key: ProjectKey) -> Json:
        try:
            return {"status": "queued", "jobs": [self._queue.reconcile(project_key)]}
        except QueueUnavailableError as error:
            self._projects.store.mark_for_reconcile(project_key)
            logger.warning("project=%s annotations wait for the queue: %s", project_key, error)
            return {"status": "waits for the queue"}

    def _propagate(self, project_key: ProjectKey) -> Json:
        # Asked for anew, with what the project has now: one that runs is out of date.
        record = self._projects.propagations.start(
            project_key, PropagationFilter(), "Label Studio: start training", supersede=True
        )
        answer = {"status": "queued", "propagation": record.id}
        try:
            return {**answer, "job": self._queue.plan_propagation(project_key, record.id)}
        except QueueUnavailableError as error:
            logger.warning("project=%s propagation=%d waits for the queue: %s", project_key, record.id, error)
            return answer

    def _ingest(self, project_key: ProjectKey, annotation_ids: list[int]) -> Json:
        if len(annotation_ids) > _ONE_BY_ONE:
            return self._reconcile(project_key)
        jobs = []
        try:
            for annotation_id in annotation_ids:
                self._projects.store.mark_pending(project_key, annotation_id)
                jobs.append(self._queue.ingest_annotation(project_key, annotation_id))
        except QueueUnavailableError as error:
            self._projects.store.mark_for_reconcile(project_key)
            logger.warning("project=%s annotations wait for the queue: %s", project_key, error)
            return {"status": "waits for the queue"}
        return {"status": "queued", "jobs": jobs}


_HANDLERS: dict[str, Callable[[WebhookReceiver, str, Json], Json]] = {
    "ANNOTATION_CREATED": WebhookReceiver._ingest_changed,
    "ANNOTATION_UPDATED": WebhookReceiver._ingest_changed,
    "ANNOTATIONS_CREATED": WebhookReceiver._ingest_changed,
    "ANNOTATIONS_DELETED": WebhookReceiver._ingest_deleted,
    "TASKS_DELETED": WebhookReceiver._ingest_of_deleted_tasks,
    "PROJECT_UPDATED": WebhookReceiver._be_done,
    "START_TRAINING": WebhookReceiver._start_training,
}
_OF_THE_PROJECT = ("PROJECT_UPDATED", "START_TRAINING")
"""Actions for which also a project that is unknown here is looked up at once."""
_NOTHING_TO_DO = ("TASKS_CREATED", "PROJECT_CREATED", "PROJECT_DELETED", "LABEL_LINK_CREATED", "LABEL_LINK_UPDATED")


def _ids(body: Json, name: str) -> list[int]:
    """Return the ids of an object or a list of objects."""
    value = body.get(name)
    items = value if isinstance(value, list) else [value]
    ids = [item.get("id") for item in items if isinstance(item, dict)]
    if len(ids) != len(items) or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise BadInputError(f'expected "{name}": an object or a list of objects with an "id", got {str(value)[:80]!r}')
    return [int(i) for i in ids if i is not None]
