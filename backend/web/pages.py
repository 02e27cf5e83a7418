"""The pages for people: the list of projects, and a page per project."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from flask import Blueprint, render_template

from backend.core.types import Json
from backend.drawing.overlay import colour_of
from backend.drawing.text import numbered_labels
from backend.errors import SoftmatcherError
from backend.jobs.queue import JobQueue
from backend.labelstudio.label_config import parse_label_config
from backend.projects.composition import Projects
from backend.store import ProjectRecord
from backend.store.records import PropagationRecord, ReferenceSummary
from backend.web.known_projects import project_of

_SHOWN_REFERENCES = 12
_SHOWN_PREDICTIONS = 12
_SHOWN_PROPAGATIONS = 8
_SHOWN_UNREAD = 20


@dataclass(frozen=True)
class _LabelShown:
    """A label's references on the page."""

    name: str
    colour: str
    count: int
    shown: list[ReferenceSummary]
    quality: Mapping[str, Any] | None


def create_pages(projects: Projects, queue: JobQueue) -> Blueprint:
    """Return the routes of the pages, over one set of projects."""
    pages = Blueprint("pages", __name__, template_folder="templates", static_folder="static", url_prefix="/projects")
    store = projects.store

    @pages.get("")
    def index() -> str:
        rows = [
            (project, store.propagations.latest(project.key, 1), len(store.list_references(project.key)))
            for project in store.projects()
        ]
        return render_template("index.html", rows=rows)

    @pages.get("/<int:project_id>")
    def page(project_id: int) -> str:
        project = project_of(store, project_id)
        return render_template(
            "project.html", **_of_project(projects, project), **_of_propagations(projects, queue, project)
        )

    pages.add_app_template_filter(_moment, "moment")
    pages.add_app_template_filter(_duration, "duration")
    pages.add_app_template_filter(_rate, "rate")
    return pages


def _of_project(projects: Projects, project: ProjectRecord) -> Json:
    """Return what the page shows of a project itself: labels, references, quality."""
    store = projects.store
    references = store.list_references(project.key)
    quality = store.quality.newest(project.key)
    labels = parse_label_config(project.label_config).labels if project.label_config else ()
    return {
        "project": project,
        "title": project.title or f"Project {project.project_id}",
        "labels": _labels_shown(references, quality[2] if quality else None),
        "numbered": numbered_labels(labels),
        "config_labels": labels,
        "reference_count": len(references),
        "outdated_references": projects.references.count_outdated(project),
        "unread": store.unread_annotations(project.key),
        "shown_unread": _SHOWN_UNREAD,
        "quality": quality,
        "label_studio": _label_studio_address(project, projects.settings.label_studio_url),
        "model_state": projects.models.state,
        "ago": _ago,
    }


def _of_propagations(projects: Projects, queue: JobQueue, project: ProjectRecord) -> Json:
    """Return what the page shows of the propagations: the running or newest one, and those before."""
    store = projects.store
    latest = store.propagations.latest(project.key, _SHOWN_PROPAGATIONS)
    shown = next((one for one in latest if one.is_active), latest[0] if latest else None)
    now = _version_now(projects, shown) if shown else None
    is_over = shown is not None and now is not None and not shown.is_active
    return {
        "propagation": projects.propagations.status(shown) if shown else None,
        "workers": queue.workers_now() if shown and shown.is_active else None,
        "now_s": store.now(),
        "outdated": store.propagation_tasks.count_outdated(shown.id, now) if shown and now and is_over else 0,
        "history": [(one, store.propagation_tasks.counts(one.id)) for one in latest],
        "lowest": store.propagation_tasks.lowest_scored(shown.id, _SHOWN_PREDICTIONS) if shown else [],
    }


def _version_now(projects: Projects, record: PropagationRecord) -> str | None:
    try:
        return projects.propagations.version_now(record)
    except SoftmatcherError:
        return None


def _moment(unix_s: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(unix_s)) if unix_s else ""


def _duration(seconds: float | None) -> str:
    """Return a duration as page.js writes it."""
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
    """Return the address by which people's browsers reach Label Studio: what it calls itself."""
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
