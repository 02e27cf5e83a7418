"""The store is made equal to what Label Studio has."""

import logging
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from backend.core.types import Json
from backend.errors import LabelStudioUnavailableError, NotFoundError, SoftmatcherError
from backend.metrics import Metrics
from backend.projects.connections import Connections
from backend.projects.model_host import Models
from backend.projects.project_refresh import refresh_project
from backend.projects.references.annotation_images import AnnotationImages, ImagesFound
from backend.projects.references.ingestion import Ingestion, is_current, reading_of
from backend.projects.task_source import TaskSource
from backend.settings import Settings
from backend.store import ProjectRecord, Store
from backend.store.records import ProjectKey

logger = logging.getLogger(__name__)


_MODEL_WAIT_S = 120.0
_ASKED_FOR_AT_A_TIME = 200
"""Annotations that seem gone and are asked for one by one; the rest waits for the next reconciliation."""
_ASKERS = 8
"""Images that are asked at a time whether they changed."""
_MOST_ASKED = 64


class Reconciliation:
    """Compares annotations that are stored with those of Label Studio."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        metrics: Metrics,
        models: Models,
        connections: Connections,
        images: AnnotationImages,
        ingestion: Ingestion,
    ) -> None:
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._models = models
        self._connections = connections
        self._images = images
        self._ingestion = ingestion

    def reconcile(self, project_key: ProjectKey) -> dict[str, Any]:
        """Compare the store with Label Studio: ingest what is new or changed, forget what is gone.

        Returns:
            How many annotations were looked at, had each outcome, or were unchanged.

        Raises:
            NotFoundError: Label Studio does not have the project; see `refresh_project`.
            LabelStudioUnavailableError: Label Studio does not answer; what was done so far stays.
            LabelStudioError, ConfigurationError: it refuses, or there is no token.
        """
        known = {record.annotation_id: record for record in self._store.annotations(project_key)}
        client = self._connections.client(project_key)
        project_id = int(project_key.split(".")[0])
        project = refresh_project(self._store, self._connections, project_key)
        made_with = self._models.get(_MODEL_WAIT_S)[0].signature, reading_of(self._settings, project)
        counts: dict[str, Any] = {"seen": 0, "unchanged": 0}
        seen: set[int] = set()
        asked: deque[tuple[Json, Json, Future[ImagesFound]]] = deque()

        def settle() -> None:
            task, annotation, images = asked.popleft()
            self._settle(project, task, annotation, images.result(), counts)

        with ThreadPoolExecutor(_ASKERS, thread_name_prefix="unchanged") as pool:
            for task, annotations in client.annotated_tasks(project_id):
                for annotation in annotations:
                    annotation_id = int(annotation["id"])
                    seen.add(annotation_id)
                    counts["seen"] += 1
                    record = known.get(annotation_id)
                    if record and is_current(record, annotation, made_with):
                        asked.append(
                            (task, annotation, pool.submit(self._images.look_for_changes, project, task, record))
                        )
                        if len(asked) >= _MOST_ASKED:
                            settle()
                    else:
                        self._ingest_counted(project, task, annotation, counts)
            while asked:
                settle()
        # A page that a list lacks may be a proxy's doing: what seems gone is asked for by itself.
        missing = sorted(known.keys() - seen)
        gone = [
            annotation_id for annotation_id in missing[:_ASKED_FOR_AT_A_TIME] if self._is_gone(client, annotation_id)
        ]
        if gone:
            counts["removed"] = self._store.delete_annotations(project_key, gone)
        if len(missing) > _ASKED_FOR_AT_A_TIME:
            self._store.mark_for_reconcile(project_key)
            counts["left_for_later"] = len(missing) - _ASKED_FOR_AT_A_TIME
        return counts

    def _settle(
        self, project: ProjectRecord, task: Json, annotation: Json, images: ImagesFound, counts: dict[str, Any]
    ) -> None:
        if images == "changed":
            logger.warning(
                "project=%s annotation=%s: its image was replaced since: it is ingested again",
                project.key, annotation["id"],
            )  # fmt: skip
            self._ingest_counted(project, task, annotation, counts)
            return
        if isinstance(images, SoftmatcherError):
            if isinstance(images, LabelStudioUnavailableError):
                self._connections.client(project.key).version()  # raises if it is all of Label Studio
            # Its references stay: an image that cannot be had today says nothing against them.
            problem = f"its image cannot be had, the references made of it stay: {images}"
            self._store.note_problem(project.key, int(annotation["id"]), problem)
            logger.warning("project=%s annotation=%s: %s", project.key, annotation["id"], problem)
            counts["image_missing"] = counts.get("image_missing", 0) + 1
            return
        counts["unchanged"] += 1

    def _ingest_counted(self, project: ProjectRecord, task: Json, annotation: Json, counts: dict[str, Any]) -> None:
        outcome = self._ingestion.ingest(project, task, annotation)
        self._metrics.annotations.labels(outcome).inc()
        counts[outcome] = counts.get(outcome, 0) + 1

    def _is_gone(self, client: TaskSource, annotation_id: int) -> bool:
        try:
            client.annotation(annotation_id)
        except NotFoundError:
            return True
        return False
