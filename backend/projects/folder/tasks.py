"""The images of a folder as the tasks of one project, in Label Studio's own form."""

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

from backend.core.types import Json
from backend.errors import BadInputError, ConfigurationError, ConflictError, NotFoundError
from backend.labelstudio.sample_label_config import make_label_config
from backend.projects.folder.annotation_files import AnnotationFiles, ProjectState
from backend.projects.folder.images import FolderFiles, FoundImages, name_of

PROJECT_ID = 1
_MOST_LABELS = 50
_LONGEST_LABEL = 100
_PAGE = 100


class FolderTasks:
    """A `TaskSource` over the images of a folder; threads share one.

    A task is an image; its id stays with the image's path as long as the store lasts. Each task has up to one
    prediction: a new one replaces it.

    Attributes:
        on_options: called after the options of the project changed.
    """

    on_options: Callable[[], None] = staticmethod(lambda: None)

    def __init__(
        self,
        folder: Path,
        found: FoundImages,
        kept: AnnotationFiles,
        files: FolderFiles,
        *,
        labels: Sequence[str],
        background_labels: frozenset[str] = frozenset(),
    ) -> None:
        """Read what is kept, and number the images that are new.

        Args:
            folder: of the images.
            found: in it.
            kept: annotations and the rest.
            files: knows the addresses of images.
            labels: added to those that are kept.
            background_labels: those that mean «not the object», in lower case.

        Raises:
            ConfigurationError: what is kept is of another folder, or cannot be read.
            BadInputError: no label, or one that cannot be used.
            OutputError: nothing can be kept.
        """
        self._kept = kept
        self._files = files
        self._title = name_of(quote_from_bytes(bytes(folder.resolve()))).rpartition("/")[2] or "/"
        self._background = background_labels
        self._lock = threading.RLock()
        self._state = self._opened(folder)
        self._state.labels = _joined(self._state.labels, labels)
        self._config = make_label_config(*self._state.labels, background_labels=background_labels)
        known = set(self._state.images)
        self._state.images += [path for path in found.paths if path not in known]
        kept.save_state(self._state)
        self._annotations = {int(each["id"]): each for each in kept.annotations()}
        self._predicted_tasks: dict[int, int] = {}
        there = set(found.paths)
        annotated = {each["task"] for each in self._annotations.values()}
        # An image that is gone stays while it has annotations: the page then says that it is gone.
        self._ids = [
            task_id for task_id, path in enumerate(self._state.images, start=1) if path in there or task_id in annotated
        ]
        self._is_listed = frozenset(self._ids)

    @property
    def created_at(self) -> datetime:
        """Return when the project began."""
        return datetime.fromisoformat(self._state.created_at)

    @property
    def title(self) -> str:
        """Return the folder's name."""
        return self._title

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the labels, in their order."""
        return tuple(self._state.labels)

    @property
    def label_config(self) -> str:
        """Return the label config, made of the labels."""
        return self._config

    @property
    def extra_params(self) -> Json:
        """Return the options of the project."""
        return dict(self._state.extra_params)

    def name(self, task_id: int) -> str | None:
        """Return the path of a task's image, relative to the folder, for people; None if there is no such task."""
        return name_of(self._state.images[task_id - 1]) if task_id in self._is_listed else None

    def add_label(self, label: str) -> None:
        """Add a label behind the others.

        Raises:
            BadInputError: it cannot be used.
            ConflictError: it is there already.
        """
        with self._lock:
            labels = _joined(self._state.labels, [label])
            if labels == self._state.labels:
                raise ConflictError(f"there is a label {label.strip()!r} already")
            config = make_label_config(*labels, background_labels=self._background)
            self._kept.save_state(ProjectState(**{**vars(self._state), "labels": labels}))
            self._state.labels, self._config = labels, config

    def version(self) -> str:
        """Return "folder": it always answers."""
        return "folder"

    def project(self, project_id: int) -> Json:
        """Return the project."""
        if project_id != PROJECT_ID:
            raise NotFoundError(f"a folder has the project {PROJECT_ID}, not {project_id}")
        return {
            "id": PROJECT_ID, "title": self._title, "label_config": self._config, "created_at": self._state.created_at,
        }  # fmt: skip

    def annotation(self, annotation_id: int) -> Json:
        """Return an annotation."""
        with self._lock:
            if annotation_id not in self._annotations:
                raise NotFoundError(f"there is no annotation {annotation_id} (any more)")
            return deepcopy(self._annotations[annotation_id])

    def task(self, task_id: int, project_id: int = PROJECT_ID) -> Json:
        """Return a task with its annotations; its prediction is read by `tasks_of`."""
        if task_id not in self._is_listed:
            raise NotFoundError(f"task {task_id} is not in the folder (any more)")
        with self._lock:
            mine = [each for each in self._annotations.values() if each["task"] == task_id]
        address = self._files.address(self._state.images[task_id - 1])
        return {
            "id": task_id, "project": PROJECT_ID, "data": {"image": address}, "annotations": mine, "predictions": [],
        }  # fmt: skip

    def tasks_of(self, project_id: int, task_ids: Sequence[int]) -> list[Json]:
        """Return those of the tasks that there are, with annotations and predictions."""
        return [self._whole(task_id) for task_id in task_ids if task_id in self._is_listed]

    def tasks_after(self, project_id: int, task_id: int, count: int) -> list[Json]:
        """Return the tasks that follow one, up to `count`."""
        start = bisect_right(self._ids, task_id)
        return [self.task(each) for each in self._ids[start : start + max(0, count)]]

    def page_of_tasks(self, project_id: int, *, after: int = 0, count: int = 25) -> tuple[list[int], int]:
        """Return the ids of the tasks that follow one, and how many follow it in all."""
        start = bisect_right(self._ids, after)
        return self._ids[start : start + count], len(self._ids) - start

    def task_ids(
        self, project_id: int, *, after: int = 0, only_unlabeled: bool = False, more_predictions_than: int | None = None
    ) -> Iterator[list[int]]:
        """Yield the ids of tasks, page by page; none has more than one prediction."""
        if more_predictions_than:
            return
        annotated = self._annotated() if only_unlabeled else set()
        wanted = [task_id for task_id in self._ids if task_id > after and task_id not in annotated]
        for start in range(0, len(wanted), _PAGE):
            yield wanted[start : start + _PAGE]

    def count_tasks(self, project_id: int, *, only_unlabeled: bool = False) -> int:
        """Return how many tasks there are."""
        return len(self._ids) - (len(self._annotated()) if only_unlabeled else 0)

    def all_tasks(self, project_id: int, *, only_annotated: bool = False) -> Iterator[Json]:
        """Yield the tasks with annotations and predictions."""
        annotated = self._annotated()
        for task_id in self._ids:
            if task_id in annotated or not only_annotated:
                yield self._whole(task_id)

    def annotated_tasks(self, project_id: int) -> Iterator[tuple[Json, list[Json]]]:
        """Yield the tasks that have annotations, and these."""
        for task in self.all_tasks(project_id, only_annotated=True):
            yield task, list(task["annotations"])

    def create_annotation(
        self, task_id: int, result: Sequence[Mapping[str, Any]], *, prediction_id: int | None = None
    ) -> Json:
        """Add an annotation to a task, on disk."""
        address = self.task(task_id)["data"]["image"]
        more: Json = {} if prediction_id is None else {"parent_prediction": prediction_id}
        with self._lock:
            made = self._kept.add_annotation(task_id, address, result, more)
            self._annotations[int(made["id"])] = made
        return deepcopy(made)

    def delete_annotation(self, annotation_id: int) -> None:
        """Take an annotation away; its file is kept among the removed ones."""
        with self._lock:
            if annotation_id in self._annotations:
                self._kept.remove_annotation(annotation_id)
                del self._annotations[annotation_id]

    def import_predictions(self, project_id: int, predictions: Sequence[Mapping[str, Any]]) -> int:
        """Replace the predictions of tasks."""
        for prediction in predictions:
            self.create_prediction(prediction)
        return len(predictions)

    def create_prediction(self, prediction: Mapping[str, Any]) -> Json:
        """Replace the prediction of a task."""
        task_id = int(prediction["task"])
        if task_id not in self._is_listed:
            raise NotFoundError(f"task {task_id} is not in the folder (any more)")
        with self._lock:
            made = self._kept.save_prediction(task_id, prediction)
            self._predicted_tasks[int(made["id"])] = task_id
        return made

    def delete_prediction(self, prediction_id: int) -> None:
        """Delete a prediction that `tasks_of` gave; one that was replaced is gone already."""
        with self._lock:
            task_id = self._predicted_tasks.pop(prediction_id, None)
            known = self._kept.prediction(task_id) if task_id is not None else None
            if task_id is not None and known is not None and known.get("id") == prediction_id:
                self._kept.delete_prediction(task_id)

    def ml_backends(self, project_id: int) -> list[Json]:
        """Return one: the project's options."""
        return [
            {"id": 1, "project": PROJECT_ID, "extra_params": self.extra_params, "model_version": "softmatcher-folder"}
        ]

    def set_extra_params(self, ml_backend: Mapping[str, Any], extra_params: Mapping[str, Any]) -> Json:
        """Replace the options of the project."""
        with self._lock:
            wanted = dict(extra_params)
            self._kept.save_state(ProjectState(**{**vars(self._state), "extra_params": wanted}))
            self._state.extra_params = wanted
        self.on_options()
        return wanted

    def _whole(self, task_id: int) -> Json:
        task = self.task(task_id)
        with self._lock:
            known = self._kept.prediction(task_id)
            if known is not None and isinstance(known.get("id"), int):
                self._predicted_tasks[known["id"]] = task_id
                task["predictions"] = [known]
        return task

    def _annotated(self) -> set[int]:
        with self._lock:
            return {int(each["task"]) for each in self._annotations.values()} & self._is_listed

    def _opened(self, folder: Path) -> ProjectState:
        path = quote_from_bytes(bytes(folder.resolve()))
        state = self._kept.state()
        if state is None:
            return ProjectState(path, datetime.now(UTC).isoformat())
        if state.folder != path:
            raise ConfigurationError(
                f"{self._kept.folder} holds annotations of {name_of(state.folder)}, not of {name_of(path)}: name "
                "another --store; or, if the folder was moved, write its new place into project.json there"
            )
        return state


def _joined(known: Sequence[str], new: Sequence[str]) -> list[str]:
    """Return labels, each once; names that differ in case alone are the same.

    Raises:
        BadInputError: too many, or too long ones.
    """
    labels = list(known)
    for label in new:
        name = label.strip()
        if len(name) > _LONGEST_LABEL:
            raise BadInputError(f"a label may have up to {_LONGEST_LABEL} characters, got {len(name)}")
        if not name:
            raise BadInputError("expected the name of a label, got nothing")
        if name.casefold() not in (each.casefold() for each in labels):
            labels.append(name)
    if len(labels) > _MOST_LABELS:
        raise BadInputError(f"a folder may have up to {_MOST_LABELS} labels, got {len(labels)}")
    return labels
