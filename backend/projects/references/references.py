"""References of projects: one annotation at a time, or all of a project's."""

import logging
from collections.abc import Mapping
from typing import Any

from backend.errors import LabelStudioUnavailableError, ModelUnavailableError, NotFoundError
from backend.metrics import Metrics
from backend.projects.connections import Connections
from backend.projects.images import TaskImages
from backend.projects.model_host import Models
from backend.projects.project_refresh import refresh_project
from backend.projects.references.annotation_images import AnnotationImages
from backend.projects.references.ingestion import Ingestion, Outcome, reading_of
from backend.projects.references.line_labels import LineLabels
from backend.projects.references.reconciliation import Reconciliation
from backend.projects.text_references import TextReferences
from backend.settings import Settings
from backend.store import ProjectRecord, Store
from backend.store.records import ProjectKey

logger = logging.getLogger(__name__)


class References:
    """Ingests annotations and keeps the store equal to what Label Studio has."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        metrics: Metrics,
        models: Models,
        connections: Connections,
        images: TaskImages,
        texts: TextReferences,
        lines: LineLabels,
    ) -> None:
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._models = models
        self._connections = connections
        of_annotations = AnnotationImages(connections, images)
        self._ingestion = Ingestion(settings, store, models, of_annotations, texts, lines)
        self._reconciliation = Reconciliation(
            settings, store, metrics, models, connections, of_annotations, self._ingestion
        )

    def ingest(self, project_key: ProjectKey, annotation_id: int) -> Outcome:
        """Make the references of one annotation what Label Studio says now.

        Those of an annotation that Label Studio does not have are removed once it was seen to have the project.

        Raises:
            NotFoundError: Label Studio does not have the project; see `refresh_project`.
            LabelStudioUnavailableError: Label Studio does not answer; what is stored stays as it is.
            LabelStudioError, ConfigurationError: it refuses, or there is no token.
        """
        started = self._store.now()
        try:
            client = self._connections.client(project_key)
            try:
                annotation = client.annotation(annotation_id)
            except NotFoundError:
                refresh_project(self._store, self._connections, project_key)
                self._store.delete_annotations(project_key, [annotation_id])
                outcome: Outcome = "removed"
            else:
                outcome = self._ingest_of_its_project(project_key, annotation)
        except LabelStudioUnavailableError:
            raise  # it stays pending: maintenance queues it again
        except BaseException:
            self._store.clear_pending(project_key, annotation_id, mark=started)
            raise
        # What was announced after the start is left to the job that came with it.
        self._store.clear_pending(project_key, annotation_id, mark=started)
        self._metrics.annotations.labels(outcome).inc()
        return outcome

    def reconcile(self, project_key: ProjectKey) -> dict[str, Any]:
        """Compare the store with Label Studio: see `Reconciliation.reconcile`."""
        return self._reconciliation.reconcile(project_key)

    def count_outdated(self, project: ProjectRecord) -> int:
        """Count the references that other settings, another label config or other models made than there are now.

        Models that are not loaded are not compared.
        """
        try:
            signature = self._models.get(0.0)[0].signature if self._models.state == "ready" else None
        except ModelUnavailableError:
            signature = None
        return self._store.count_references_not_of(project.key, reading_of(self._settings, project), signature)

    def _ingest_of_its_project(self, project_key: ProjectKey, annotation: Mapping[str, Any]) -> Outcome:
        project_id = int(project_key.split(".")[0])
        if annotation.get("project") not in (None, project_id):
            logger.warning("project=%s annotation=%s is of another project", project_key, annotation.get("id"))
            return "none"
        project = self._store.project(project_key)
        if project is None or not project.label_config:
            project = refresh_project(self._store, self._connections, project_key)
        try:
            task = self._connections.client(project_key).task(int(annotation["task"]), project_id)
        except NotFoundError as error:
            # The annotation is there, so its task is: it may be between two pages, or hidden from the token.
            raise LabelStudioUnavailableError(
                f"Label Studio has the annotation, but does not list its task: {error}"
            ) from error
        return self._ingestion.ingest(project, task, annotation, tries_again=True)
