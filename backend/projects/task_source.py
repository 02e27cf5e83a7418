"""Protocols of the place where tasks are: Label Studio, or a folder of images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from backend.core.types import Json
from backend.labelstudio.images import FetchedFile, Validators


class TaskSource(Protocol):
    """Tasks with their annotations and predictions, in Label Studio's own form; threads share one.

    `LabelStudioClient` is one; its methods' docstrings say more. All raise `NotFoundError` for what does not exist,
    `LabelStudioUnavailableError` if the place does not answer.
    """

    def version(self) -> str:
        """Return the release of what answers; raises if it does not answer."""
        ...

    def project(self, project_id: int) -> Json:
        """Return a project, with its `label_config`, `title` and `created_at`."""
        ...

    def annotation(self, annotation_id: int) -> Json:
        """Return an annotation, with its `result` and `task`."""
        ...

    def task(self, task_id: int, project_id: int) -> Json:
        """Return a task, with its annotations and its `data`."""
        ...

    def tasks_of(self, project_id: int, task_ids: Sequence[int]) -> list[Json]:
        """Return those of the tasks that the project has, with annotations and predictions."""
        ...

    def tasks_after(self, project_id: int, task_id: int, count: int) -> list[Json]:
        """Return the tasks that follow one in the order of their ids, up to `count`."""
        ...

    def page_of_tasks(self, project_id: int, *, after: int = 0, count: int = 25) -> tuple[list[int], int]:
        """Return the ids of the tasks that follow one in the order of their ids, and how many follow it in all."""
        ...

    def task_ids(
        self, project_id: int, *, after: int = 0, only_unlabeled: bool = False, more_predictions_than: int | None = None
    ) -> Iterator[list[int]]:
        """Return the ids of a project's tasks in their order, page by page."""
        ...

    def count_tasks(self, project_id: int, *, only_unlabeled: bool = False) -> int:
        """Return how many tasks a project has."""
        ...

    def all_tasks(self, project_id: int, *, only_annotated: bool = False) -> Iterator[Json]:
        """Yield a project's tasks in the order of their ids, with annotations and predictions."""
        ...

    def annotated_tasks(self, project_id: int) -> Iterator[tuple[Json, list[Json]]]:
        """Yield the tasks of a project that have annotations, and these, in the order of ids."""
        ...

    def create_annotation(
        self, task_id: int, result: Sequence[Mapping[str, Any]], *, prediction_id: int | None = None
    ) -> Json:
        """Add an annotation to a task; those that are there already stay."""
        ...

    def delete_annotation(self, annotation_id: int) -> None:
        """Delete one annotation; one that is gone already is no error."""
        ...

    def import_predictions(self, project_id: int, predictions: Sequence[Mapping[str, Any]]) -> int:
        """Add predictions, and return how many were created."""
        ...

    def create_prediction(self, prediction: Mapping[str, Any]) -> Json:
        """Add one prediction."""
        ...

    def delete_prediction(self, prediction_id: int) -> None:
        """Delete one prediction; one that is gone already is no error."""
        ...

    def ml_backends(self, project_id: int) -> list[Json]:
        """Return what the options of a project are kept in, each with `extra_params`."""
        ...

    def set_extra_params(self, ml_backend: Mapping[str, Any], extra_params: Mapping[str, Any]) -> Json:
        """Replace the options of a project."""
        ...


class ImageFiles(Protocol):
    """The files behind the addresses in tasks' data; `ImageFetcher` is one, its docstrings say more."""

    def fetch(self, url: str, task_id: int | None = None) -> bytes:
        """Return a file, undecoded.

        Raises:
            NotFoundError, BadInputError, LabelStudioError: it cannot be had; the message says why.
        """
        ...

    def fetch_if_changed(self, url: str, task_id: int | None, known: Validators | None) -> FetchedFile:
        """Return a file, without its content if it is still the one with the validators `known`."""
        ...

    def fetch_if_sized(self, url: str, task_id: int | None, sizes: frozenset[int]) -> bytes | None:
        """Return a file; None, without its content, if it has another size."""
        ...


@dataclass(frozen=True)
class Place:
    """The place where a project's tasks are, as the project's page describes it.

    Attributes:
        name: of the place.
        editor: address at which people's browsers open the project's tasks; None if nothing but the page shows them.
        has_runs: propagations can be started; else all tasks are predicted without being asked for.
        has_own_labels: labels are added, and annotations removed, on the page.
        options_from: where a project's options are kept.
        notes: what to know of the place, and where to go from it; a sentence each.
    """

    name: str
    editor: str | None
    has_runs: bool
    has_own_labels: bool
    options_from: str
    notes: tuple[str, ...] = ()

    @property
    def tile_acts(self) -> tuple[str, ...]:
        """Return what a person can do on a tile of the gallery."""
        acts = ("accept", "wrong", "draw", "why")
        return (*acts, "remove") if self.has_own_labels else acts

    def address(self, task_id: int) -> str | None:
        """Return where a person opens a task; None if nowhere."""
        return None if self.editor is None else f"{self.editor}?task={task_id}"
