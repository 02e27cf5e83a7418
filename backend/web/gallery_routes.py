"""Routes of the gallery: photographs, tiles, what is visible, what changed, and what people decide on tiles."""

import hashlib
import threading
import time
from collections import deque
from uuid import uuid4

from flask import Blueprint, Response, get_template_attribute, jsonify, request

from backend.core.types import Json
from backend.errors import BadInputError, QueueUnavailableError, StoreUnavailableError
from backend.jobs.queue import JobQueue
from backend.projects.composition import Projects
from backend.projects.page_actions import MOST_ACCEPTED
from backend.store import ProjectRecord
from backend.store.records import PageAnnotation, ProjectKey
from backend.web.gallery_answers import (
    MOST_PREVIEWED,
    masks_to_json,
    read_ids,
    read_strokes,
    tiles_to_json,
)
from backend.web.known_projects import project_of
from backend.web.prediction_slots import PredictionSlots
from backend.web.request_fields import read_fields, read_flag, read_number, read_phrases

_PHOTO_KEPT_S = 3600
_PENDING_S = 30.0
_STATUS_KEPT_S = 0.1
"""Seconds for which pages that ask for the same project get the same answer."""
_QUICK_MS, _USUAL_MS = 150, 250
"""Milliseconds until a page on which tiles change asks again: while few pages ask, and else."""
_MOST_QUICK = 40
"""Questions of the last second from which on pages ask as usual: ten quick pages."""
_MOST_STATUSES = 100


def create_gallery_routes(projects: Projects, queue: JobQueue, slots: PredictionSlots) -> Blueprint:
    """Return the routes, over one set of projects; previews take the slots of predictions."""
    routes = Blueprint("gallery", __name__, url_prefix="/projects/<int:project_id>")
    store, gallery, actions = projects.store, projects.gallery, projects.page_actions
    status = GalleryStatus(projects, queue)

    def look_again(project: ProjectRecord, *annotations: int) -> None:
        store.tiles.touch(project.key)
        try:
            for annotation_id in annotations:
                store.mark_pending(project.key, annotation_id)
                queue.ingest_annotation(project.key, annotation_id)
        except QueueUnavailableError:
            store.mark_for_reconcile(project.key)

    def decided(project: ProjectRecord, made: PageAnnotation) -> Json:
        look_again(project, made.annotation_id)
        return {"task": made.task_id, "annotation": made.annotation_id, "action": made.action, "batch": made.batch}

    @routes.get("/tasks/<int:task_id>/photo.jpg")
    def photo(project_id: int, task_id: int) -> Response:
        project = project_of(store, project_id)
        content = gallery.photo(project, task_id, request.args.get("image", "")[:200])
        response = Response(content, content_type="image/jpeg")
        response.headers["Cache-Control"] = f"private, max-age={_PHOTO_KEPT_S}"
        response.set_etag(hashlib.sha256(content).hexdigest()[:32])
        response.make_conditional(request)
        return response

    @routes.get("/gallery/tiles")
    def tiles(project_id: int) -> Json:
        project = project_of(store, project_id)
        ids = read_ids(request.args.get("ids", ""))
        found = gallery.tiles(project, ids)
        since = read_number(dict(request.args), "since") or 0
        counter = store.tiles.counter(project.key)
        shown = tiles_to_json(project, found, projects.connections)
        draw, place = get_template_attribute("tile.html", "tile"), projects.connections.place(project)
        return {
            "counter": counter,
            "tiles": [
                {
                    **one,
                    "html": str(draw(one, project_id, since, acts=place.tile_acts)),
                    "is_new": one["is_changed"] and one["counter"] > since,
                }
                for one in shown
            ],
        }

    @routes.get("/gallery/changes")
    def changes(project_id: int) -> Json:
        return status.of(project_of(store, project_id).key)

    @routes.post("/gallery/visible")
    def visible(project_id: int) -> Json:
        project = project_of(store, project_id)
        ids = read_ids(read_fields().get("ids", []))
        try:
            queue.note_visible(project.key, ids)
            outdated = gallery.outdated(project, ids)
            if outdated:
                queue.refresh_tiles(project.key)
        except QueueUnavailableError as error:
            return {"outdated": None, "problem": str(error)}
        return {"outdated": outdated, "problem": None}

    @routes.post("/tasks/<int:task_id>/accept")
    def accept(project_id: int, task_id: int) -> Json:
        project = project_of(store, project_id)
        return decided(project, actions.accept(project, task_id))

    @routes.post("/tasks/<int:task_id>/wrong")
    def reject(project_id: int, task_id: int) -> Json:
        project = project_of(store, project_id)
        label = read_fields().get("label")
        if label is not None and not isinstance(label, str):
            raise BadInputError(f'expected "label": a text, got {type(label).__name__}')
        return decided(project, actions.reject(project, task_id, label or None))

    @routes.post("/gallery/accept")
    def accept_above(project_id: int) -> tuple[Response, int]:
        project = project_of(store, project_id)
        fields = read_fields()
        score = _read_score(fields)
        count = len(store.tiles.above(project.key, score, MOST_ACCEPTED))
        if read_flag(fields, "dry_run"):
            return jsonify(count=count, most=MOST_ACCEPTED, batch=None), 200
        batch = uuid4().hex
        queue.accept_predictions(project.key, score, batch)
        return jsonify(count=count, most=MOST_ACCEPTED, batch=batch), 202

    @routes.post("/gallery/undo")
    def undo(project_id: int) -> Json:
        project = project_of(store, project_id)
        batch = read_fields().get("batch")
        if not isinstance(batch, str) or not 1 <= len(batch) <= 64:
            raise BadInputError('expected "batch": what an action answered, or a text')
        tasks, changed = actions.undo(project, batch)
        look_again(project)
        try:
            queue.refresh_tiles(project.key)
        except QueueUnavailableError:
            store.mark_for_reconcile(project.key)
        return {"tasks": tasks, "changed": changed}

    @routes.post("/tasks/<int:task_id>/remove")
    def remove(project_id: int, task_id: int) -> Json:
        project = project_of(store, project_id)
        removed = actions.remove(project, task_id)
        look_again(project, *removed)
        return {"task": task_id, "annotations": removed}

    @routes.post("/tasks/<int:task_id>/preview")
    def preview(project_id: int, task_id: int) -> Json:
        project = project_of(store, project_id)
        fields = read_fields()
        label = fields.get("label")
        if not isinstance(label, str):
            raise BadInputError(f'expected "label": a text, got {type(label).__name__}')
        with slots.one():
            made = projects.previews.draw(project, task_id, label, read_strokes(fields.get("strokes")))
        return {"name": made.name, "task": task_id, **masks_to_json(project, made.drawn)}

    @routes.post("/gallery/preview")
    def preview_tiles(project_id: int) -> Json:
        project = project_of(store, project_id)
        fields = read_fields()
        ids = read_ids(fields.get("ids", []))[:MOST_PREVIEWED]
        with slots.one():
            found = projects.previews.predict(project, str(fields.get("name"))[:64], ids)
        return {"tiles": [{"id": task_id, **masks_to_json(project, drawn)} for task_id, drawn in found.items()]}

    @routes.post("/gallery/preview-phrases")
    def preview_phrases(project_id: int) -> Json:
        project = project_of(store, project_id)
        fields = read_fields()
        ids = read_ids(fields.get("ids", []))[:MOST_PREVIEWED]
        with slots.one():
            found = projects.previews.predict_phrases(project, read_phrases(fields), ids)
        return {"tiles": [{"id": task_id, **masks_to_json(project, drawn)} for task_id, drawn in found.items()]}

    @routes.post("/gallery/keep")
    def keep(project_id: int) -> Json:
        project = project_of(store, project_id)
        made = projects.previews.get(project, str(read_fields().get("name"))[:64])
        return decided(project, actions.keep(project, made.task_id, made.region))

    @routes.post("/gallery/min-score")
    def save_min_score(project_id: int) -> Json:
        project = project_of(store, project_id)
        saved = actions.save_min_score(project, _read_score(read_fields()))
        return {"min_score": saved.min_score}

    return routes


