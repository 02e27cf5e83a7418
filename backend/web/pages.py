"""The project's page, and the HTTP interface to propagations: JSON for programs, plain forms for people."""

import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from flask import Blueprint, Response, jsonify, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from backend.drawing.text import numbered_labels
from backend.errors import BadInputError, NotFoundError, QueueUnavailableError, SoftmatcherError
from backend.jobs.queue import JobQueue
from backend.labelstudio.label_config import parse_label_config
from backend.projects.composition import Projects
from backend.projects.pictures import colour_of
from backend.store import ProjectRecord
from backend.store.records import PropagationFilter, PropagationRecord, ReferenceSummary
from backend.web.export import add_export_route
from backend.web.json_body import read_json_object

Json = dict[str, Any]

_SHOWN_REFERENCES = 12
_SHOWN_PREDICTIONS = 12
_SHOWN_PROPAGATIONS = 8
_SHOWN_UNREAD = 20
_PICTURE_S = 3600


@dataclass(frozen=True)
class _LabelShown:
    """A label's references on the page."""

    name: str
    colour: str
    count: int
    shown: list[ReferenceSummary]
    quality: Mapping[str, Any] | None


def create_pages(projects: Projects, queue: JobQueue) -> Blueprint:
    """Routes under /projects, over one set of projects."""
    pages = Blueprint("pages", __name__, template_folder="templates", static_folder="static", url_prefix="/projects")
    store, propagations = projects.store, projects.propagations

    def project_of(project_id: int) -> ProjectRecord:
        project = store.project_by_id(project_id)
        if project is None:
            raise NotFoundError(
                f"project {project_id} is not known here: connect this backend to it in Label Studio (Settings > Model)"
            )
        return project

    def propagation_of(project_id: int, propagation_id: int) -> PropagationRecord:
        record = store.propagations.get(propagation_id)
        if record.project_key != project_of(project_id).key:
            raise NotFoundError(f"propagation {propagation_id} is not of project {project_id}")
        return record

    def version_now(record: PropagationRecord) -> str | None:
        try:
            return propagations.version_now(record)
        except SoftmatcherError:
            return None

    def call_planner(record: PropagationRecord) -> None:
        try:
            if record.state == "planning":
                queue.ensure_planned(record.project_key, record.id)
            else:
                queue.ensure_propagation_jobs(
                    record.project_key, record.id, store.propagation_tasks.counts(record.id).pending
                )
        except QueueUnavailableError:
            # It is in the store: upkeep calls workers as soon as the queue is back.
            return

    @pages.get("")
    def index() -> str:
        rows = [
            (project, store.propagations.latest(project.key, 1), len(store.list_references(project.key)))
            for project in store.projects()
        ]
        return render_template("index.html", rows=rows)

    @pages.get("/<int:project_id>")
    def page(project_id: int) -> str:
        project = project_of(project_id)
        latest = store.propagations.latest(project.key, _SHOWN_PROPAGATIONS)
        shown = next((one for one in latest if one.is_active), latest[0] if latest else None)
        references = store.list_references(project.key)
        quality = store.quality.newest(project.key)
        now = version_now(shown) if shown else None
        return render_template(
            "project.html",
            project=project,
            title=project.title or f"Project {project_id}",
            labels=_labels_shown(references, quality[2] if quality else None),
            numbered=numbered_labels(parse_label_config(project.label_config).labels if project.label_config else ()),
            reference_count=len(references),
            config_labels=parse_label_config(project.label_config).labels if project.label_config else (),
            propagation=propagations.status(shown) if shown else None,
            workers=queue.workers_now() if shown and shown.is_active else None,
            now_s=store.now(),
            outdated=store.propagation_tasks.count_outdated(shown.id, now)
            if shown and now and not shown.is_active
            else 0,
            history=[(one, store.propagation_tasks.counts(one.id)) for one in latest],
            lowest=store.propagation_tasks.lowest_scored(shown.id, _SHOWN_PREDICTIONS) if shown else [],
            quality=quality,
            label_studio=_label_studio_address(project, projects.settings.label_studio_url),
            model_state=projects.models.state,
            unread=store.unread_annotations(project.key),
            shown_unread=_SHOWN_UNREAD,
            outdated_references=projects.references.count_outdated(project),
            ago=_ago,
        )

    @pages.get("/<int:project_id>/propagations")
    def list_propagations(project_id: int) -> Json:
        latest = store.propagations.latest(project_of(project_id).key, 20)
        return {"propagations": [propagations.status(record) for record in latest]}

    @pages.post("/<int:project_id>/propagations")
    def start(project_id: int) -> tuple[Response, int] | AnyResponse:
        project = project_of(project_id)
        told = _told()
        wanted = PropagationFilter(
            only_unlabeled=_flag(told, "only_unlabeled"), labels=_texts(told, "labels"), limit=_number(told, "limit")
        )
        if _flag(told, "dry_run"):
            return jsonify(dry_run=True, total=propagations.count(project.key, wanted)), 200
        started_by = "project page" if _is_form() else str(told.get("started_by") or "API")[:100]
        record = propagations.start(project.key, wanted, started_by, supersede=_flag(told, "supersede"))
        call_planner(record)
        return _done(project_id, propagations.status(record), 202)

    @pages.get("/<int:project_id>/propagations/<int:propagation_id>")
    def show(project_id: int, propagation_id: int) -> Json:
        return {**propagations.status(propagation_of(project_id, propagation_id)), "workers": queue.workers_now()}

    @pages.post("/<int:project_id>/propagations/<int:propagation_id>/cancel")
    def cancel(project_id: int, propagation_id: int) -> tuple[Response, int] | AnyResponse:
        record = propagation_of(project_id, propagation_id)
        store.propagations.cancel(record.id)
        return _done(project_id, propagations.status(store.propagations.get(record.id)), 200)

    @pages.post("/<int:project_id>/propagations/<int:propagation_id>/retry")
    def retry(project_id: int, propagation_id: int) -> tuple[Response, int] | AnyResponse:
        record = propagation_of(project_id, propagation_id)
        count = propagations.retry(record.id, str(_told().get("what") or "failed"))
        record = store.propagations.get(record.id)
        if record.is_active:
            call_planner(record)
        return _done(project_id, {**propagations.status(record), "retried": count}, 202)

    @pages.post("/<int:project_id>/reconcile")
    def reconcile(project_id: int) -> tuple[Response, int] | AnyResponse:
        key = project_of(project_id).key
        try:
            answer: Json = {"job": queue.reconcile(key)}
        except QueueUnavailableError:
            store.save_project(key, needs_reconcile=True)  # maintenance queues it as soon as the queue is back
            answer = {"job": None}
        return _done(project_id, answer, 202)

    @pages.post("/<int:project_id>/quality")
    def estimate(project_id: int) -> tuple[Response, int] | AnyResponse:
        return _done(project_id, {"job": queue.estimate_quality(project_of(project_id).key)}, 202)

    @pages.get("/<int:project_id>/quality")
    def show_quality(project_id: int) -> Json:
        found = store.quality.newest(project_of(project_id).key)
        if found is None:
            return {"model_version": None, "estimated_at": None, "labels": {}, "iou": None}
        return {"model_version": found[0], "estimated_at": found[1], **found[2]}

    @pages.get("/<int:project_id>/references/<int:reference_id>.jpg")
    def reference_picture(project_id: int, reference_id: int) -> Response:
        return _picture(projects.pictures.of_reference(project_of(project_id), reference_id))

    @pages.get("/<int:project_id>/tasks/<int:task_id>.jpg")
    def prediction_picture(project_id: int, task_id: int) -> Response:
        return _picture(projects.pictures.of_prediction(project_of(project_id), task_id))

    add_export_route(pages, projects)

    @pages.app_template_filter("moment")
    def moment(unix_s: float | None) -> str:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(unix_s)) if unix_s else ""

    pages.add_app_template_filter(_duration, "duration")
    pages.add_app_template_filter(_rate, "rate")
    return pages


