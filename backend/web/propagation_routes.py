"""Routes under /projects/<id>/propagations: JSON for programs, plain forms for people."""

from flask import Blueprint, Response, jsonify
from werkzeug.wrappers import Response as AnyResponse

from backend.core.types import Json
from backend.errors import QueueUnavailableError
from backend.jobs.queue import JobQueue
from backend.projects.composition import Projects
from backend.store.records import PropagationFilter, PropagationRecord
from backend.web.known_projects import project_of, propagation_of
from backend.web.request_fields import answer_done, is_form, read_fields, read_flag, read_number, read_texts

_LISTED = 20


def create_propagation_routes(projects: Projects, queue: JobQueue) -> Blueprint:
    """Return the routes, over one set of projects."""
    routes = Blueprint("propagations", __name__, url_prefix="/projects/<int:project_id>/propagations")
    store, propagations = projects.store, projects.propagations

    @routes.get("")
    def list_all(project_id: int) -> Json:
        latest = store.propagations.latest(project_of(store, project_id).key, _LISTED)
        return {"propagations": [propagations.status(record) for record in latest]}

    @routes.post("")
    def start(project_id: int) -> tuple[Response, int] | AnyResponse:
        project = project_of(store, project_id)
        fields = read_fields()
        wanted = PropagationFilter(
            only_unlabeled=read_flag(fields, "only_unlabeled"),
            labels=read_texts(fields, "labels"),
            limit=read_number(fields, "limit"),
        )
        if read_flag(fields, "dry_run"):
            return jsonify(dry_run=True, total=propagations.count(project.key, wanted)), 200
        started_by = "project page" if is_form() else str(fields.get("started_by") or "API")[:100]
        record = propagations.start(project.key, wanted, started_by, supersede=read_flag(fields, "supersede"))
        _call_workers(projects, queue, record)
        return answer_done(project_id, propagations.status(record), 202, tab="runs")

    @routes.get("/<int:propagation_id>")
    def show(project_id: int, propagation_id: int) -> Json:
        record = propagation_of(store, project_id, propagation_id)
        return {**propagations.status(record), "workers": queue.workers_now()}

    @routes.post("/<int:propagation_id>/cancel")
    def cancel(project_id: int, propagation_id: int) -> tuple[Response, int] | AnyResponse:
        record = propagation_of(store, project_id, propagation_id)
        store.propagations.cancel(record.id)
        return answer_done(project_id, propagations.status(store.propagations.get(record.id)), 200, tab="runs")

    @routes.post("/<int:propagation_id>/retry")
    def retry(project_id: int, propagation_id: int) -> tuple[Response, int] | AnyResponse:
        record = propagation_of(store, project_id, propagation_id)
        count = propagations.retry(record.id, str(read_fields().get("what") or "failed"))
        record = store.propagations.get(record.id)
        if record.is_active:
            _call_workers(projects, queue, record)
        return answer_done(project_id, {**propagations.status(record), "retried": count}, 202, tab="runs")

    return routes


def _call_workers(projects: Projects, queue: JobQueue, record: PropagationRecord) -> None:
    try:
        if record.state == "planning":
            queue.ensure_planned(record.project_key, record.id)
        else:
            waiting = projects.store.propagation_tasks.counts(record.id).pending
            queue.ensure_propagation_jobs(record.project_key, record.id, waiting)
    except QueueUnavailableError:
        # It is in the store: maintenance calls workers as soon as the queue is back.
        return
