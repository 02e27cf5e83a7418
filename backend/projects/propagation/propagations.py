"""Starts propagations, retries their tasks, and reports on them.

Propagation: the tasks of a whole project predicted from its references, by as many workers as there are. The plan is
rows in the store (`planning`); workers lease some at a time (`work`), so a job is worth no more
than «look what is left».
"""

import logging
import threading
import time
from collections.abc import Sequence

from backend.core.types import Json
from backend.errors import BadInputError
from backend.metrics import PropagationCounters
from backend.projects.connections import Connections
from backend.projects.prediction.reference_banks import ReferenceBanks
from backend.projects.propagation.backoff import is_paused
from backend.projects.propagation.planning import PropagationPlans, check_filter, project_of
from backend.settings import Settings
from backend.store import Store
from backend.store.records import FailureGroup, ProjectKey, PropagationCounts, PropagationFilter, PropagationRecord

logger = logging.getLogger(__name__)


_COUNTERS_KEPT_S = 5.0


class Propagations:
    """Starts propagations and reports how far they are."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        connections: Connections,
        banks: ReferenceBanks,
        plans: PropagationPlans,
    ) -> None:
        self._settings = settings
        self._store = store
        self._connections = connections
        self._banks = banks
        self._plans = plans
        self._counters: tuple[float, PropagationCounters | None] = (0.0, None)
        self._lock = threading.Lock()

    def start(
        self, project_key: ProjectKey, wanted: PropagationFilter, started_by: str, *, supersede: bool
    ) -> PropagationRecord:
        """Start a propagation; a worker lists the project's tasks and plans it.

        Raises:
            ConflictError: one runs, and `supersede` is False.
            NotFoundError: the project is not known.
            BadInputError: a label that the project does not have, a limit below 1.
        """
        check_filter(project_of(self._store, project_key), wanted)
        record = self._store.propagations.create(project_key, wanted, started_by, supersede=supersede)
        logger.info("project=%s propagation=%d started by %s", project_key, record.id, started_by)
        return record

    def count(self, project_key: ProjectKey, wanted: PropagationFilter) -> int:
        """Return how many tasks a propagation would have; nothing is started.

        Raises:
            NotFoundError: the project is not known.
            LabelStudioError, ConfigurationError: Label Studio cannot be asked.
            BadInputError: a label that the project does not have, a limit below 1.
        """
        project = project_of(self._store, project_key)
        check_filter(project, wanted)
        client = self._connections.client(project_key)
        total = client.count_tasks(project.project_id, only_unlabeled=wanted.only_unlabeled)
        return total if wanted.limit is None else min(total, wanted.limit)

    def defer(self, project_key: ProjectKey, task_ids: Sequence[int]) -> int | None:
        """See that workers predict tasks for which a /predict had no time; id of the propagation."""
        if not task_ids:
            return None
        version = self._banks.model_version(project_key)
        return self._store.propagations.defer(project_key, task_ids, version, "Label Studio: retrieve predictions")

    def retry(self, propagation_id: int, what: str) -> int:
        """Put tasks back to be predicted again; how many.

        Args:
            propagation_id: of the tasks.
            what: `failed`; `unfinished`: those failed and those cancelled; `outdated`: those predicted before the
                references changed.

        Raises:
            BadInputError: another `what`.
            NotFoundError: no such propagation.
            ConflictError: another propagation of the project runs.
        """
        store = self._store.propagations
        if what == "failed":
            return store.retry(propagation_id, ["failed"])
        if what == "unfinished":
            return store.retry(propagation_id, ["failed", "cancelled"])
        if what == "outdated":
            record = store.get(propagation_id)
            return store.retry(propagation_id, ["done", "empty"], other_than_version=self.version_now(record))
        raise BadInputError(f"expected what to retry: failed, unfinished or outdated, got {what[:40]!r}")

    def due_projects(self) -> list[str]:
        """Return the projects with enough new references for a propagation to start by itself."""
        enough = self._settings.propagate_after_references
        if not enough:
            return []
        store = self._store.propagations
        return [
            project.key
            for project in self._store.projects()
            if store.new_references_since_last(project.key) >= enough and not store.active(project.key)
        ]

    def version_now(self, record: PropagationRecord) -> str:
        """Return the model_version that its tasks would get now.

        Raises:
            NotFoundError: the project is not known.
            ModelUnavailableError: no models.
        """
        return self._plans.versions(project_of(self._store, record.project_key), record.wanted)[0]

    def counters(self) -> PropagationCounters:
        """Return counters for /metrics, up to some seconds old: counting a million tasks takes tenths of a second."""
        with self._lock:
            read_at, counters = self._counters
            if counters is not None and time.monotonic() - read_at < _COUNTERS_KEPT_S:
                return counters
            running = dict.fromkeys(("planning", "running", "finishing", "paused"), 0)
            tasks = dict.fromkeys(PropagationCounts.STATES, 0)
            rate = 0.0
            for record in self._store.propagations.active():
                counts = self._store.propagation_tasks.counts(record.id)
                running["paused" if is_paused(self._store, record) else record.state] += 1
                for state in tasks:
                    tasks[state] += getattr(counts, state)
                rate += _rate(record, counts, self._store.now())
            counters = PropagationCounters(running, tasks, rate)
            self._counters = (time.monotonic(), counters)
            return counters

    def _reasons(self, record: PropagationRecord, counts: PropagationCounts) -> list[FailureGroup]:
        # What was predicted without one of its images is no failure: looked for once, at the end.
        if counts.failed or not record.is_active:
            return self._store.propagation_tasks.failures(record.id)
        return []

    def status(self, record: PropagationRecord) -> Json:
        """Return what `GET /projects/<id>/propagations/<id>` answers."""
        counts = self._store.propagation_tasks.counts(record.id)
        rate = _rate(record, counts, self._store.now())
        return {
            "id": record.id,
            "project": int(record.project_key.split(".")[0]),
            "state": record.state,
            "is_active": record.is_active,
            "started_by": record.started_by,
            "filter": {
                "only_unlabeled": record.wanted.only_unlabeled,
                "labels": record.wanted.labels,
                "limit": record.wanted.limit,
            },
            "model_version": record.model_version,
            "references_digest": record.references_digest,
            "counts": {name: getattr(counts, name) for name in (*PropagationCounts.STATES, "total", "finished")}
            | {"kept": min(record.kept, counts.done), "made_anew": counts.done - min(record.kept, counts.done)},
            "percent": 100 * counts.answered // counts.total if counts.total else 0,
            "rate_per_s": round(rate, 3),
            "eta_s": round(counts.unfinished / rate) if rate and record.state == "running" else None,
            "created_at": record.created_at,
            "started_at": record.started_at,
            "finished_at": record.finished_at,
            "problem": record.problem,
            "paused_until": record.paused_until if is_paused(self._store, record) else None,
            "failures": [
                {"reason": group.reason, "count": group.count, "first_task": group.first_task_id}
                for group in (self._reasons(record, counts))
            ],
        }


def _rate(record: PropagationRecord, counts: PropagationCounts, now_s: float) -> float:
    """Return tasks per second within the last minute, or since it began."""
    if not record.is_active:
        began, ended = record.started_at, record.finished_at
        done = counts.done + counts.empty + counts.failed
        return done / (ended - began) if began and ended and ended > began else 0.0
    since = now_s - (record.started_at or record.created_at)
    return counts.finished_lately / max(1.0, min(counts.window_s, since))
