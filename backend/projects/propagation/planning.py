"""Plans a propagation: which tasks, predicted with what; lists them into the store page by page."""

import logging
from collections.abc import Callable, Iterator

from backend.core.cancellation import WorkTimeoutError
from backend.core.types import Json
from backend.errors import (
    BadInputError,
    LabelStudioUnavailableError,
    NotFoundError,
    SoftmatcherError,
    StoreUnavailableError,
)
from backend.labelstudio.label_config import parse_label_config
from backend.projects.connections import Connections
from backend.projects.prediction.phrase_scales import PhraseScales
from backend.projects.prediction.reference_banks import ReferenceBanks
from backend.projects.propagation.backoff import is_paused, pause
from backend.projects.references.references import References
from backend.store import ProjectRecord, Store
from backend.store.records import ProjectKey, PropagationFilter, PropagationRecord

logger = logging.getLogger(__name__)


_PLAN_ATTEMPTS = 3


class PropagationPlans:
    """Plans propagations."""

    def __init__(
        self,
        store: Store,
        connections: Connections,
        references: References,
        banks: ReferenceBanks,
        scales: PhraseScales,
    ) -> None:
        self._scales = scales
        self._store = store
        self._connections = connections
        self._references = references
        self._banks = banks

    def plan(self, propagation_id: int, on_page: Callable[[], None] = lambda: None) -> Json:
        """Ingest what Label Studio did not announce, then list the project's tasks into the store.

        Goes on where it was interrupted. Nothing of the tasks but their ids is kept in memory.

        Args:
            propagation_id: in state `planning`; nothing happens in any other.
            on_page: called when there are tasks for workers: after the first page, the second, the fourth, ...

        Returns:
            Counters for the log; `paused_s` if Label Studio is away.
        """
        store = self._store.propagations
        record = store.get(propagation_id)
        if record.state != "planning" or is_paused(self._store, record):
            return {"planned": 0, "state": record.state}
        planned = 0
        if store.begin_plan(propagation_id) > _PLAN_ATTEMPTS:
            reason = f"the project's tasks could not be listed: {_PLAN_ATTEMPTS} attempts ended without a result"
            store.fail(propagation_id, record.problem or f"{reason}; the worker's log has the details")
            return {"planned": 0, "state": "failed"}
        try:
            if not record.planned_up_to:
                self._references.reconcile(record.project_key)  # fails if Label Studio lacks the project
            project = project_of(self._store, record.project_key)
            check_filter(project, record.wanted)
            self._scales.measure(project.key)
            version, digest, has_references = self.versions(project, record.wanted)
            if not has_references:
                store.fail(
                    propagation_id,
                    "there is no reference to predict from: mark an object on a task, submit, start again",
                )
                return {"planned": 0, "state": "failed"}
            store.note_version(propagation_id, version, digest)
            for number, page in enumerate(self._pages(record, project), start=1):
                if not store.add_planned(propagation_id, page):
                    return {"planned": planned, "state": "ended"}
                planned += len(page)
                if number & (number - 1) == 0:
                    on_page()
            store.finish_plan(propagation_id)
        except (LabelStudioUnavailableError, StoreUnavailableError) as error:
            return {"planned": planned, "paused_s": round(pause(self._store, propagation_id, error))}
        except SoftmatcherError as error:
            store.fail(propagation_id, str(error))
            logger.warning("propagation=%d cannot be planned: %s", propagation_id, error)
            return {"planned": planned, "state": "failed"}
        except WorkTimeoutError:
            # A long reconciliation goes on where it was: that is no failure of the planning.
            store.reset_plan_attempts(propagation_id)
            raise
        except Exception as error:
            logger.exception("propagation=%d", propagation_id)
            store.note_problem(
                propagation_id, f"internal error ({type(error).__name__}); the worker's log has the details"
            )
            return {"planned": planned, "failed": type(error).__name__}
        return {"planned": planned}

    def _pages(self, record: PropagationRecord, project: ProjectRecord) -> Iterator[list[int]]:
        left = record.wanted.limit
        if left is not None:
            left -= self._store.propagation_tasks.counts(record.id).total
        client = self._connections.client(project.key)
        pages = client.task_ids(
            project.project_id, after=record.planned_up_to, only_unlabeled=record.wanted.only_unlabeled
        )
        for page in pages:
            if left is not None:
                page = page[:left]
                left -= len(page)
            if page:
                yield page
            if left is not None and left <= 0:
                return

    def versions(self, project: ProjectRecord, wanted: PropagationFilter) -> tuple[str, str, bool]:
        """Return the model_version that tasks would get now, the digest of their references, and whether there are any.

        Raises:
            ModelUnavailableError: no models.
        """
        config = parse_label_config(project.label_config)
        labels = [label for label in config.labels if wanted.labels is None or label in wanted.labels]
        return (
            self._banks.version_now(project, config, labels),
            self._banks.references_digest(project, labels),
            self._banks.has_references(project, config, labels),
        )


def project_of(store: Store, project_key: ProjectKey) -> ProjectRecord:
    """Return a project.

    Raises:
        NotFoundError: it is not known.
    """
    project = store.project(project_key)
    if project is None:
        raise NotFoundError(
            f"project {project_key} is not known here: connect this backend to it in Label Studio (Settings > Model)"
        )
    return project


def check_filter(project: ProjectRecord, wanted: PropagationFilter) -> None:
    """Raise BadInputError for a label that the project does not have, or a limit below 1."""
    if wanted.limit is not None and wanted.limit < 1:
        raise BadInputError(f"the limit must be 1 or more tasks, got {wanted.limit}")
    if wanted.labels is not None and project.label_config:
        known = parse_label_config(project.label_config).labels
        unknown = [label for label in wanted.labels if label not in known]
        if unknown or not wanted.labels:
            raise BadInputError(f"labels must be of {', '.join(known)}; got {', '.join(unknown) or 'none'}")
