"""Actions on the project's page, through Label Studio's API: accept, reject, undo, save an option."""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from backend.core.types import Json
from backend.errors import BadInputError, ConflictError, NotFoundError, SoftmatcherError
from backend.labelstudio.codec import new_region_id
from backend.labelstudio.label_config import parse_label_config
from backend.projects.connections import Connections
from backend.projects.options import ProjectOptions, read_extra_params
from backend.projects.prediction.reference_banks import OWN_VERSIONS
from backend.projects.project_refresh import refresh_project
from backend.projects.task_source import TaskSource
from backend.store import ProjectRecord, Store
from backend.store.records import PageAnnotation, ProjectKey

_UNTOUCHED = timedelta(seconds=0.2)
"""Label Studio notes both times of an annotation as it creates it: later, somebody changed it."""

logger = logging.getLogger(__name__)

MOST_ACCEPTED = 1000
"""Predictions that one action accepts; the next one goes on."""


class PageActions:
    """Makes annotations of what people decide on the page; Label Studio stays where the truth is kept."""

    def __init__(self, store: Store, connections: Connections) -> None:
        self._store = store
        self._connections = connections

    def accept(self, project: ProjectRecord, task_id: int) -> PageAnnotation:
        """Make an annotation of a task's newest prediction: the one that its tile shows.

        Raises:
            NotFoundError: the task, or a prediction of this backend with masks, is not there (any more).
            ConflictError: the task is annotated already.
            LabelStudioError: Label Studio cannot be asked.
        """
        return self._accept(project, task_id, _new_batch())

    def accept_above(self, project_key: ProjectKey, score: float, batch: str) -> int:
        """Accept the predictions whose regions all have at least this score; return how many.

        Raises:
            NotFoundError: the project is not in the store.
            LabelStudioUnavailableError: Label Studio does not answer.
        """
        project = self._store.project(project_key)
        if project is None:
            raise NotFoundError(f"project {project_key} is not in the store (any more)")
        accepted = 0
        for task_id in self._store.tiles.above(project_key, score, MOST_ACCEPTED):
            try:
                self._accept(project, task_id, batch, at_least=score)
            except (NotFoundError, ConflictError) as error:
                logger.info("project=%s task=%d is not accepted: %s", project_key, task_id, error)
                continue
            accepted += 1
        return accepted

    def reject(self, project: ProjectRecord, task_id: int, label: str | None) -> PageAnnotation:
        """Say that a label is not where a prediction sees it: make an annotation of the prediction without it.

        The rule: the whole image counts as background of that label, except what other labels' masks say.

        Args:
            project: of the task.
            task_id: of the task.
            label: which one; None for all that the prediction has.

        Raises:
            NotFoundError: the task, or a prediction of this backend with that label, is not there (any more).
            ConflictError: the task is annotated already.
            LabelStudioError: Label Studio cannot be asked.
        """
        task, prediction = self._predicted(project, task_id)
        config = parse_label_config(project.label_config)
        kept, absent = [], set()
        for region in _regions(prediction):
            names = config.label_names.get(str(region.get("from_name")), {})
            written = (region.get("value") or {}).get("brushlabels") or []
            labels = {names.get(name, name) for name in written if isinstance(name, str)}
            if label is None or label in labels:
                absent |= labels
            else:
                kept.append(region)
        if not absent:
            raise NotFoundError(f"the prediction of task {task_id} has no {label!r}")
        return self._annotate(project, task, kept, "wrong", _new_batch(), tuple(sorted(absent)), prediction)

    def keep(self, project: ProjectRecord, task_id: int, region: Mapping[str, Any]) -> PageAnnotation:
        """Make an annotation of a mask that somebody drew and saw on the page.

        Raises:
            NotFoundError: the task is not there (any more).
            LabelStudioError: Label Studio cannot be asked.
        """
        client = self._connections.client(project.key)
        task = client.task(task_id, project.project_id)
        # As the editor submits a suggestion that was accepted.
        drawn = {**region, "origin": "manual", "id": new_region_id()}
        return self._annotate(project, task, [drawn], "keep", _new_batch(), (), None)

    def undo(self, project: ProjectRecord, batch: str) -> tuple[list[int], list[int]]:
        """Delete the annotations that one action made, but for those that somebody changed since.

        Returns:
            The tasks of those that were deleted, and of those that stay.

        Raises:
            NotFoundError: nothing is left to undo of it, or Label Studio does not show the project.
            ConflictError: all of them were changed since.
            LabelStudioError: Label Studio cannot be asked.
        """
        made = self._store.page_annotations.of_batch(project.key, batch)
        if not made:
            raise NotFoundError("there is nothing left to undo of this action")
        # A token that does not see the project does not see its annotations either: they would all look gone.
        refresh_project(self._store, self._connections, project.key)
        client = self._connections.client(project.key)
        undone, changed = [], []
        for one in made:
            if _is_changed(client, one.annotation_id):
                changed.append(one.task_id)
                continue
            client.delete_annotation(one.annotation_id)
            self._store.page_annotations.forget(project.key, [one.annotation_id])
            self._store.delete_annotations(project.key, [one.annotation_id])
            undone.append(one.task_id)
        if not undone:
            named = ", ".join(map(str, changed[:5]))
            raise ConflictError(
                f"somebody changed what this action made (task {named}): it stays; open it in Label Studio to delete it"
            )
        self._store.tiles.touch(project.key)
        return undone, changed

    def remove(self, project: ProjectRecord, task_id: int) -> list[int]:
        """Delete all annotations of a task where its place has no editor for that; return their ids.

        Raises:
            NotFoundError: the task, or an annotation of it, is not there (any more).
            ConflictError: annotations are deleted in an editor.
        """
        place = self._connections.place(project)
        if place.editor is not None:
            raise ConflictError(f"annotations are deleted in {place.name}, which knows whose they are")
        client = self._connections.client(project.key)
        removed = [int(one["id"]) for one in client.task(task_id, project.project_id).get("annotations") or ()]
        if not removed:
            raise NotFoundError(f"task {task_id} has no annotation (any more)")
        for annotation_id in removed:
            client.delete_annotation(annotation_id)
        self._store.page_annotations.forget(project.key, removed)
        self._store.delete_annotations(project.key, removed)
        self._store.tiles.touch(project.key)
        return removed

    def save_min_score(self, project: ProjectRecord, score: float) -> ProjectOptions:
        """Write a project's `min_score` into the extra params of its ML backend in Label Studio.

        Raises:
            NotFoundError: Label Studio has no ML backend connected to the project.
            BadInputError: not in [0, 1]; or several backends are connected, and none of them is known to be this one.
            LabelStudioError: Label Studio cannot be asked.
        """
        if not 0 <= score <= 1:
            raise BadInputError(f"expected a score from 0 to 1, got {score}")
        client = self._connections.client(project.key)
        backends = client.ml_backends(project.project_id)
        if not backends:
            raise NotFoundError("no ML backend is connected to this project in Label Studio (Settings > Model)")
        if len(backends) > 1:
            raise BadInputError(
                "several ML backends are connected to this project: write min_score into the extra params of this one, "
                "in Label Studio (Settings > Model)"
            )
        own = backends[0]
        params = read_extra_params(own.get("extra_params")).model_dump(exclude_none=True)
        client.set_extra_params(own, {**params, "min_score": round(score, 3)})
        return read_extra_params({**params, "min_score": score})

    def _accept(self, project: ProjectRecord, task_id: int, batch: str, *, at_least: float = 0.0) -> PageAnnotation:
        task, prediction = self._predicted(project, task_id)
        regions = _regions(prediction)
        if not regions:
            raise NotFoundError(f"the prediction of task {task_id} has no masks")
        if any(float(region.get("score") or 0.0) < at_least for region in regions):
            raise ConflictError(f"the prediction of task {task_id} has another score by now")
        return self._annotate(project, task, regions, "accept", batch, (), prediction)

    def _predicted(self, project: ProjectRecord, task_id: int) -> tuple[Json, Json]:
        client = self._connections.client(project.key)
        tasks = client.tasks_of(project.project_id, [task_id])
        if not tasks:
            raise NotFoundError(f"task {task_id} is not in project {project.project_id} of Label Studio (any more)")
        if tasks[0].get("annotations"):
            raise ConflictError(f"task {task_id} is annotated already: open it in Label Studio to change that")
        own = [
            each
            for each in tasks[0].get("predictions") or ()
            if str(each.get("model_version") or "").startswith(OWN_VERSIONS)
        ]
        shown = self._store.unwritten.of_task(project.key, task_id)
        if shown is not None:
            # What the tile shows, and somebody decided on; Label Studio gets it in a moment.
            return tasks[0], shown.prediction or {"result": []}
        if not own:
            raise NotFoundError(f"Label Studio has no prediction of this backend for task {task_id} (yet)")
        return tasks[0], max(own, key=lambda each: int(each["id"]))

    def _annotate(
        self,
        project: ProjectRecord,
        task: Json,
        regions: Sequence[Mapping[str, Any]],
        action: str,
        batch: str,
        absent: tuple[str, ...],
        prediction: Json | None,
    ) -> PageAnnotation:
        client = self._connections.client(project.key)
        prediction_id = int(prediction["id"]) if prediction and "id" in prediction else None
        created = client.create_annotation(int(task["id"]), regions, prediction_id=prediction_id)
        made = PageAnnotation(int(created["id"]), int(task["id"]), action, batch, absent)
        try:
            self._store.page_annotations.add(project.key, made)
        except SoftmatcherError:
            client.delete_annotation(made.annotation_id)  # nobody could undo it
            raise
        return made


def _regions(prediction: Json) -> list[Json]:
    return [region for region in prediction.get("result") or () if isinstance(region, dict)]


def _is_changed(client: TaskSource, annotation_id: int) -> bool:
    """Return whether somebody saved an annotation after it was made; False for one that is gone."""
    try:
        annotation = client.annotation(annotation_id)
    except NotFoundError:
        return False
    try:
        created, updated = (datetime.fromisoformat(annotation[name]) for name in ("created_at", "updated_at"))
        return updated - created > _UNTOUCHED
    except (KeyError, TypeError, ValueError):
        return True  # nobody knows, so it stays


def _new_batch() -> str:
    return uuid4().hex