class GalleryStatus:
    """Answers the page's question whether anything is new: pages that ask at about the same time share an answer."""

    def __init__(self, projects: Projects, queue: JobQueue) -> None:
        self._projects = projects
        self._queue = queue
        self._kept: dict[ProjectKey, tuple[float, Json]] = {}
        self._asked: deque[float] = deque(maxlen=_MOST_QUICK)
        self._lock = threading.Lock()

    def of(self, project_key: ProjectKey) -> Json:
        """Return the counter of a project, whether something is under way, and what its propagation waits for.

        `unwritten` is the number of predictions that tiles show and Label Studio does not have yet, `again_ms` the
        milliseconds after which a page asks again while tiles change.
        """
        now = time.monotonic()
        with self._lock:
            is_crowded = len(self._asked) == _MOST_QUICK and now - self._asked[0] < 1.0
            self._asked.append(now)
        again_ms = _USUAL_MS if is_crowded else _QUICK_MS
        kept = self._kept.get(project_key)
        if kept is None or now - kept[0] >= _STATUS_KEPT_S:
            if len(self._kept) >= _MOST_STATUSES:
                self._kept.clear()
            kept = self._kept[project_key] = (now, self._ask(project_key))
        return {**kept[1], "again_ms": again_ms}

    def _ask(self, project_key: ProjectKey) -> Json:
        store = self._projects.store
        try:
            waiting = self._queue.waiting()
        except (QueueUnavailableError, StoreUnavailableError):
            waiting = {}
        is_pending = store.has_pending(project_key, _PENDING_S)
        active = store.propagations.active(project_key)
        propagation = None
        if active:
            counts = store.propagation_tasks.counts(active[0].id)
            # By task: a batch is finished as a whole, when Label Studio has it.
            finished = counts.finished + store.propagation_tasks.predicted_among_running(active[0].id)
            propagation = {
                "id": active[0].id, "state": active[0].state, "finished": finished, "total": counts.total,
                "waits": self._waits(project_key, waiting, counts.running, active[0].problem),
            }  # fmt: skip
        references, tiles = (
            sum(count for name, count in waiting.items() if name.endswith(kind)) for kind in ("references", "tiles")
        )
        return {
            "counter": store.tiles.counter(project_key),
            "is_busy": is_pending or references > 0 or tiles > 0,
            "pending": references,
            "unwritten": store.unwritten.count(project_key),
            "propagation": propagation,
        }

    def _waits(self, project_key: ProjectKey, waiting: Json, running: int, problem: str | None) -> str | None:
        if problem:
            return problem
        references = sum(count for name, count in waiting.items() if name.endswith("references"))
        if references:
            return f"waits for {references} {'annotation' if references == 1 else 'annotations'}"
        if running:
            return None
        others = [one for one in self._projects.store.propagations.active() if one.project_key != project_key]
        if others:
            return f"waits for project {others[0].project_key.split('.')[0]}"
        return None


def _read_score(fields: Json) -> float:
    """Return the field `min_score`, in [0, 1].

    Raises:
        BadInputError: no such number.
    """
    try:
        score = float(str(fields.get("min_score")))
    except ValueError:
        score = -1.0
    if not 0 <= score <= 1:
        raise BadInputError(f'expected "min_score": a number from 0 to 1, got {str(fields.get("min_score"))[:40]!r}')
    return score