def _duration(seconds: float | None) -> str:
    """As page.js writes it."""
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _rate(per_s: float) -> str:
    return f"{per_s:.1f} tasks/s" if per_s >= 1 or not per_s else f"{60 * per_s:.1f} tasks/min"


def _labels_shown(references: list[ReferenceSummary], quality: Json | None) -> list[_LabelShown]:
    measured = (quality or {}).get("labels", {})
    shown = []
    for name, group in groupby(references, key=lambda one: one.label):
        mine = list(group)
        red, green, blue = colour_of(name)
        shown.append(
            _LabelShown(
                name,
                f"#{red:02x}{green:02x}{blue:02x}",
                len(mine),
                mine[:_SHOWN_REFERENCES],
                measured.get(name),
            )
        )
    return shown


def _label_studio_address(project: ProjectRecord, fallback: str) -> str:
    """As people's browsers reach it: what Label Studio calls itself."""
    hostname = (project.settings or {}).get("hostname")
    is_address = isinstance(hostname, str) and hostname.startswith(("http://", "https://"))
    return str(hostname).rstrip("/") if is_address else fallback


def _ago(unix_s: float | None) -> str:
    if unix_s is None:
        return ""
    seconds = max(0.0, time.time() - unix_s)
    for size_s, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size_s:
            return f"{seconds / size_s:.0f} {name} ago"
    return "just now"


def _is_form() -> bool:
    return request.mimetype in ("application/x-www-form-urlencoded", "multipart/form-data")


def _told() -> Json:
    """What was sent, as a form or as JSON; nothing is an empty object."""
    if _is_form():
        lists = {name: values for name, values in request.form.lists() if any(values)}
        return {name: values if name == "labels" else values[-1] for name, values in lists.items()}
    if not request.get_data(cache=True):
        return {}
    return read_json_object()


def _flag(told: Json, name: str) -> bool:
    value = told.get(name, False)
    if value in (True, False):
        return bool(value)
    if str(value).lower() in ("on", "true", "1"):
        return True
    raise BadInputError(f'expected "{name}": true or false, got {str(value)[:40]!r}')


def _texts(told: Json, name: str) -> tuple[str, ...] | None:
    value = told.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise BadInputError(f'expected "{name}": a list of texts, got {type(value).__name__}')
    return tuple(value)


def _number(told: Json, name: str) -> int | None:
    value = told.get(name)
    if value is None:
        return None
    if not re.fullmatch("[0-9]{1,18}", str(value)):
        raise BadInputError(f'expected "{name}": a whole number, got {str(value)[:40]!r}')
    return int(value)


def _done(project_id: int, answer: Json, status: int) -> tuple[Response, int] | AnyResponse:
    """JSON for programs; people's forms lead back to the page."""
    if _is_form():
        return redirect(url_for("pages.page", project_id=project_id), code=303)
    return jsonify(answer), status


def _picture(content: bytes) -> Response:
    response = Response(content, content_type="image/jpeg")
    response.headers["Cache-Control"] = f"private, max-age={_PICTURE_S}"
    response.set_etag(hashlib.sha256(content).hexdigest()[:32])
    response.make_conditional(request)
    return response
