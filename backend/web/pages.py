"""The pages for people: the list of projects, and a page per project."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from typing import Any

from flask import Blueprint, render_template, request, url_for

from backend.core.text_scores import TextScale
from backend.core.types import Json
from backend.drawing.overlay import colour_of
from backend.drawing.text import numbered_labels
from backend.errors import NotFoundError, SoftmatcherError
from backend.exports.options import CHOICES, ExportOptions
from backend.jobs.queue import JobQueue
from backend.labelstudio.label_config import parse_label_config
from backend.projects.composition import Projects
from backend.projects.gallery import Tile
from backend.projects.options import (
    background_labels_of,
    calibration_in_use,
    match_options,
    read_extra_params,
    score_fit_in_use,
)
from backend.projects.task_order import VIEW
from backend.projects.task_source import Place
from backend.store import ProjectRecord
from backend.store.records import PropagationRecord, ReferenceSummary, TilePrediction, UnreadAnnotation
from backend.store.texts import FROM_PAGE
from backend.web.gallery_answers import labels_shown, read_filter, tiles_to_json
from backend.web.known_projects import project_of

TABS = ("gallery", "next", "references", "runs", "quality", "export", "settings")
_SHOWN_REFERENCES = 12
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


@dataclass(frozen=True)
class _PhrasesShown:
    """A label's phrases on the page: the field's text, those from elsewhere, and how far they are believed."""

    label: str
    text: str
    others: list[str]
    scale: TextScale | None
    is_measured: bool


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
        tab = request.args.get("tab", TABS[0])
        tabs = [name for name in TABS if name != "runs" or projects.connections.place(project).has_runs]
        if tab not in tabs:
            raise NotFoundError(f"a project's page has the tabs {', '.join(tabs)}, not {tab[:40]!r}")
        shown = _of_project(projects, project)
        if tab == "gallery":
            shown |= {"gallery": _gallery(projects, project)}
        elif tab == "next":
            shown |= {"next": _next(projects, project)}
        elif tab == "runs":
            shown |= _of_propagations(projects, queue, project)
        elif tab == "export":
            shown |= {"export_choices": CHOICES, "export_defaults": _export_defaults(projects, project)}
        elif tab == "settings":
            shown |= {"settings_rows": _settings_rows(projects, project)}
        return render_template("project.html", tab=tab, tabs=tabs, **shown)

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
    unread, place = store.unread_annotations(project.key), projects.connections.place(project)
    fit = score_fit_in_use(projects.settings, project)
    return {
        "project": project,
        "title": project.title or f"Project {project.project_id}",
        "labels": _labels_shown(references, quality[2] if quality else None),
        "numbered": numbered_labels(labels),
        "config_labels": labels,
        "scores_are_estimates": fit is None
        and not calibration_in_use(projects.settings).is_fitted_for(projects.settings.profile),
        "score_fit": fit,
        "reference_count": len(references),
        "outdated_references": projects.references.count_outdated(project),
        "phrases": _phrases_shown(projects, project),
        "phrases_notice": projects.texts.notice,
        "unread": unread,
        "shown_unread": _SHOWN_UNREAD,
        "quality": quality,
        "place": place,
        "names": projects.connections.names(project, _named_tasks(references, unread, quality[2] if quality else {})),
        "task_page": partial(_task_page, project, place),
        "model_state": projects.models.state,
        "ago": _ago,
    }


def _named_tasks(
    references: Sequence[ReferenceSummary], unread: Sequence[UnreadAnnotation], figures: Mapping[str, Any]
) -> list[int]:
    """Return the tasks that the page names."""
    worst = [int(case["task"]) for case in figures.get("worst") or ()]
    return [*(one.task_id for one in references), *(one.task_id for one in unread[:_SHOWN_UNREAD]), *worst]


def _task_page(project: ProjectRecord, place: Place, task_id: int) -> str:
    """Return where a person sees a task: in its editor, or else in the gallery."""
    return place.address(task_id) or url_for("pages.page", project_id=project.project_id, after=f"0:{task_id - 1}")


def _gallery(projects: Projects, project: ProjectRecord) -> Json:
    """Return what the gallery shows: a page of tiles, the legend, and where its other pages are."""
    labels = labels_shown(project)
    wanted = read_filter(request.args, [label.name for label in labels])
    counter = projects.store.tiles.counter(project.key)
    found = projects.gallery.page(project, wanted)
    fields: Json = {name: value for name, value in request.args.items() if name in ("sort", "state", "label", "count")}
    return {
        "wanted": wanted,
        "labels": labels,
        "page": found,
        "counter": counter,
        "counts": projects.store.tiles.counts(project.key),
        "tiles": tiles_to_json(project, found.tiles, projects.connections),
        "min_score": match_options(projects.settings, project).minimum_score,
        "is_filtered": bool(wanted.state or wanted.label),
        "is_later": wanted.after is not None,
        "first": url_for("pages.page", project_id=project.project_id, **fields),
        "following": url_for("pages.page", project_id=project.project_id, **{**fields, "after": found.following})
        if found.following
        else None,
    }


def _next(projects: Projects, project: ProjectRecord) -> Json:
    """Return what the tab of what comes next shows."""
    to_label, to_confirm = projects.next_tasks.to_label(project), projects.next_tasks.to_confirm(project)

    def shown(some: Sequence[TilePrediction]) -> list[Json]:
        tiles = [Tile(made.task_id, made, False) for made in some]
        return tiles_to_json(project, tiles, projects.connections)

    to_look_at, sure = shown([one.prediction for one in to_label]), shown([made for _, made in to_confirm])
    return {
        "label": [{**tile, "reason": one.reason} for tile, one in zip(to_look_at, to_label, strict=True)],
        "confirm": [{**tile, "label": label} for tile, (label, _) in zip(sure, to_confirm, strict=True)],
        "is_set": project.task_order is not None,
        "is_ready": bool(project.task_order and project.task_order.get("version")),
        "view": VIEW,
    }


def _export_defaults(projects: Projects, project: ProjectRecord) -> Json:
    """Return what the form of an export begins with.

    Where the page makes the annotations each is one region, and all of an image belong together; and nobody has
    annotated most images.
    """
    if projects.connections.place(project).has_own_labels:
        return asdict(ExportOptions("coco", annotators="all", source="both"))
    return asdict(ExportOptions("coco"))


def _settings_rows(projects: Projects, project: ProjectRecord) -> list[Json]:
    """Return the options of a project, with where each comes from."""
    own = read_extra_params((project.settings or {}).get("extra_params")).model_dump()
    place = projects.connections.place(project)
    return [
        {
            "name": name,
            "value": getattr(projects.settings, name) if value is None else value,
            "origin": "the service's environment" if value is None else place.options_from,
        }
        for name, value in own.items()
    ]


def _phrases_shown(projects: Projects, project: ProjectRecord) -> list[_PhrasesShown]:
    """Return the phrases of each label, those of the page as the text that the page's field has."""
    if not project.label_config:
        return []
    config = parse_label_config(project.label_config)
    scales = projects.texts.weights(project, config)
    known = projects.store.texts.of_project(project.key)
    background = background_labels_of(config, projects.settings)
    shown = []
    for label in dict.fromkeys([*config.labels, *sorted(background)]):
        mine = [one for one in known if one.label == label]
        signed = {one: f"-{one.phrase.text}" if one.phrase.is_negative else one.phrase.text for one in mine}
        shown.append(
            _PhrasesShown(
                label,
                "; ".join(signed[one] for one in mine if one.source == FROM_PAGE),
                [f"{signed[one]} ({one.source})" for one in mine if one.source != FROM_PAGE],
                scales.get(label),
                label in scales,
            )
        )
    return shown


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


def _ago(unix_s: float | None) -> str:
    if unix_s is None:
        return ""
    seconds = max(0.0, time.time() - unix_s)
    for size_s, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size_s:
            return f"{seconds / size_s:.0f} {name} ago"
    return "just now"
