"""Routes of one project beside its page: reconcile, labels, references, phrases."""

import logging
from contextlib import suppress

from flask import Blueprint, Response, request
from werkzeug.wrappers import Response as AnyResponse

from backend.core.types import Json
from backend.errors import BadInputError, NotFoundError, QueueUnavailableError, SoftmatcherError
from backend.jobs.queue import JobQueue
from backend.labelstudio.label_config import parse_label_config
from backend.projects.composition import Projects
from backend.store import ProjectRecord
from backend.store.records import ProjectKey
from backend.web.known_projects import project_of
from backend.web.request_fields import answer_done, is_form, read_fields, read_phrases

logger = logging.getLogger(__name__)

_FIELD = "phrases."
"""Beginning of the names of a form's fields; the label follows."""


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

    @routes.post("/labels")
    def add_label(project_id: int) -> tuple[Response, int] | AnyResponse:
        project = project_of(store, project_id)
        label = read_fields().get("label")
        if not isinstance(label, str):
            raise BadInputError('expected "label": a text')
        projects.connections.add_label(project, label)
        # With another label config an annotation may mean more than it did.
        queue.reconcile(project.key)
        store.tiles.touch(project.key)
        config = parse_label_config(project_of(store, project_id).label_config)
        return answer_done(project_id, {"labels": list(config.labels)}, 201, tab="gallery")

    @routes.post("/references/<int:reference_id>/<any(disable, enable, delete):action>")
    def change_reference(project_id: int, reference_id: int, action: str) -> tuple[Response, int] | AnyResponse:
        key = project_of(store, project_id).key
        if action == "delete":
            is_there = store.delete_reference(key, reference_id)
        else:
            is_there = store.set_disabled(key, reference_id, is_disabled=action == "disable")
        if not is_there:
            raise NotFoundError(f"reference {reference_id} is not there (any more): load the page again")
        store.tiles.touch(key)
        with suppress(QueueUnavailableError):  # tiles are predicted as soon as somebody looks at them
            queue.refresh_tiles(key)
        return answer_done(project_id, {"reference": reference_id, "action": action}, 200, tab="references")

    @routes.get("/phrases")
    def list_phrases(project_id: int) -> Json:
        return _phrases(projects, project_of(store, project_id))

    @routes.post("/phrases")
    def set_phrases(project_id: int) -> tuple[Response, int] | AnyResponse:
        project = project_of(store, project_id)
        projects.texts.set_from_page(project, _sent_phrases())
        _encode_at_once(projects, queue, project.key)
        return answer_done(project_id, _phrases(projects, project_of(store, project_id)), 200, tab="references")

    return routes


def _sent_phrases() -> dict[str, str]:
    """Return label to the text of its phrases: of a form's fields `phrases.<label>`, or of JSON's `phrases`.

    Raises:
        BadInputError: something else was sent.
    """
    if is_form():
        return {name.removeprefix(_FIELD): text for name, text in request.form.items() if name.startswith(_FIELD)}
    return read_phrases(read_fields())


def _encode_at_once(projects: Projects, queue: JobQueue, project_key: ProjectKey) -> None:
    """Encode new phrases while the person waits some seconds; what fails is on the page, and maintenance goes on."""
    try:
        if project_key in projects.texts.tend() and projects.phrase_scales.missing(project_key):
            queue.scale_phrases(project_key)
    except SoftmatcherError as error:
        logger.warning("project=%s its phrases are not encoded: %s", project_key, error)


def _phrases(projects: Projects, project: ProjectRecord) -> Json:
    """Return the phrases of a project, each label's w, and why they are not used."""
    config = parse_label_config(project.label_config)
    scales = projects.texts.weights(project, config)
    return {
        "phrases": [
            {"label": one.label, "phrase": one.phrase.text, "is_negative": one.phrase.is_negative, "from": one.source,
             "is_encoded": one.vector is not None,}
            for one in projects.store.texts.of_project(project.key, projects.texts.text_space)
        ],
        "weights": {label: scale.weight if scale else 0.0 for label, scale in scales.items()},
        "notice": projects.texts.notice,
    }  # fmt: skip
